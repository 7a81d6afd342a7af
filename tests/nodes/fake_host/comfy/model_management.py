"""Devices, memory and interrupts; the tests set the module's variables."""

from __future__ import annotations

from typing import Any

import torch

intermediates: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
load_calls: list[tuple[Any, float, bool]] = []
"""(patcher, memory_required, force_full_load) of every load."""
partial_loading = False
"""--novram: loading leaves the weights where they are."""
interrupt_after: int | None = None
"""Number of checks that still pass."""
emptied = 0
free_bytes = 8 * 2**30
freed: list[tuple[float, torch.device]] = []
"""What `free_memory` was asked for."""


class InterruptProcessingException(BaseException):
    """As in the host no Exception, so that no node swallows it."""


OOM_EXCEPTION = torch.OutOfMemoryError


def get_torch_device() -> torch.device:
    """Where models run."""
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    """Where models wait."""
    return torch.device("cpu")


def intermediate_device() -> torch.device:
    """Where results wait."""
    return intermediates["device"]


def intermediate_dtype() -> torch.dtype:
    """--fp16-intermediates changes it."""
    return intermediates["dtype"]


def load_models_gpu(models: list[Any], memory_required: float = 0, force_full_load: bool = False) -> None:
    """Load, and keep what was asked for."""
    for patcher in models:
        load_calls.append((patcher, memory_required, force_full_load))
        if not partial_loading:
            patcher.patch_model(patcher.load_device)


def get_free_memory(device: torch.device | None = None) -> float:
    """Bytes."""
    return free_bytes


def free_memory(memory_required: float, device: torch.device) -> None:
    """Unloads nothing here."""
    freed.append((memory_required, device))


def is_device_cpu(device: torch.device) -> bool:
    """Whether it is one."""
    return device.type == "cpu"


def raise_non_oom(error: Exception) -> None:
    """Raise unless memory ran out."""
    if not isinstance(error, OOM_EXCEPTION):
        raise error


def soft_empty_cache() -> None:
    """Counted."""
    global emptied
    emptied += 1


def throw_exception_if_processing_interrupted() -> None:
    """Raises once the allowed number of checks is used up."""
    global interrupt_after
    if interrupt_after is not None:
        if interrupt_after == 0:
            interrupt_after = None
            raise InterruptProcessingException
        interrupt_after -= 1
