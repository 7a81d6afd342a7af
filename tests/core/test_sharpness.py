"""Sharpness without a reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from live_tensors import Peak
from torch import Tensor

from rddm_core import sharpness
from rddm_core.classical import gaussian_blur
from rddm_core.sharpness import laplacian_variance, tenengrad

Measure = Callable[[Tensor], float]
both = pytest.mark.parametrize("measure", [laplacian_variance, tenengrad])


def grey(values: Tensor) -> Tensor:
    return values.expand(3, -1, -1)


@both
def test_an_even_surface_has_none(measure: Measure) -> None:
    assert measure(torch.full((3, 5, 7), 0.5)) == pytest.approx(0, abs=1e-9)
    assert measure(torch.rand(3, 1, 1)) == pytest.approx(0, abs=1e-9)


@both
def test_it_falls_with_blur_and_does_not_depend_on_orientation(measure: Measure) -> None:
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    blurred = [measure(gaussian_blur(image[None], sigma)[0]) for sigma in (0.5, 1.0, 2.0)]
    assert measure(image) > blurred[0] > blurred[1] > blurred[2] > 0
    assert measure(image.mT) == pytest.approx(measure(image)) == pytest.approx(measure(image.flip(-1)))


@both
def test_strips_measure_what_the_whole_picture_measures(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(3, 41, 30, generator=torch.Generator().manual_seed(0))
    whole = measure(image)
    for rows in (1, 2, 40, 41):
        monkeypatch.setattr(sharpness, "STRIP_ROWS", rows)
        assert measure(image) == pytest.approx(whole, rel=1e-9)


@both
def test_a_larger_picture_takes_no_more_memory(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpness, "STRIP_ROWS", 8)
    peaks = []
    for height in (80, 400):
        image = torch.rand(3, height, 30)
        with Peak([image]) as peak:
            measure(image)
        peaks.append(peak.peak)
    assert peaks[0] == peaks[1]


def test_values_by_hand() -> None:
    step = torch.zeros(2, 4)
    step[:, 2:] = 1  # 255 steps of 8 bits, seen by the two columns beside it
    # Sobel: 4 * 255 in 2 of 4 columns. Laplacian: +255 and -255 there, 0 elsewhere.
    assert tenengrad(grey(step)) == pytest.approx((4 * 255) ** 2 / 2)
    assert laplacian_variance(grey(step)) == pytest.approx(255**2 / 2)


def test_luma_counts_green_most() -> None:
    step = torch.zeros(3, 3, 8, 8)
    for channel in range(3):
        step[channel, channel, :, 4:] = 1
    red, green, blue = (tenengrad(picture) for picture in step)
    assert green > red > blue and green / red == pytest.approx((0.587 / 0.299) ** 2)


@both
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 4), "must be a tensor \\[3, H, W\\]"),
        (torch.zeros(3, 0, 4), "of at least one pixel"),
        (torch.full((3, 4, 4), torch.nan), "NaN or infinite"),
        (torch.full((3, 4, 4), torch.inf), "NaN or infinite"),
    ],
)
def test_what_is_no_picture(measure: Measure, image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(image)
