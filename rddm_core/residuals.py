"""Several samples of a residual, [B, N, 3, H, W] in image units, in one."""

from __future__ import annotations

import torch
from torch import Tensor

MEDIAN_ROWS = 64
"""Rows that are sorted at a time: sorting takes three times the memory of what is sorted."""


def reduce_samples(residual: Tensor, method: str, index: int = 0) -> Tensor:
    """Residual [B, N, 3, H, W] -> [B, 3, H, W] by `method`: first, index, mean or median.

    Raises ValueError for an index that there is no sample for.
    """
    samples = residual.shape[1]
    if method == "mean":
        return residual.mean(dim=1)
    if method == "median":
        medians = torch.empty_like(residual[:, 0])
        for picture, result in zip(residual, medians, strict=True):
            for top in range(0, picture.shape[-2], MEDIAN_ROWS):
                rows = slice(top, top + MEDIAN_ROWS)
                # Of an even number the mean of the middle two, which torch.median does not give.
                middle = picture[..., rows, :].sort(dim=0).values[(samples - 1) // 2 : samples // 2 + 1]
                result[:, rows] = middle.mean(dim=0)
        return medians
    chosen = index if method == "index" else 0
    if chosen >= samples:
        raise ValueError(
            f"index {chosen}: there are only {samples} samples, counted from 0; raise samples in RDDM Sampler"
        )
    return residual[:, chosen]


def sample_spread(residual: Tensor) -> Tensor:
    """How far the samples differ: [B, N, 3, H, W] -> standard deviation [B, 1, H, W] in image units.

    Estimated from N samples (divided by N - 1), as root mean square over the colours. Raises ValueError for N = 1,
    which says nothing about spread.
    """
    if residual.shape[1] < 2:
        raise ValueError("uncertainty shows in how samples differ, but there is only 1: raise samples in RDDM Sampler")
    return residual.float().var(dim=1).mean(dim=1, keepdim=True).sqrt()
