"""How sharp a picture is, without another one to compare it with.

Such figures tell two versions of one photograph apart, not two photographs: they grow with the detail of the subject,
and with noise and over-sharpening as well. Pictures are [3, H, W] in 0..1, measured on their luma in 8-bit steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def laplacian_variance(image: Tensor) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000), >= 0; 0 for an even surface.

    Raises ValueError for what is no picture, for NaN and infinite values.
    """
    return float(_filtered(image, LAPLACIAN).var(correction=0))


def tenengrad(image: Tensor) -> float:
    """Mean squared gradient by Sobel's operator (Krotkov 1988), >= 0; less sensitive to noise than the Laplacian.

    Raises ValueError as `laplacian_variance` does.
    """
    along_x, along_y = _filtered(image, SOBEL), _filtered(image.mT, SOBEL)
    return float(along_x.square().mean() + along_y.square().mean())


def _filtered(image: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    """[H, W] float64: the luma filtered, borders replicated."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image must be a tensor [3, H, W] of at least one pixel, not {list(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image holds NaN or infinite values; if it was computed in fp16, use fp32")
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    picture = image.cpu().double().clamp(0, 1)  # not every device has float64
    luma = 255 * (picture * weights[:, None, None]).sum(dim=0)
    padded = F.pad(luma[None, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, torch.tensor(kernel, dtype=luma.dtype)[None, None])[0, 0]
