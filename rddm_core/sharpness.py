"""How sharp a picture is, without another one to compare it with.

Such figures tell two versions of one photograph apart, not two photographs: they grow with the detail of the subject,
and with noise and over-sharpening as well. Pictures are [3, H, W] in 0..1, measured on their luma in 8-bit steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import value_range

STRIP_ROWS = 256
"""Rows that are measured at a time: in float64, a large photograph would take gigabytes."""


def laplacian_variance(image: Tensor) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000), >= 0; 0 for an even surface.

    Raises ValueError for what is no picture, for NaN and infinite values.
    """
    total = squares = 0.0
    for luma in _luma_strips(image):
        beside = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
        laplacian = beside - 4 * luma[1:-1, 1:-1]
        total += float(laplacian.sum())
        squares += float(laplacian.square().sum())
    pixels = image[0].numel()
    return max(0.0, squares / pixels - (total / pixels) ** 2)


def tenengrad(image: Tensor) -> float:
    """Mean squared gradient by Sobel's operator (Krotkov 1988), >= 0; less sensitive to noise than the Laplacian.

    Raises ValueError as `laplacian_variance` does.
    """
    squares = 0.0
    for luma in _luma_strips(image):
        down, across = (x[:-2] + 2 * x[1:-1] + x[2:] for x in (luma, luma.mT))
        squares += float((down[:, 2:] - down[:, :-2]).square().sum())
        squares += float((across[:, 2:] - across[:, :-2]).square().sum())
    return squares / image[0].numel()


def _luma_strips(image: Tensor) -> Iterator[Tensor]:
    """[h + 2, W + 2] float64: each strip with one pixel of what lies around it; the borders are replicated."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image must be a tensor [3, H, W] of at least one pixel, not {list(image.shape)}")
    if not all(math.isfinite(value) for value in value_range(image)):
        raise ValueError("image holds NaN or infinite values; if it was computed in fp16, use fp32")
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    height = image.shape[1]
    for top in range(0, height, STRIP_ROWS):
        bottom = min(height, top + STRIP_ROWS)
        rows = image[:, max(0, top - 1) : bottom + 1].cpu().double().clamp(0, 1)  # not every device has float64
        luma = 255 * (rows * weights).sum(dim=0)
        edges = (1, 1, int(top == 0), int(bottom == height))
        yield F.pad(luma[None, None], edges, mode="replicate")[0, 0]
