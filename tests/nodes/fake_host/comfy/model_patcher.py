"""The wrapper that the host's model management holds models in."""

from __future__ import annotations

import torch
from torch import nn


class ModelPatcher:
    """Keeps a model on one of two devices."""

    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.loaded = 0

    def model_size(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    def loaded_size(self) -> int:
        """Bytes of the weights on the load device."""
        return self.loaded

    def patch_model(self, device_to: torch.device) -> nn.Module:
        """Load completely."""
        self.loaded = self.model_size()
        return self.model.to(device_to)
