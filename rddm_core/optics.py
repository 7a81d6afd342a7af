"""Thin-lens defocus: circle of confusion, aperture shapes and occlusion-aware layered rendering in linear light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .callbacks import Callbacks

MAP_RADIUS = 2.0
"""Radius of the circle of confusion, in pixels, at which the defocus map reaches 1 - 1/e."""


def circle_of_confusion(depth: Tensor, focus: float, aperture: float, focal_length: float) -> Tensor:
    """Signed radius of the circle of confusion on the sensor (Potmesil and Chakravarty 1981).

    r = (A / 2) f / (D - f) (d - D) / d for object distance d = `depth`, focus distance D, aperture diameter A and
    focal length f, all in one unit of length. Positive behind the focus plane, negative in front of it.
    Raises ValueError unless focus > focal_length > 0 and every depth is positive.
    """
    if not focus > focal_length > 0:
        raise ValueError(f"focus distance {focus} must exceed the focal length {focal_length}, and both be positive")
    if not bool((depth > 0).all()):
        raise ValueError("depth must be positive everywhere")
    # (d - D) / d, but 1 at infinity, too.
    return (aperture / 2) * focal_length / (focus - focal_length) * (1 - focus / depth)


def map_from_radius(radius: Tensor) -> Tensor:
    """Defocus map 1 - exp(-|r| / MAP_RADIUS) in 0..1 from radii in pixels: 0 in focus, near 1 for strong blur."""
    return 1 - torch.exp(-radius.abs() / MAP_RADIUS)


def radius_from_map(defocus_map: Tensor) -> Tensor:
    """The inverse of `map_from_radius`: radii in pixels, at most 13.8 (where the map is 0.999)."""
    return -MAP_RADIUS * torch.log1p(-defocus_map.clamp(0, 0.999))


def scale_map(defocus_map: Tensor, factor: float) -> Tensor:
    """The map whose radii are `factor` times as large: that of the picture enlarged. 0 and 1 stay what they are."""
    return defocus_map if factor == 1 else 1 - (1 - defocus_map) ** factor


def srgb_to_linear(image: Tensor) -> Tensor:
    """sRGB transfer function to linear light (IEC 61966-2-1), values 0..1."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: Tensor) -> Tensor:
    """The inverse of `srgb_to_linear`."""
    return torch.where(image <= 0.0031308, image * 12.92, 1.055 * image.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class Aperture:
    """Shape of the out-of-focus spot.

    blades: 0 for a disc, else the number of sides of a regular polygon. rotation: radians. rim: brightness of the rim
    relative to the centre minus one (> 0 soap bubble, < 0 soft edge). vignette: 0..1, how far a second disc cuts the
    spot (cat-eye), towards `vignette_angle`. softness: share of a Gaussian of the same variance mixed in.
    """

    blades: int = 0
    rotation: float = 0.0
    rim: float = 0.0
    vignette: float = 0.0
    vignette_angle: float = 0.0
    softness: float = 0.0


def _apothem(blades: int) -> float:
    """Distance from the centre to the sides of the regular polygon that has the area of the unit disc."""
    return math.sqrt(math.pi / (blades * math.tan(math.pi / blades)))


def kernel_reach(radius: float, aperture: Aperture) -> int:
    """Pixels around its centre within which a spot of `radius` pixels lies: 2 * reach + 1 is its kernel's size.

    A polygon's corners reach farther than the disc of its area. A Gaussian (`Aperture.softness`) has no end.
    """
    blades = aperture.blades
    corner = _apothem(blades) / math.cos(math.pi / blades) if blades >= 3 else 1.0
    return math.ceil(abs(radius) * corner) + 2


def aperture_kernel(radius: float, aperture: Aperture, size: int) -> Tensor:
    """The normalised spot [size, size] (odd `size`) for a circle of confusion of `radius` pixels.

    What lies beyond `size` is cut off (`kernel_reach`). The sign matters: a spot behind the focus plane is the
    point-mirrored one in front of it.
    """
    axis = torch.arange(size, dtype=torch.float32) - size // 2
    if radius < 0:
        axis = -axis
    y, x = axis[:, None], axis[None, :]
    r = max(abs(radius), 1e-3)
    distance = torch.sqrt(x * x + y * y)
    edge = distance
    if aperture.blades >= 3:
        sector = 2 * math.pi / aperture.blades
        angle = torch.remainder(torch.atan2(y, x) - aperture.rotation, sector) - sector / 2
        edge = distance * torch.cos(angle) / _apothem(aperture.blades)
    # One pixel of linear ramp at the edge: an antialiased disc whose second moment follows the radius.
    spot = (r + 0.5 - edge).clamp(0, 1)
    if aperture.vignette > 0:
        shift = aperture.vignette * r
        cut = torch.hypot(x - shift * math.cos(aperture.vignette_angle), y - shift * math.sin(aperture.vignette_angle))
        spot = spot * (1.15 * r + 0.5 - cut).clamp(0, 1)
    spot = spot * (1 + aperture.rim * (distance / r).clamp(0, 1).square()).clamp_min(0.05)
    spot = spot / spot.sum()
    if aperture.softness > 0:
        variance = max(r * r / 4, 0.05)
        gaussian = torch.exp(-(distance * distance) / (2 * variance))
        spot = (1 - aperture.softness) * spot + aperture.softness * gaussian / gaussian.sum()
    return spot


def render_defocus(
    image: Tensor,
    radius: Tensor,
    aperture: Aperture | None = None,
    *,
    levels: int = 8,
    highlight_gain: float = 1.0,
    colour_fringe: float = 0.0,
    callbacks: Callbacks = Callbacks(),
) -> Tensor:
    """Defocus an all-in-focus picture by its signed circles of confusion.

    The scene is cut into layers of equal radius, each blurred in linear light with its own spot and laid over the
    farther ones with its blurred coverage, so that near objects bleed over far ones but not the reverse.

    Args:
        image: [3, H, W] sRGB, 0..1.
        radius: [H, W] signed radius in pixels, positive behind the focus plane.
        levels: the largest number of layers; one takes the middle of the radii.
        highlight_gain: how much brighter than white clipped highlights are taken to be (>= 1).
        colour_fringe: by what share the spot's radius is larger in red than in green, and smaller in blue (longitudinal
            chromatic aberration); red and blue differ by twice as much.
        callbacks: may interrupt before every layer, and count layers.

    One plane of one layer is blurred at a time, so that memory does not grow with the number of layers. Returns
    [3, H, W] sRGB, 0..1.
    """
    aperture = aperture or Aperture()
    # Plane by plane, here and at the end, for what the power holds on its way.
    linear = torch.stack([srgb_to_linear(plane.clamp(0, 1)) for plane in image])
    if highlight_gain > 1:
        # Only what is nearly clipped in every channel gains energy.
        linear = linear * (1 + (highlight_gain - 1) * ((linear.amin(dim=0, keepdim=True) - 0.85) / 0.15).clamp(0, 1))
    centres = _layer_radii(radius, levels)
    margin = kernel_reach(float(radius.abs().max()) * (1 + abs(colour_fringe)), aperture)
    colour, coverage = torch.zeros_like(linear), torch.zeros_like(radius, dtype=linear.dtype)
    for i in range(len(centres)):  # from far to near
        callbacks.check()
        weight = _layer_weight(radius, centres, i)
        red, green, blue = _layer_spectra(centres[i], aperture, colour_fringe, margin, weight)
        alpha = _convolve(weight, green, margin).clamp_(0, 1)
        clear = 1 - alpha
        for below, plane, spectrum in zip(colour, linear, (red, green, blue), strict=True):
            below.mul_(clear).add_(_convolve(plane * weight, spectrum, margin))
        coverage.mul_(clear).add_(alpha)
        callbacks.report(i + 1, len(centres))
    coverage.clamp_min_(1e-4)
    for plane in colour:
        plane.copy_(linear_to_srgb(plane.div_(coverage).clamp_(0, 1)))
    return colour


def _layer_radii(radius: Tensor, levels: int) -> list[float]:
    """Centres of the layers from far to near; few distinct radii are kept as they are."""
    distinct = torch.unique(radius)
    if len(distinct) <= levels:
        return [float(r) for r in distinct.flip(0)]
    low, high = float(distinct[0]), float(distinct[-1])
    if levels == 1:
        return [(low + high) / 2]
    count = min(levels, max(2, math.ceil((high - low) / 0.75) + 1))
    return [high + (low - high) * i / (count - 1) for i in range(count)]


def _layer_weight(radius: Tensor, centres: list[float], i: int) -> Tensor:
    """[H, W], a partition of unity over `i`: every pixel is shared between the two layers next to its radius."""
    if len(centres) == 1:
        return torch.ones_like(radius)
    up = centres[i - 1] - centres[i] if i > 0 else math.inf
    down = centres[i] - centres[i + 1] if i + 1 < len(centres) else math.inf
    difference = radius - centres[i]
    return torch.where(difference >= 0, 1 - difference / up, 1 + difference / down).clamp_(0, 1)


def _layer_spectra(
    centre: float, aperture: Aperture, fringe: float, margin: int, like: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Spectra of a layer's spots in red, green and blue, for planes [H, W] as `like`; None: the layer is in focus."""
    if abs(centre) < 0.25:  # below the antialiased spot's own blur
        return None, None, None
    shape = [fft_size(n + 2 * margin) for n in like.shape]
    scales = (1 + fringe, 1.0, 1 - fringe) if fringe else (1.0,)
    spots = torch.stack([aperture_kernel(centre * scale, aperture, 2 * margin + 1) for scale in scales])
    red, green, blue = torch.fft.rfft2(spots.to(like.device), s=shape).expand(3, -1, -1)
    return red, green, blue


def _convolve(plane: Tensor, spectrum: Tensor | None, margin: int) -> Tensor:
    """Convolve [H, W] with a spot by its `spectrum`; borders are continued by replication. None: left as it is."""
    if spectrum is None:
        return plane
    height, width = plane.shape
    shape = (fft_size(height + 2 * margin), fft_size(width + 2 * margin))
    padded = F.pad(plane[None, None], (margin,) * 4, mode="replicate")[0, 0]
    product = torch.fft.rfft2(padded, s=shape).mul_(spectrum)
    start = 2 * margin
    return torch.fft.irfft2(product, s=shape)[start : start + height, start : start + width]


def transfer_function(spot: Tensor, height: int, width: int) -> Tensor:
    """Optical transfer function [h, w / 2 + 1], for `rfft2`, of a centred, point-symmetric spot [k, k], k odd.

    Real, and 1 at frequency 0 for a spot of sum 1.
    """
    half = spot.shape[-1] // 2
    plane = spot.new_zeros(height, width)
    # Pictures smaller than the spot: it wraps around, as the periodic picture does.
    rows, columns = ((torch.arange(-half, half + 1, device=spot.device)) % n for n in (height, width))
    plane.index_put_((rows[:, None], columns[None, :]), spot, accumulate=True)
    return torch.fft.rfft2(plane).real


def fft_size(n: int) -> int:
    """The next size of at least `n` whose factors are 2, 3 and 5 alone."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1
