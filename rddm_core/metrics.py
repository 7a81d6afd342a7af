"""Fidelity of a picture to its target, on 8-bit RGB.

Pictures are [3, H, W] in 0..1. Both are rounded to 8 bits first, because that is what is stored and looked
at. PSNR and SSIM are scikit-image's, which comes with the extra `eval`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_PSNR = 100.0
"""What identical pictures score, so that means stay finite."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says how to install it."""


def psnr_8bit(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, peak 255; at most MAX_PSNR."""
    a, b = to_8bit(image, target)
    if np.array_equal(a, b):
        return MAX_PSNR
    return min(MAX_PSNR, float(_skimage_metrics().peak_signal_noise_ratio(b, a, data_range=255)))


def ssim(image: Tensor, target: Tensor) -> float:
    """Structural similarity of Wang et al. 2004: Gaussian window of sigma 1.5 (11x11), K1 = 0.01, K2 = 0.03,
    population covariance, mean over pixels and over the three channels. -1..1, 1 = identical.

    Raises ValueError for pictures with a side below 11 pixels.
    """
    a, b = to_8bit(image, target)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs at least 11 pixels a side, the picture has {a.shape[1]}x{a.shape[0]}")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(_skimage_metrics().structural_similarity(b, a, channel_axis=2, data_range=255, **options))


def mae(image: Tensor, target: Tensor) -> float:
    """Mean absolute error over all pixels and channels, in units of the full range 0..1."""
    a, b = to_8bit(image, target)
    return float(np.abs(a.astype(np.int16) - b).mean() / 255)


def to_8bit(*pictures: Tensor) -> list[np.ndarray]:
    """[3, H, W] in 0..1 each -> uint8 [H, W, 3]; ValueError for unequal shapes, NaN and infinite values."""
    shapes = [list(p.shape) for p in pictures]
    if any(len(s) != 3 or s[0] != 3 or s != shapes[0] for s in shapes):
        raise ValueError(f"pictures must be [3, H, W] of one size, not {' and '.join(map(str, shapes))}")
    if not all(bool(torch.isfinite(p).all()) for p in pictures):
        raise ValueError("a picture holds NaN or infinite values; if it was computed in fp16, use fp32")
    bounded = [p.detach().float().cpu().clamp(0, 1) for p in pictures]
    return [(p * 255).round().byte().permute(1, 2, 0).contiguous().numpy() for p in bounded]


def require_extra() -> None:
    """MissingExtraError now rather than after the first picture."""
    _skimage_metrics()


def _skimage_metrics() -> Any:
    try:
        return import_module("skimage.metrics")
    except ImportError as error:
        raise MissingExtraError(
            "PSNR and SSIM need scikit-image: pip install 'scikit-image>=0.22' (or the extra `eval`)"
        ) from error
