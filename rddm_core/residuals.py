"""Several samples of a residual, [B, N, 3, H, W] in image units, in one."""

from __future__ import annotations

from torch import Tensor


def reduce_samples(residual: Tensor, method: str, index: int = 0) -> Tensor:
    """Residual [B, N, 3, H, W] -> [B, 3, H, W] by `method`: first, index, mean or median.

    Raises ValueError for an index that there is no sample for.
    """
    samples = residual.shape[1]
    if method == "mean":
        return residual.mean(dim=1)
    if method == "median":  # of an even number the mean of the middle two, which torch.median does not give
        middle = residual.sort(dim=1).values[:, (samples - 1) // 2 : samples // 2 + 1]
        return middle.mean(dim=1)
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
