"""What the functions of the package ask of pictures and maps, with messages that name the cause and the cure."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_picture(image: object, name: str, bounded: bool = True) -> None:
    """ValueError unless `image` is a tensor [B, 3, H, W] of finite floating-point values, in 0..1 if `bounded`."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[1] != 3 or image.numel() == 0:
        raise ValueError(f"{name} must be a tensor [B, 3, H, W] of at least one pixel, not {_describe(image)}")
    _check_values(image, name, bounded)


def check_map(x: object, batch: int, name: str) -> None:
    """ValueError unless `x` is a tensor [B or 1, 1, h, w] of floating-point values in 0..1, for `batch` pictures."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 1 or len(x) not in (1, batch) or x.numel() == 0:
        raise ValueError(f"{name} must be a tensor [B, 1, h, w] with B = {batch} or 1, not {_describe(x)}")
    _check_values(x, name, bounded=True)


def value_range(x: Tensor) -> tuple[float, float]:
    """The least and the largest value; NaN both where any value is.

    Of a batch one item after the other: torch copies first what does not lie in rows, and a film is large.
    """
    items = x.detach().unbind() if x.ndim > 3 else (x.detach(),)
    lows, highs = zip(*(item.aminmax() for item in items), strict=True)
    return float(torch.stack(lows).min()), float(torch.stack(highs).max())


def _check_values(x: Tensor, name: str, bounded: bool) -> None:
    if not x.is_floating_point() or x.dtype.itemsize < 2 or x.layout != torch.strided:
        what = f"{x.dtype}" if x.layout == torch.strided else f"{x.layout}"
        raise ValueError(f"{name} must be floating point of 16 bits or more, not {what}: divide 8-bit values by 255.0")
    low, high = value_range(x)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values: replace them, e.g. with torch.nan_to_num")
    if bounded and not (low >= 0 and high <= 1):
        raise ValueError(f"{name} must lie in 0..1, not {low:.4g}..{high:.4g}: scale it, then clamp(0, 1)")


def _describe(x: object) -> str:
    return str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__
