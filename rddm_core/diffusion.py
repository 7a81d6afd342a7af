"""Noise schedule, forward process, DDPM posterior and DDIM step for x_0-prediction, as pure functions.

Indices run over t = 0..T with abar_0 = 1. Where the paper prints a formula wrongly the right form stands here;
tests/core/test_diffusion.py shows that the printed ones break the identities.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .config import DiffusionConfig

Schedule = Literal["uniform", "quadratic"]


def make_alpha_bars(config: DiffusionConfig) -> Tensor:
    """abar_t = prod_{i<=t} alpha_i for t = 0..T (Eq. 3), float64 [T + 1], never increasing, abar_0 = 1.

    `cosine` (Nichol and Dhariwal 2021, without offset): abar_t = cos^2(pi t / 2T). `linear`: alpha_t = 1 - beta_t,
    beta from `beta_start` to `beta_end`. Both are kept above zero so that log-SNR stays finite: where a very long
    schedule reaches that floor its last entries are equal, and a step between them changes nothing.
    """
    if config.schedule == "cosine":
        t = torch.arange(config.timesteps + 1, dtype=torch.float64) / config.timesteps
        return torch.cos(t * (math.pi / 2)).square().clamp_min(1e-9)
    beta = torch.linspace(config.beta_start, config.beta_end, config.timesteps, dtype=torch.float64)
    bars = torch.cumprod(1 - beta, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.cat((torch.ones(1, dtype=torch.float64), bars))


def sampling_timesteps(timesteps: int, steps: int, schedule: Schedule = "uniform") -> list[tuple[int, int]]:
    """The pairs (t, s) of Algorithm 1's loop: a trailing sub-sequence that starts at T and ends at s = 0.

    Spaced evenly, or quadratically (both of Song et al. 2021, appendix D.2), which puts more of them near 0.
    Raises ValueError unless 1 <= steps <= T, and for an unknown schedule.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be between 1 and {timesteps}, not {steps}")
    if schedule not in ("uniform", "quadratic"):
        raise ValueError(f"schedule must be 'uniform' or 'quadratic', not {schedule!r}")
    power = 2 if schedule == "quadratic" else 1
    points = [round(timesteps * ((steps - i) / steps) ** power) for i in range(steps + 1)]
    for i in reversed(range(steps)):  # many quadratic steps round to the same t
        points[i] = max(points[i], points[i + 1] + 1)
    return list(zip(points, points[1:], strict=False))


def q_sample(x_0: Tensor, noise: Tensor, alpha_bar_t: Tensor | float) -> Tensor:
    """Forward process, Eq. 3: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. `alpha_bar_t` broadcasts to x_0.

    It may lie on the CPU in float64, wherever x_0 is: the factors are made there and go to x_0 in its own precision,
    since not every device has float64.
    """
    abar = alpha_bar_t if isinstance(alpha_bar_t, Tensor) else torch.tensor(alpha_bar_t, dtype=torch.float64)
    signal, share = (factor.sqrt().to(x_0.dtype).to(x_0.device) for factor in (abar, 1 - abar))
    return signal * x_0 + share * noise


def ddpm_posterior(alpha_bar_t: float, alpha_bar_s: float) -> tuple[float, float, float]:
    """q(x_s | x_t, x_0) = N(m x_t + k x_0, sigma^2), Eq. 4 with s = t - 1; returns (m, k, sigma).

    alpha_t = abar_t / abar_s; variance (1 - alpha_t)(1 - abar_s) / (1 - abar_t).
    """
    alpha_t = alpha_bar_t / alpha_bar_s
    m = math.sqrt(alpha_t) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    k = math.sqrt(alpha_bar_s) * (1 - alpha_t) / (1 - alpha_bar_t)
    return m, k, math.sqrt((1 - alpha_t) * (1 - alpha_bar_s) / (1 - alpha_bar_t))


def ddim_coefficients(alpha_bar_t: float, alpha_bar_s: float, eta: float = 0.0) -> tuple[float, float, float]:
    """(m, k, sigma) of x_s = m x_t + k x_0 + sigma z (Eq. 6), the solution of Eq. 8.

    sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)
    m     = sqrt((1 - abar_s - sigma^2) / (1 - abar_t))       from  m^2 (1 - abar_t) + sigma^2 = 1 - abar_s
    k     = sqrt(abar_s) - m sqrt(abar_t)                     from  sqrt(abar_s) = m sqrt(abar_t) + k
    """
    sigma = eta * math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) * math.sqrt(1 - alpha_bar_t / alpha_bar_s)
    m = math.sqrt(max(1 - alpha_bar_s - sigma**2, 0.0) / (1 - alpha_bar_t))
    k = math.sqrt(alpha_bar_s) - m * math.sqrt(alpha_bar_t)
    return m, k, sigma


def ddim_step(
    x_t: Tensor, x_0: Tensor, alpha_bar_t: float, alpha_bar_s: float, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """One reverse step t -> s of Algorithm 1, line 6. At s = 0 (abar = 1) the result is x_0 itself.

    `noise` z is needed where eta > 0 and s > 0; ValueError without it.
    """
    m, k, sigma = ddim_coefficients(alpha_bar_t, alpha_bar_s, eta)
    x_s = m * x_t + k * x_0
    if sigma == 0.0:
        return x_s
    if noise is None:
        raise ValueError("a step with eta > 0 needs noise")
    return x_s + sigma * noise
