"""How strongly a real pair is blurred, told from the pair itself and not from a network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..optics import render_defocus

RADII = (0.0, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3)
"""Candidates, in pixels, sqrt(2) apart: finer steps cannot be told apart where blur varies."""
CELL = 32


def fitted_radius(blurred: Tensor, target: Tensor) -> float:
    """Mean radius in pixels of the discs that explain a pair [3, H, W] best, cell by cell of CELL pixels.

    Each cell takes the candidate of RADII with which the target, made out of focus as a whole, comes nearest to the
    blurred picture. Cells count by the squared gradient of the target, because flat ones cannot tell.
    """
    errors = torch.stack(
        [_cells((render_defocus(target, torch.full(target.shape[-2:], r)) - blurred).square().mean(0)) for r in RADII]
    )
    luma = target.mean(dim=0)
    texture = F.pad(luma.diff(dim=0).square(), (0, 0, 0, 1)) + F.pad(luma.diff(dim=1).square(), (0, 1))
    weights = _cells(texture)
    radii = torch.tensor(RADII)[errors.argmin(dim=0)]
    return float((radii * weights).sum() / weights.sum().clamp_min(1e-12))


def _cells(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[None], CELL, ceil_mode=True, count_include_pad=False)[0]
