"""Deblurring without a network: a defocus map from edges, deconvolution by that map, and unsharp masking.

The two-stage baseline that learned methods are measured against. Pictures are [B, 3, H, W] sRGB in 0..1 and maps
[B, 1, H, W] in the convention of `optics.map_from_radius`; results are float32 on the picture's device. Pictures of a
batch are worked on one by one, large ones in tiles, so that memory stays bounded.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .callbacks import Callbacks
from .checks import check_map, check_picture
from .optics import (
    Aperture,
    aperture_kernel,
    linear_to_srgb,
    map_from_radius,
    radius_from_map,
    srgb_to_linear,
    transfer_function,
)
from .tiling import FEATHER, add_tile, cut, plan_tiles, round_up

WORKING_SIZE = 512
"""Long side at which the map of edges is estimated, that of the learned estimator: its radii count these pixels."""
MAX_EDGE_RADIUS = 10.0
"""Largest radius told from edges, in pixels of the working size; beyond it the re-blur ratio hardly differs from 1."""
RE_BLUR = 1.0
"""Standard deviation of the second blur (sigma_0 of Zhuo and Sim), in pixels."""
WIDE_RE_BLUR = 3.0
"""The same for strongly blurred edges, whose ratio under a narrow second blur drowns in noise."""
LENS_BLUR = 0.5
"""Standard deviation of what lens and sensor blur even in focus, in pixels."""
EDGE_THRESHOLDS = (0.01, 0.03)
"""Weakest and certain gradient of an edge, per pixel in linear light, after a Gaussian of RE_BLUR."""
SMOOTHNESS = 30.0**2
COLOUR_SIGMA = 0.06
"""How far the map spreads over even ground, and the colour difference that stops it."""

DECONVOLUTION_TILE = 1024
RADIUS_STEP = 0.5
"""Distance in pixels between two radii of the bank of discs."""

Method = Literal["wiener", "richardson_lucy"]


# ---------------------------------------------------------------- defocus map from edges


@torch.inference_mode()
def edge_defocus_map(image: Tensor, *, callbacks: Callbacks = Callbacks()) -> Tensor:
    """Defocus map [B, 1, H, W] in 0..1 of pictures [B, 3, H, W], after Zhuo and Sim 2011.

    Blurred once more, a sharp edge loses much of its gradient and a blurred one little: the ratio of the gradients
    before and after gives the radius of the blur at every edge, here by a table for discs. An edge-preserving smoother
    (Min et al. 2014) spreads the radii over the areas without edges. The radii are in pixels of WORKING_SIZE, to which
    larger pictures are reduced, and reach MAX_EDGE_RADIUS. Where a picture has no edge at all the map is 0.
    Raises ValueError for what is no picture.
    """
    check_picture(image, "image")
    maps = image.new_empty(len(image), 1, *image.shape[-2:], dtype=torch.float32)
    for b in range(len(image)):
        callbacks.check()
        maps[b : b + 1] = _edge_map(image[b : b + 1].float())
        callbacks.report(b + 1, len(image))
    return maps


def _edge_map(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    scale = min(1.0, WORKING_SIZE / max(height, width))
    if scale < 1:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    radius, confidence = _edge_radii(image)
    if not bool(confidence.any()):
        return image.new_zeros(1, 1, height, width)
    spread = _smooth(torch.cat((radius * confidence, confidence), dim=1), image)
    estimate = map_from_radius(spread[:, :1] / spread[:, 1:].clamp_min(1e-12))
    if scale < 1:
        estimate = F.interpolate(estimate, size=(height, width), mode="bilinear", align_corners=False)
    return estimate.clamp(0, 1)


def _edge_radii(image: Tensor) -> tuple[Tensor, Tensor]:
    """Radius at every edge of [1, 3, H, W] and how far it is to be trusted (0 off edges), [1, 1, H, W] each."""
    # Blur adds up in linear light; the green-weighted luminance has the least noise.
    luminance = (srgb_to_linear(image) * image.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1, keepdim=True)
    before, across = _gradient(luminance)
    narrow, _ = _gradient(gaussian_blur(luminance, RE_BLUR))
    wide, _ = _gradient(gaussian_blur(luminance, WIDE_RE_BLUR))
    radius = _invert_ratio(before / narrow.clamp_min(1e-6), RE_BLUR)
    strong = _invert_ratio(before / wide.clamp_min(1e-6), WIDE_RE_BLUR)
    radius = torch.lerp(radius, strong, ((radius - 1.5) / 1.5).clamp(0, 1))
    edges = _edges(narrow, across)
    # No blur makes an edge steeper: what does is texture or the edge next to it.
    return radius, narrow * (edges & (before > narrow) & (narrow > wide))


def _gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude [1, 1, H, W] of the central differences of x, and their directions [1, 2, H, W] as (y, x)."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    both = torch.cat((along_y, along_x), dim=1)
    magnitude = torch.linalg.vector_norm(both, dim=1, keepdim=True)
    return magnitude, both / magnitude.clamp_min(1e-12)


def _edges(magnitude: Tensor, across: Tensor) -> Tensor:
    """Canny's edges, [1, 1, H, W] bool: crests of the gradient, strong or connected to a strong one."""
    height, width = magnitude.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    here = torch.stack((x, y), dim=-1).to(magnitude)
    step = across[0].flip(0).movedim(0, -1)  # (x, y), one pixel long
    extent = magnitude.new_tensor([width, height])

    def beside(sign: int) -> Tensor:
        grid = ((here + sign * step) * 2 + 1) / extent - 1
        return F.grid_sample(magnitude, grid[None], padding_mode="border", align_corners=False)

    low, high = EDGE_THRESHOLDS
    crest = (magnitude >= beside(1)) & (magnitude > beside(-1)) & (magnitude > low)
    found = crest & (magnitude > high)
    while True:
        grown = crest & (F.max_pool2d(found.float(), 3, stride=1, padding=1) > 0)
        if torch.equal(grown, found):
            return found
        found = grown


@lru_cache
def _ratio_table(sigma: float) -> tuple[Tensor, Tensor]:
    """Ratios of the gradients at a step edge blurred by discs, before and after a Gaussian of `sigma`, ascending,
    and the discs' radii in pixels.
    """
    radii = torch.cat((torch.zeros(1), torch.arange(0.5, MAX_EDGE_RADIUS + 0.05, 0.1)))
    size = 2 * (math.ceil(MAX_EDGE_RADIUS) + 1) + 1
    ratios = []
    for radius in radii.tolist():
        line = aperture_kernel(radius, Aperture(), size).sum(0)
        step = F.pad(line, (40, 40)).cumsum(0).reshape(1, 1, 1, -1)
        step = gaussian_blur(step, LENS_BLUR)
        before, _ = _gradient(step)
        after, _ = _gradient(gaussian_blur(step, sigma))
        ratios.append(before.max() / after.max())
    # Sampling makes the smallest discs alike: only what tells radii apart stays.
    falling = torch.stack(ratios).cummin(0).values
    return falling.flip(0), radii.flip(0)


def _invert_ratio(ratio: Tensor, sigma: float) -> Tensor:
    """Radii in 0..MAX_EDGE_RADIUS for ratios of gradients, linearly between the entries of the table."""
    ratios, radii = (x.to(ratio) for x in _ratio_table(sigma))
    above = torch.searchsorted(ratios, ratio.contiguous()).clamp(1, len(ratios) - 1)
    low, high = ratios[above - 1], ratios[above]
    share = ((ratio - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    return torch.lerp(radii[above - 1], radii[above], share)


def _smooth(planes: Tensor, guide: Tensor, iterations: int = 3) -> Tensor:
    """Fast global smoother of Min et al. 2014: planes [1, C, H, W] smoothed within the areas of even colour of `guide`.

    Weighted least squares along rows, then along columns, with a weight that falls from pass to pass.
    """
    for i in range(iterations):
        weight = 1.5 * SMOOTHNESS * 4 ** (iterations - 1 - i) / (4**iterations - 1)
        planes = _smooth_rows(planes, guide, weight)
        planes = _smooth_rows(planes.mT, guide.mT, weight).mT
    return planes


def _smooth_rows(planes: Tensor, guide: Tensor, weight: float) -> Tensor:
    """Solve (I + weight L) u = planes along every row by elimination; L is the Laplacian weighted by likeness."""
    difference = torch.linalg.vector_norm(guide.diff(dim=-1), dim=1)  # [1, H, W - 1]
    link = F.pad(weight * torch.exp(-difference / COLOUR_SIGMA), (1, 1))
    # Columns first, so that each step of the elimination reads and writes contiguous memory.
    left, right = (-x.movedim(-1, 0).contiguous() for x in (link[..., :-1], link[..., 1:]))
    diagonal = 1 - left - right
    values = planes.movedim(-1, 0).contiguous()
    upper = torch.empty_like(right)
    for i in range(len(values)):
        pivot = diagonal[i] if i == 0 else diagonal[i] - left[i] * upper[i - 1]
        upper[i] = right[i] / pivot
        known = values[i] if i == 0 else values[i] - left[i] * values[i - 1]
        values[i] = known / pivot
    for i in range(len(values) - 2, -1, -1):
        values[i] -= upper[i] * values[i + 1]
    return values.movedim(0, -1)


# ---------------------------------------------------------------- deconvolution


@torch.inference_mode()
def deconvolve(
    image: Tensor,
    defocus_map: Tensor,
    *,
    method: Method = "wiener",
    max_radius: float = 8.0,
    iterations: int = 15,
    noise: float = 0.01,
    callbacks: Callbacks = Callbacks(),
) -> Tensor:
    """Non-blind deconvolution that varies over the picture: [B, 3, H, W] -> [B, 3, H, W] in 0..1.

    The picture is deconvolved in linear light with discs of all radii that the map asks for, RADIUS_STEP apart, and
    every pixel is blended from the two next to its own radius. Where the map is 0 it comes back bit for bit.

    Args:
        defocus_map: [B or 1, 1, h, w] in 0..1, resized to the picture. Its radii (`optics.radius_from_map`) count
            pixels of a long side of WORKING_SIZE; for larger pictures they grow in proportion.
        method: "wiener" (Wiener 1949, with a noise-to-signal ratio that grows with the squared frequency, as it does
            in photographs) or "richardson_lucy" (Richardson 1972, Lucy 1974).
        max_radius: radii above this many pixels of the picture are taken for it; > 0.
        iterations: of Richardson-Lucy; more sharpen more and raise more noise.
        noise: the Wiener filter's noise-to-signal ratio; > 0, less sharpens more and raises more noise.

    Raises ValueError for inputs that do not fit.
    """
    check_picture(image, "image")
    if method not in ("wiener", "richardson_lucy"):
        raise ValueError(f"method must be 'wiener' or 'richardson_lucy', not {method!r}")
    for name, value in (("max_radius", max_radius), ("iterations", iterations), ("noise", noise)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, not {value}")
    check_map(defocus_map, len(image), "defocus_map")
    image = image.float()
    height, width = image.shape[-2:]
    scale = max(1.0, max(height, width) / WORKING_SIZE)
    # Four radii of context on either side of what is blended.
    overlap = FEATHER + round_up(math.ceil(8 * max_radius), FEATHER)
    tiles = plan_tiles(height, width, DECONVOLUTION_TILE, 1, overlap=overlap)
    result = torch.zeros_like(image)
    done, total = 0, len(image) * len(tiles)
    for b in range(len(image)):
        item_map = defocus_map[b % len(defocus_map)][None].to(image)
        if item_map.shape[-2:] != image.shape[-2:]:
            # Thin lines of a larger map must not fall between the pixels.
            larger = item_map.shape[-2] > height or item_map.shape[-1] > width
            item_map = F.interpolate(
                item_map, size=(height, width), mode="bilinear", antialias=larger, align_corners=False
            ).clamp(0, 1)
        radius = (radius_from_map(item_map) * scale).clamp(0, max_radius)
        for tile in tiles:
            part, part_radius = cut(image[b : b + 1], tile), cut(radius, tile)
            add_tile(result[b : b + 1], _deconvolve_tile(part, part_radius, method, iterations, noise, callbacks), tile)
            callbacks.report(done := done + 1, total)
        result[b] = torch.where(radius[0] == 0, image[b], result[b].clamp(0, 1))
    return result


def _deconvolve_tile(
    image: Tensor, radius: Tensor, method: Method, iterations: int, noise: float, callbacks: Callbacks
) -> Tensor:
    """[1, 3, H, W] sRGB and radii [1, 1, H, W] in pixels -> [1, 3, H, W] sRGB."""
    height, width = image.shape[-2:]
    linear = srgb_to_linear(image)
    margin = 4 * math.ceil(float(radius.max())) + 8
    padded = _periodic(_periodic(linear, margin).mT, margin).mT
    spectrum = torch.fft.rfft2(padded)
    result = torch.zeros_like(linear)
    for k in range(math.ceil(float(radius.max()) / RADIUS_STEP) + 1):
        share = (1 - (radius / RADIUS_STEP - k).abs()).clamp_min(0)
        if not bool(share.any()):
            continue
        callbacks.check()
        spot = aperture_kernel(k * RADIUS_STEP, Aperture(), 2 * math.ceil(k * RADIUS_STEP + 0.5) + 1).to(linear)
        if spot.max() == 1:  # a disc within one pixel
            result += share * linear
            continue
        transfer = transfer_function(spot, padded.shape[-2], padded.shape[-1])
        if method == "wiener":
            sharp = torch.fft.irfft2(spectrum * _wiener(transfer, noise, padded), s=padded.shape[-2:])
        else:
            sharp = _richardson_lucy(padded, transfer, iterations, callbacks)
        result += share * sharp[..., :height, :width]
    return linear_to_srgb(result.clamp(0, 1))


def _periodic(x: Tensor, margin: int) -> Tensor:
    """Append columns in which the picture's mirrored end passes into its mirrored start, so that it may repeat."""
    length = min(2 * margin, x.shape[-1])
    end, start = x.flip(-1)[..., :length], x[..., :length].flip(-1)
    share = (torch.arange(length, device=x.device) + 0.5) / length
    return torch.cat((x, torch.lerp(end, start, share)), dim=-1)


def _wiener(transfer: Tensor, noise: float, like: Tensor) -> Tensor:
    """H / (H^2 + noise * |f|^2), with |f|^2 as the response of the discrete Laplacian, 0..8."""
    height, width = like.shape[-2:]
    y = torch.fft.fftfreq(height, device=like.device)[:, None]
    x = torch.fft.rfftfreq(width, device=like.device)[None, :]
    frequency = 4 * torch.sin(math.pi * y).square() + 4 * torch.sin(math.pi * x).square()
    return transfer / (transfer.square() + noise * frequency).clamp_min(1e-12)


def _richardson_lucy(observed: Tensor, transfer: Tensor, iterations: int, callbacks: Callbacks) -> Tensor:
    """x <- x * H^T(observed / H x) from x = observed; non-negative."""

    def blur(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])

    estimate = observed.clamp_min(1e-4)
    for _ in range(iterations):
        callbacks.check()
        ratio = observed / blur(estimate).clamp_min(1e-4)
        estimate = (estimate * blur(ratio)).clamp(1e-4, 4)
    return estimate


# ---------------------------------------------------------------- sharpening


@torch.inference_mode()
def unsharp_mask(image: Tensor, radius: float = 2.0, amount: float = 1.0) -> Tensor:
    """image + amount * (image - blurred), clipped to 0..1; `radius` is the Gaussian's standard deviation in pixels.

    [B, 3, H, W] -> [B, 3, H, W], the same everywhere: the sharpening of every photo editor. Raises ValueError for
    what is no picture, radius <= 0 or a negative amount.
    """
    check_picture(image, "image")
    if not (math.isfinite(radius) and radius > 0 and math.isfinite(amount) and amount >= 0):
        raise ValueError(f"radius must be > 0 and amount >= 0, not {radius} and {amount}")
    image = image.float()
    return (image + amount * (image - gaussian_blur(image, radius))).clamp(0, 1)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """[B, C, H, W] blurred by a Gaussian of `sigma` pixels, cut off at 4 sigma; borders are replicated."""
    half = math.ceil(4 * sigma)
    axis = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (axis / sigma).square())
    weights = weights / weights.sum()
    planes = F.pad(x.flatten(0, 1)[:, None], (half,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(planes, weights[None, None, None]), weights[None, None, :, None])
    return blurred[:, 0].unflatten(0, x.shape[:2])
