"""Fidelity of a picture to its target, on 8-bit RGB.

Pictures are [3, H, W] in 0..1. Both are rounded to 8 bits first, because that is what is stored and looked
at. PSNR and SSIM are scikit-image's and the perceptual metrics piq's.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_PSNR = 100.0
"""What identical pictures score, so that means stay finite."""
PERCEPTUAL_SIDE = 16
"""Smallest side, in pixels, that the perceptual metrics take."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says how to install it."""


def psnr_8bit(image: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, peak 255; at most MAX_PSNR."""
    a, b = to_8bit(image, target)
    if np.array_equal(a, b):
        return MAX_PSNR
    return min(MAX_PSNR, float(_library("skimage.metrics").peak_signal_noise_ratio(b, a, data_range=255)))


def ssim(image: Tensor, target: Tensor) -> float:
    """Structural similarity of Wang et al. 2004: Gaussian window of sigma 1.5 (11x11), K1 = 0.01, K2 = 0.03,
    population covariance, mean over pixels and over the three channels. -1..1, 1 = identical.

    Raises ValueError for pictures with a side below 11 pixels.
    """
    a, b = to_8bit(image, target)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs at least 11 pixels a side, the picture has {a.shape[1]}x{a.shape[0]}")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(_library("skimage.metrics").structural_similarity(b, a, channel_axis=2, data_range=255, **options))


def mae(image: Tensor, target: Tensor) -> float:
    """Mean absolute error over all pixels and channels, in units of the full range 0..1."""
    a, b = to_8bit(image, target)
    return float(np.abs(a.astype(np.int16) - b).mean() / 255)


def haarpsi(image: Tensor, target: Tensor) -> float:
    """Haar wavelet similarity of Reisenhofer et al. 2018, in colour. 0..1, 1 = identical.

    Raises ValueError for pictures with a side below PERCEPTUAL_SIDE pixels, as do the other perceptual metrics.
    """
    return min(1.0, _perceptual("haarpsi", image, target))


def gmsd(image: Tensor, target: Tensor) -> float:
    """Gradient magnitude similarity deviation of Xue et al. 2014, on luma. 0 = identical, less is better."""
    return _perceptual("gmsd", image, target)


def mdsi(image: Tensor, target: Tensor) -> float:
    """Mean deviation similarity index of Nafchi et al. 2016, in colour. 0 = identical, less is better."""
    return _perceptual("mdsi", image, target)


def fsim(image: Tensor, target: Tensor) -> float:
    """Feature similarity of Zhang et al. 2011 with its chromatic part. 0..1, 1 = identical."""
    return _perceptual("fsim", image, target)


def gradient_energy_ratio(image: Tensor, target: Tensor) -> float:
    """Sum of the squared luma differences between neighbours, over the target's: how much detail is back.

    1 = as much as the target has, less is blurred, more is over-sharpened or noisy. Two flat pictures give 1; raises
    ValueError where only the target is flat.
    """
    energies = []
    for picture in to_8bit(image, target):
        luma = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        energies.append(float(np.square(np.diff(luma, axis=0)).sum() + np.square(np.diff(luma, axis=1)).sum()))
    if energies[0] == energies[1]:
        return 1.0
    if energies[1] == 0:
        raise ValueError("the target is of one colour: it has no gradients to compare with")
    return energies[0] / energies[1]


def colour_shift(image: Tensor, target: Tensor) -> float:
    """Mean error of the channel whose mean is farthest from the target's, in 8-bit steps, 0..255."""
    a, b = to_8bit(image, target)
    return float(np.abs(a.mean(axis=(0, 1), dtype=np.float64) - b.mean(axis=(0, 1), dtype=np.float64)).max())


def to_8bit(*pictures: Tensor) -> list[np.ndarray]:
    """[3, H, W] in 0..1 each -> uint8 [H, W, 3]; ValueError for unequal shapes, NaN and infinite values."""
    shapes = [list(p.shape) for p in pictures]
    if any(len(s) != 3 or s[0] != 3 or s != shapes[0] for s in shapes):
        raise ValueError(f"pictures must be [3, H, W] of one size, not {' and '.join(map(str, shapes))}")
    if not all(bool(torch.isfinite(p).all()) for p in pictures):
        raise ValueError("a picture holds NaN or infinite values; if it was computed in fp16, use fp32")
    bounded = [p.detach().float().cpu().clamp(0, 1) for p in pictures]
    return [(p * 255).round().byte().permute(1, 2, 0).contiguous().numpy() for p in bounded]


def require_extra(report: bool = False) -> None:
    """MissingExtraError now rather than after the first picture, or with `report` after the last one."""
    _library("skimage.metrics")
    _library("piq")
    if report:
        try:
            import_module("matplotlib")
        except ImportError as error:
            raise MissingExtraError(
                'reports need matplotlib: pip install "matplotlib>=3.8" (or the extra `eval`)'
            ) from error


def _perceptual(name: str, image: Tensor, target: Tensor) -> float:
    a, b = to_8bit(image, target)
    if min(a.shape[:2]) < PERCEPTUAL_SIDE:
        size = f"{a.shape[1]}x{a.shape[0]}"
        raise ValueError(f"{name} needs at least {PERCEPTUAL_SIDE} pixels a side, the picture has {size}")
    # Contiguous planes: piq's sums must not depend on the memory layout.
    planes = (torch.from_numpy(x).permute(2, 0, 1)[None].float().contiguous() / 255 for x in (a, b))
    return float(getattr(_library("piq"), name)(*planes, data_range=1.0))


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            'scores need scikit-image and piq: pip install "scikit-image>=0.22" "piq>=0.8" (or the extra `eval`)'
        ) from error
