"""The training objectives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion import q_sample
from ..networks.model import RDDM
from ..optics import scale_map

TYPICAL_ERROR = 0.04
"""Mean absolute error of a typical defocused crop."""


def estimator_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy with logits; targets are hand-made binary maps and rendered maps in 0..1."""
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def estimate_training_map(model: RDDM, blurred: Tensor, scale: float) -> Tensor:
    """The frozen estimator's map of crops [B, 3, H, W], as they are and as `pipeline.pre_deblur` gets it.

    It is made of a copy reduced by `scale`, because photographs are reduced for the estimator too, by varying factors.
    """
    with torch.no_grad():
        size = [max(1, round(n * scale)) for n in blurred.shape[-2:]]
        reduced = F.interpolate(blurred, size=size, mode="bilinear", antialias=True, align_corners=False)
        defocus_map = torch.sigmoid(model.estimator(reduced).float())
        whole = F.interpolate(defocus_map, size=blurred.shape[-2:], mode="bilinear", align_corners=False)
        return scale_map(whole, 1 / scale)


def sample_timesteps(count: int, timesteps: int, noise_share: float, generator: torch.Generator) -> Tensor:
    """[count] timesteps: T with probability `noise_share`, else uniform over 1..T."""
    uniform = torch.randint(1, timesteps + 1, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < noise_share, timesteps, uniform)


def sample_weights(blurred: Tensor, sharp: Tensor, floor: float) -> Tensor:
    """[B] weights that make the *relative* improvement of every sample count, which is what a gain in dB measures.

    Inverse to the mean absolute error of the blurred picture, plus `floor` so that sharp samples stay bounded, and
    about one for a typical sample. Unlike a PSNR loss they do not depend on the timestep.
    """
    error = (sharp - blurred).abs().mean(dim=(1, 2, 3))
    return (TYPICAL_ERROR + floor) / (error + floor)


def joint_loss(
    model: RDDM,
    blurred: Tensor,
    sharp: Tensor,
    defocus_map: Tensor,
    t: Tensor,
    noise: Tensor,
    alpha_bars: Tensor,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Eq. 12 in unit-scale residuals, the anchor on I_p, and Eq. 12 in the frequency domain.

    blurred, sharp [B, 3, H, W]; defocus_map [B, 1, H, W]; t [B]; noise like sharp; alpha_bars [T + 1], which may
    stay on the CPU; weights [B], or None for equal ones. Returns means over the batch: `residual` |r - f(x_t, t, c)|_1,
    `anchor` |r|_1 with r = residual_scale (I - I_p), and `spectrum`, the L1 norm of the Fourier transform of r - f. x_t
    is made from the detached residual, or p could learn to write its answer into f's noisy input.
    """
    pre_deblurred = model.pre_deblur(blurred, defocus_map)
    residual = model.residual_scale * (sharp - pre_deblurred)
    # Detached: a backward pass through the frozen backbone would slow every step, and p learns from I_p directly.
    guidance = model.guidance(pre_deblurred.detach())
    condition = model.denoiser.encode_condition(pre_deblurred, defocus_map, guidance)
    x_t = q_sample(residual.detach(), noise, alpha_bars[t.to(alpha_bars.device)][:, None, None, None])
    error = residual - model.denoiser(x_t, t, condition)
    return _means({"residual": error, "anchor": residual, "spectrum": _spectrum(error)}, weights)


def pre_deblur_loss(
    model: RDDM, blurred: Tensor, sharp: Tensor, defocus_map: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Of p alone: `residual` |I - I_p|_1 and `spectrum`; arguments as in `joint_loss`."""
    error = sharp - model.pre_deblur(blurred, defocus_map)
    return _means({"residual": error, "spectrum": _spectrum(error)}, weights)


def _spectrum(error: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.rfft2(error.float(), norm="ortho"))


def _means(parts: dict[str, Tensor], weights: Tensor | None) -> dict[str, Tensor]:
    """L1 norm of every part [B, ...] over its elements, and the mean over the batch by `weights` [B]."""
    means = {name: part.abs().flatten(1).mean(dim=1) for name, part in parts.items()}
    return {name: (mean if weights is None else weights * mean).mean() for name, mean in means.items()}
