"""What other nodes may send: checked values in the core's layout, or one error that names the input."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hostile_tensors import tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor


@pytest.fixture
def layout(submodule: Callable[[str], ModuleType]) -> ModuleType:
    return submodule("nodes.layout")


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.sampled_from([(2, 4, 6, 3), (2, 4, 6, 4), (2, 4, 6), (2, 2, 3, 4, 6)]).flatmap(tensors),
    kind=st.sampled_from(["picture", "mask", "plane", "residual"]),
)
def test_tensors_of_any_kind(layout: ModuleType, values: Tensor, kind: str) -> None:
    read = {
        "picture": lambda: layout.picture(values, "input")[0],
        "mask": lambda: layout.mask(values, "input", 2),
        "plane": lambda: layout.plane(values, "input", 2),
        "residual": lambda: layout.residual(values, "input"),
    }[kind]
    try:
        result = read()
    except ValueError as error:
        assert str(error).startswith("input ") and str(error).isprintable() and len(str(error)) < 300
        return
    assert result.isfinite().all() and result.numel() > 0
    if kind != "residual":
        assert result.dtype == torch.float32 and 0 <= result.min() and result.max() <= 1


def test_whole_numbers(layout: ModuleType) -> None:
    """In masks 0 and 1 are clear; a picture of 8-bit values would silently become white."""
    with pytest.raises(ValueError, match="image must hold floating-point values in 0..1, not torch.uint8"):
        layout.picture(torch.full((1, 4, 4, 3), 200, dtype=torch.uint8), "image")
    for dtype in (torch.bool, torch.uint8):
        assert layout.mask(torch.ones(1, 4, 4, dtype=dtype), "mask", 1).tolist() == [[[[1.0] * 4] * 4]]


def test_the_brightness_of_a_picture_is_the_mean_of_its_channels(layout: ModuleType) -> None:
    picture = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layout.plane(picture, "depth", 2)[:, 0], picture.mean(dim=-1))


@pytest.mark.parametrize("read", ["mask", "plane"])
def test_masks_with_a_channel(layout: ModuleType, read: str) -> None:
    """Each picture's mask stays one: rows must not become a batch."""
    values = torch.rand(2, 5, 6)
    for with_channel in (values, values[:, None], values[..., None]):
        assert torch.equal(getattr(layout, read)(with_channel, "map", 2), values[:, None])
    assert torch.equal(layout.mask(values[:1, :1, :, None], "map", 1), values[:1, :1, :, None])  # 6 by 1 pixels
    with pytest.raises(ValueError, match=r"map must be masks of one channel, not a tensor of the shape \[2, 5, 6, 2\]"):
        getattr(layout, read)(torch.rand(2, 5, 6, 2), "map", 10)
