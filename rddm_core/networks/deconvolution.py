"""A bank of Wiener deconvolutions: what the picture would be if it had been blurred by one disc or another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..optics import Aperture, aperture_kernel, fft_size, transfer_function
from .precision import without_autocast

CONTEXT = 32
"""Pixels that the bank sees around a picture: behind them, what the filters make of the border has died away."""
RAMP = 8
"""Least number of pixels that are added for the FFT, which takes its input as periodic; over them one border turns into
the opposite one."""
NOISE_TO_SIGNAL = 0.05
"""Regularisation K of the Wiener filter H* / (|H|^2 + K)."""
KEPT_SIZES = 2
"""Sizes whose filters are kept: that of the tiles, and the same turned."""
KEPT_BYTES = 32e6
"""What the filters of one size may take to be kept: 27 MB for the six of `lite` and the largest automatic tile."""

Filters = dict[tuple[tuple[float, ...], tuple[int, int]], list[Tensor]]
"""Inverse filters by radii and size, the last KEPT_SIZES of them; whoever calls `wiener_bank` again owns it."""


def surrounded(image: Tensor) -> Tensor:
    """A picture [B, C, H, W] with CONTEXT pixels more on every side, its border replicated."""
    return F.pad(image, (CONTEXT,) * 4, mode="replicate")


def wiener_bank(image: Tensor, radii: tuple[float, ...], kept: Filters | None = None) -> Tensor:
    """Change of the luma by a Wiener filter (Wiener 1949) for a disc of each radius.

    A convolutional network has to learn inverse filters tap by tap; here it only has to choose, pixel by pixel, the
    one whose result rings least.

    image [B, 3, H + 2 CONTEXT, W + 2 CONTEXT], about 0..1 (`surrounded`, or cut from a larger picture), radii in pixels
    -> [B, len(radii), H, W] fp32, limited to -1..1. `kept` is filled with filters for the next call: tiles share their
    size, and to make the filters costs as much as to apply them.
    """
    with without_autocast(image.device):
        luma = image.float().mean(dim=1, keepdim=True)
        height, width = luma.shape[-2:]
        padded = _periodic(_periodic(luma, fft_size(width + RAMP)).mT, fft_size(height + RAMP)).mT
        size = (padded.shape[-2], padded.shape[-1])
        spectrum = torch.fft.rfft2(padded)
        rows, columns = slice(CONTEXT, height - CONTEXT), slice(CONTEXT, width - CONTEXT)
        bank = luma.new_empty(len(luma), len(radii), height - 2 * CONTEXT, width - 2 * CONTEXT)
        # One after the other: complex planes are large.
        for i, inverse in enumerate(_inverse_filters(radii, size, {} if kept is None else kept)):
            change = torch.fft.irfft2(spectrum * inverse.to(luma.device), s=size)
            bank[:, i] = change[:, 0, rows, columns].clamp(-1, 1)
        return bank


def _periodic(x: Tensor, length: int) -> Tensor:
    """Lengthen the last axis to `length`, the added part leading from the last value back to the first."""
    added = length - x.shape[-1]
    ramp = torch.arange(1, added + 1, device=x.device) / (added + 1)
    return torch.cat((x, torch.lerp(x[..., -1:], x[..., :1], ramp)), dim=-1)


def _inverse_filters(radii: tuple[float, ...], size: tuple[int, int], kept: Filters) -> Iterable[Tensor]:
    """`_inverse_filter` of each radius: from `kept`, put there, or, where they are large, made one after the other."""
    key, made = (radii, size), (_inverse_filter(radius, size) for radius in radii)
    if key in kept:
        return kept[key]
    if 4 * size[0] * (size[1] // 2 + 1) * len(radii) > KEPT_BYTES:
        return made
    while len(kept) >= KEPT_SIZES:
        kept.pop(next(iter(kept)), None)
    kept[key] = filters = list(made)
    return filters


@torch.inference_mode(False)  # training may use them too
def _inverse_filter(radius: float, size: tuple[int, int]) -> Tensor:
    """H* / (|H|^2 + K), normalised to leave the mean as it is, minus one: [h, w // 2 + 1] for `rfft2`."""
    transfer = transfer_function(aperture_kernel(radius, Aperture(), 2 * int(radius + 2) + 1), *size)
    return (1 + NOISE_TO_SIGNAL) * transfer / (transfer.square() + NOISE_TO_SIGNAL) - 1
