"""The eight orientations of a picture."""

from __future__ import annotations

import pytest
import torch

from rddm_core.orientation import COUNT, orientation_of_sample, turned, turned_back

PICTURE = torch.arange(24.0).reshape(1, 2, 3, 4)


@pytest.mark.parametrize("k", range(COUNT))
def test_turning_back_undoes_it(k: int) -> None:
    assert torch.equal(turned_back(turned(PICTURE, k), k), PICTURE)
    assert turned(PICTURE, k).shape[-2:] == ((3, 4) if k % 2 == 0 else (4, 3))


def test_all_eight_differ() -> None:
    square = PICTURE[..., :3]
    assert len({tuple(turned(square, k).flatten().tolist()) for k in range(COUNT)}) == COUNT
    assert turned(PICTURE, 0) is PICTURE


def test_samples_see_all_of_them_in_turn() -> None:
    assert orientation_of_sample(0) == 0
    assert sorted(orientation_of_sample(n) for n in range(COUNT)) == list(range(COUNT))
    assert [orientation_of_sample(n) for n in range(COUNT, 2 * COUNT)] == [
        orientation_of_sample(n) for n in range(COUNT)
    ]


def test_mirrors_and_the_half_turn_come_first() -> None:
    """No picture is turned on its side before the fifth sample, and every version draws the same samples."""
    assert [orientation_of_sample(n) for n in range(COUNT)] == [0, 6, 4, 2, 1, 7, 5, 3]
