"""What the checks of pictures and maps stand on."""

from __future__ import annotations

import math

import pytest
import torch

from rddm_core.checks import value_range


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 5, 7), (2, 3, 5, 7), (2, 2, 3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_value_range(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.view(-1)[-1], x.view(-1)[0] = 0, 101
    assert value_range(x) == (0, 101) == value_range(x.movedim(-1, 0))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize(("bad", "expected"), [(torch.nan, (math.nan, math.nan)), (-torch.inf, (-math.inf, 1))])
def test_value_range_tells_what_is_not_finite(where: int, bad: float, expected: tuple[float, float]) -> None:
    x = torch.ones(2, 3, 4, 5, requires_grad=True).clone()
    x[where, 1, 2, 3] = bad
    assert value_range(x) == pytest.approx(expected, nan_ok=True)
