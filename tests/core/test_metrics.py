"""Metrics against their definitions."""

from __future__ import annotations

import math
import sys

import piq
import pytest
import torch

from rddm_core.metrics import (
    MAX_PSNR,
    MissingExtraError,
    colour_shift,
    fsim,
    gmsd,
    gradient_energy_ratio,
    haarpsi,
    mae,
    mdsi,
    psnr_8bit,
    require_extra,
    ssim,
)


def test_psnr_of_a_known_error() -> None:
    target = torch.full((3, 4, 4), 100 / 255)
    assert psnr_8bit(target + 10 / 255, target) == pytest.approx(20 * math.log10(255 / 10))


def test_pictures_are_rounded_to_8_bits_first() -> None:
    target = torch.full((3, 12, 12), 100 / 255)
    almost = target + 0.4 / 255
    assert psnr_8bit(almost, target) == MAX_PSNR and mae(almost, target) == 0 and ssim(almost, target) == 1
    assert mae(target + 0.6 / 255, target) == pytest.approx(1 / 255)


def test_values_outside_the_range_count_as_clipped() -> None:
    white = torch.ones(3, 12, 12)
    assert psnr_8bit(white * 1.5, white) == MAX_PSNR


def test_mae_is_over_all_pixels_and_channels() -> None:
    target = torch.zeros(3, 2, 2)
    image = target.clone()
    image[1, 0, 1] = 1
    assert mae(image, target) == mae(target, image) == pytest.approx(1 / 12)


def test_ssim_agrees_with_another_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(3, 40, 37, generator=generator) * 255).round() / 255
    image = ((target + 0.1 * torch.randn(3, 40, 37, generator=generator)).clamp(0, 1) * 255).round() / 255
    expected = piq.ssim(image[None].double(), target[None].double(), data_range=1.0, downsample=False)
    assert ssim(image, target) == pytest.approx(float(expected), abs=1e-4)
    assert 0.3 < ssim(image, target) < 0.99


@pytest.mark.parametrize(
    "metric", [psnr_8bit, ssim, mae, haarpsi, gmsd, mdsi, fsim, gradient_energy_ratio, colour_shift]
)
def test_pictures_must_fit(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"\[3, 20, 20\] and \[3, 20, 21\]"):
        metric(torch.rand(3, 20, 20), torch.rand(3, 20, 21))
    with pytest.raises(ValueError, match="must be"):
        metric(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20))
    with pytest.raises(ValueError, match="NaN"):
        metric(torch.full((3, 20, 20), torch.nan), torch.rand(3, 20, 20))


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="11 pixels a side, the picture has 30x10"):
        ssim(torch.rand(3, 10, 30), torch.rand(3, 10, 30))


@pytest.mark.parametrize(("metric", "best"), [(haarpsi, 1), (gmsd, 0), (mdsi, 0), (fsim, 1)])
def test_perceptual_metrics_rank_stronger_blur_as_worse(metric, best: float) -> None:  # type: ignore[no-untyped-def]
    target = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0))
    blurred = [torch.nn.functional.avg_pool2d(target, n, stride=1, padding=n // 2) for n in (3, 7)]
    scores = [metric(picture, target) for picture in (target, *blurred)]
    assert scores[0] == pytest.approx(best, abs=1e-5)
    assert scores == sorted(scores, reverse=best == 1) and abs(scores[2] - scores[1]) > 1e-3


@pytest.mark.parametrize("metric", [haarpsi, gmsd, mdsi, fsim])
def test_perceptual_metrics_need_some_pixels(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="16 pixels a side, the picture has 30x15"):
        metric(torch.rand(3, 15, 30), torch.rand(3, 15, 30))


def test_gradient_energy_of_a_known_contrast() -> None:
    stripes = (torch.arange(20) % 2).float().expand(3, 20, 20)
    half = 0.5 + (stripes - 0.5) * 0.4  # 0.3 and 0.7: 76.5 and 178.5 round to even numbers
    assert gradient_energy_ratio(half, stripes) == pytest.approx(0.16, abs=0.002)
    assert gradient_energy_ratio(stripes, stripes) == 1.0
    flat = torch.full((3, 20, 20), 0.5)
    assert gradient_energy_ratio(flat, stripes) == 0.0 and gradient_energy_ratio(flat, flat) == 1.0
    with pytest.raises(ValueError, match="one colour"):
        gradient_energy_ratio(stripes, flat)


def test_gradient_energy_counts_both_directions() -> None:
    stripes = (torch.arange(20) % 2).float().expand(3, 20, 20)
    half = 0.5 + (stripes - 0.5) * 0.4
    assert gradient_energy_ratio(half.mT, stripes.mT) == gradient_energy_ratio(half, stripes)


def test_colour_shift_is_the_worst_channel_and_ignores_detail() -> None:
    target = torch.full((3, 20, 20), 100 / 255)
    image = target.clone()
    image[1] += 5 / 255
    image[2, ::2] += 20 / 255
    image[2, 1::2] -= 20 / 255
    assert colour_shift(image, target) == pytest.approx(5)


def test_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra()
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingExtraError, match='pip install "scikit-image'):
        require_extra()
    assert mae(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)) == 0  # needs nothing
