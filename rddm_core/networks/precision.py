"""Numerical precision: what must be computed in fp32 whatever the caller asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def is_vector(x: Tensor) -> bool:
    """Whether x has one number per channel, in whatever shape: biases, norms, and the blocks' beta and gamma."""
    return x.numel() == max(x.shape, default=1)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off. On a device that knows none, as MPS before torch 2.5, even that would be an error."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
