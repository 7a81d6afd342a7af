"""Several samples in one, and how far they differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rddm_core.residuals import reduce_samples, sample_spread


def samples(*values: float) -> Tensor:
    """[2, N, 3, 2, 2]: one value for each sample, the second picture's are larger by 1."""
    values_of = torch.tensor(values).reshape(1, -1, 1, 1, 1).expand(1, -1, 3, 2, 2)
    return torch.cat((values_of, values_of + 1))


@pytest.mark.parametrize(
    ("values", "method", "index", "expected"),
    [
        ((3.0, 1.0, 8.0), "first", 2, 3.0),
        ((3.0, 1.0, 8.0), "index", 2, 8.0),
        ((3.0, 1.0, 8.0), "mean", 0, 4.0),
        ((3.0, 1.0, 8.0), "median", 0, 3.0),
        ((3.0, 1.0, 8.0, 4.0), "median", 0, 3.5),
        ((5.0,), "median", 0, 5.0),
    ],
)
def test_reduction(values: tuple[float, ...], method: str, index: int, expected: float) -> None:
    reduced = reduce_samples(samples(*values), method, index)
    assert torch.equal(reduced[0], torch.full((3, 2, 2), expected))
    assert torch.equal(reduced[1], torch.full((3, 2, 2), expected + 1))


def test_median_is_taken_for_each_value() -> None:
    residual = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 1.0]]).reshape(1, 3, 1, 1, 2).expand(1, 3, 3, 1, 2)
    assert torch.equal(reduce_samples(residual, "median")[0, 0, 0], torch.tensor([2.0, 8.0]))


def test_an_index_without_a_sample() -> None:
    with pytest.raises(ValueError, match="only 2 samples, counted from 0; raise samples"):
        reduce_samples(samples(1, 2), "index", 2)


def test_spread_is_the_standard_deviation() -> None:
    spread = sample_spread(samples(1, 2, 3))
    assert spread.shape == (2, 1, 2, 2) and torch.allclose(spread, torch.ones(2, 1, 2, 2))
    assert not sample_spread(samples(4, 4)).any()


def test_spread_of_colours_is_their_root_mean_square() -> None:
    residual = torch.zeros(1, 2, 3, 1, 1)
    residual[0, 1, 0] = 6.0  # variance 18 in red, 0 elsewhere
    assert torch.allclose(sample_spread(residual), torch.tensor(6.0).sqrt())


def test_one_sample_says_nothing_about_spread() -> None:
    with pytest.raises(ValueError, match="raise samples in RDDM Sampler"):
        sample_spread(samples(1))
