"""The eight orientations of a picture: flips and quarter turns."""

from __future__ import annotations

import torch
from torch import Tensor

COUNT = 8
SAMPLE_ORDER = (0, 6, 4, 2, 1, 7, 5, 3)
"""In which orientations samples look at a picture: as it is, its mirror images and half turn, then the quarter turns.
"""


def turned(x: Tensor, k: int) -> Tensor:
    """x [.., H, W] by k % 4 quarter turns, from k = 4 on mirrored as well; k in 0..7, and 0 changes nothing."""
    x = torch.rot90(x, k % 4, (-2, -1)) if k % 4 else x
    return x.flip(-1) if k >= 4 else x


def turned_back(x: Tensor, k: int) -> Tensor:
    """The inverse of `turned`."""
    x = x.flip(-1) if k >= 4 else x
    return torch.rot90(x, -(k % 4), (-2, -1)) if k % 4 else x


def orientation_of_sample(n: int) -> int:
    """The k in which sample n looks at the picture; every eighth sees the same."""
    return SAMPLE_ORDER[n % COUNT]
