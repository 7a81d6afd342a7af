"""Line 9 of Algorithm 1 and Eq. 15 by hand: what the picture becomes, value by value, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rddm_core.pipeline import merge_residual


def plane(value: float, batch: int = 1, height: int = 2, width: int = 3) -> Tensor:
    return torch.full((batch, 3, height, width), value)


@pytest.mark.parametrize(
    ("original", "guess", "residual", "strength", "expected"),
    [
        (0.5, 0.6, 0.1, 1.0, 0.7),
        (0.5, 0.6, 0.1, 0.5, 0.6),
        (0.5, 0.6, 0.1, 2.0, 0.9),
        (0.5, 0.4, -0.2, 1.0, 0.2),
        (0.5, 0.4, -0.2, 0.25, 0.425),
        (0.5, 0.9, 0.3, 1.0, 1.0),
        (0.5, -0.2, -0.1, 1.0, 0.0),
        (0.5, 0.9, 0.3, 0.0, 0.5),
        (0.25, 1.5, -1.0, 1.0, 0.5),
        (0.0, 0.0, 0.0, 1.0, 0.0),
        (1.0, 1.0, 0.0, 1.0, 1.0),
    ],
)
def test_by_hand(original: float, guess: float, residual: float, strength: float, expected: float) -> None:
    merged = merge_residual(plane(original), plane(guess), plane(residual), strength=strength)
    assert merged.flatten().tolist() == pytest.approx([expected] * 18, abs=1e-6)


def test_the_default_is_the_full_change() -> None:
    merged = merge_residual(plane(0.5), plane(0.6), plane(0.1))
    assert torch.equal(merged, merge_residual(plane(0.5), plane(0.6), plane(0.1), strength=1.0))
    assert float(merged.max()) == pytest.approx(0.7)


def test_where_nothing_is_applied_every_bit_stays() -> None:
    original = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1e-3
    huge = torch.full_like(original, 3e38)
    assert torch.equal(merge_residual(original, huge, huge, strength=0.0), original)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1e-6
    merged = merge_residual(original, original, plane(0.5, 1, 8, 8), mask=mask)
    assert torch.equal(merged[..., :4], original[..., :4])
    assert bool((merged[..., 4:] > original[..., 4:]).all()), "the smallest weight counts"


def test_a_mask_per_picture_or_one_for_all() -> None:
    original, guess, residual = plane(0.2, 2), plane(0.4, 2), plane(0.2, 2)
    one = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 2, 3)
    merged = merge_residual(original, guess, residual, mask=one)
    assert merged[1, 2, 1].tolist() == pytest.approx([0.2, 0.4, 0.6]) and torch.equal(merged[0], merged[1])
    merged = merge_residual(original, guess, residual, strength=0.5, mask=torch.cat([one, 1 - one]))
    assert merged[0, 0, 0].tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert merged[1, 0, 0].tolist() == pytest.approx([0.4, 0.3, 0.2])


def test_a_mask_of_another_size_is_resized() -> None:
    mask = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    fitted = F.interpolate(mask, size=(8, 9), mode="bilinear", antialias=True, align_corners=False)
    pictures = [plane(value, 1, 8, 9) for value in (0.2, 0.4, 0.2)]
    assert torch.equal(merge_residual(*pictures, mask=mask), merge_residual(*pictures, mask=fitted))


def test_results_are_single_precision_and_inputs_stay() -> None:
    assert merge_residual(plane(0.5), plane(0.6), plane(0.1).double()).dtype == torch.float32
    inputs = [plane(0.5).half(), plane(0.6).double(), plane(0.1).bfloat16()]
    copies = [x.clone() for x in inputs]
    merged = merge_residual(*inputs)
    assert merged.dtype == torch.float32 and float(merged.max()) == pytest.approx(0.7, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"original": plane(1.01)}, r"original must lie in 0\.\.1"),
        ({"original": plane(-0.01)}, r"original must lie in 0\.\.1"),
        ({"original": torch.zeros(3, 2, 3)}, r"^original must be a tensor \[B, 3, H, W\]"),
        ({"pre_deblurred": plane(math.nan)}, "^pre_deblurred holds NaN"),
        ({"residual": plane(math.inf)}, "^residual holds NaN or infinite"),
        ({"pre_deblurred": torch.zeros(1, 1, 2, 3)}, "^pre_deblurred must be a tensor"),
        ({"residual": torch.zeros(1, 2, 2, 3)}, "^residual must be a tensor"),
        (
            {"pre_deblurred": plane(0.0, 1, 2, 4)},
            r"^pre_deblurred is \[1, 3, 2, 4\], but the original is \[1, 3, 2, 3\]",
        ),
        ({"residual": plane(0.0, 2)}, r"^residual is \[2, 3, 2, 3\], but the original is \[1, 3, 2, 3\]"),
        ({"strength": -0.1}, "^strength must be a finite number >= 0"),
        ({"strength": math.nan}, "^strength must be a finite number"),
        ({"mask": torch.full((1, 1, 2, 3), 1.5)}, r"^mask must lie in 0\.\.1"),
        ({"mask": torch.zeros(2, 1, 2, 3)}, "^mask must be a tensor"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    inputs = {"original": plane(0.5), "pre_deblurred": plane(5.0), "residual": plane(-5.0)}
    merge_residual(**inputs)  # only the original is bounded
    with pytest.raises(ValueError, match=message):
        merge_residual(**{**inputs, **changed})
