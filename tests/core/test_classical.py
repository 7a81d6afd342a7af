"""Deblurring without a network, on photographs blurred by known discs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rddm_core import classical
from rddm_core.callbacks import Callbacks
from rddm_core.classical import deconvolve, edge_defocus_map, gaussian_blur, unsharp_mask
from rddm_core.images import load_image
from rddm_core.metrics import psnr_8bit
from rddm_core.optics import linear_to_srgb, map_from_radius, render_defocus, srgb_to_linear

EXAMPLES = Path(__file__).parents[2] / "examples"


def photograph(name: str, rows: slice, columns: slice) -> Tensor:
    """A sharp detail, [3, H, W]."""
    return load_image(EXAMPLES / f"{name}.sharp.jpg").pixels[:, rows, columns]


def blurred(sharp: Tensor, radius: float) -> Tensor:
    """[3, H, W] blurred evenly -> [1, 3, H, W]."""
    return render_defocus(sharp, torch.full(sharp.shape[1:], radius))[None]


def flat_map(radius: float) -> Tensor:
    return map_from_radius(torch.full((1, 1, 4, 4), radius))


@pytest.fixture(scope="module")
def sign() -> Tensor:
    return photograph("sign", slice(150, 390), slice(200, 470))


@pytest.fixture(scope="module")
def market() -> Tensor:
    return photograph("market", slice(100, 340), slice(200, 470))


# ---------------------------------------------------------------- defocus map from edges


@pytest.mark.parametrize("name", ["sign", "market"])
def test_edge_map_orders_known_radii(name: str, request: pytest.FixtureRequest) -> None:
    sharp = request.getfixturevalue(name)
    medians = [float(edge_defocus_map(blurred(sharp, radius)).median()) for radius in (0.0, 1.0, 2.0, 3.0, 4.5, 7.0)]
    assert medians == sorted(medians) and min(b - a for a, b in zip(medians, medians[1:], strict=False)) > 0.02
    assert medians[0] < 0.15 and medians[-1] > 0.8


def test_edge_map_measures_the_radius_at_an_edge() -> None:
    """An isolated step edge is what the method assumes: there the radius itself comes out."""
    step = torch.full((3, 120, 160), 0.2)
    step[:, :, 80:] = 0.8
    for radius in (1.5, 3.0, 5.0, 8.0):
        seen = blurred(linear_to_srgb(gaussian_blur(srgb_to_linear(step)[None], classical.LENS_BLUR))[0], radius)
        estimate = edge_defocus_map(seen)[0, 0, 60, 80]
        assert float(estimate) == pytest.approx(float(map_from_radius(torch.tensor(radius))), abs=0.04)


def test_edge_map_tells_the_halves_of_a_picture_apart(sign: Tensor) -> None:
    radius = torch.zeros(sign.shape[1:])
    radius[:, 135:] = 4.0
    estimate = edge_defocus_map(render_defocus(sign, radius)[None])[0, 0]
    assert float(estimate[:, 150:].median()) > float(estimate[:, :120].median()) + 0.4


def test_edge_map_counts_pixels_of_the_working_size(sign: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture twice as large as the working size with twice the blur has the same map."""
    monkeypatch.setattr(classical, "WORKING_SIZE", 135)
    reduced = torch.nn.functional.interpolate(blurred(sign, 6.0), scale_factor=0.5, mode="bilinear", antialias=True)
    large, small = edge_defocus_map(blurred(sign, 6.0)), edge_defocus_map(reduced)
    assert large.shape[-2:] == sign.shape[1:] and small.shape[-2:] == (120, 135)
    assert float(large.median()) == pytest.approx(float(small.median()), abs=0.02)


def test_a_picture_without_edges_is_in_focus() -> None:
    assert not edge_defocus_map(torch.full((1, 3, 20, 30), 0.4)).any()


# ---------------------------------------------------------------- deconvolution


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
@pytest.mark.parametrize(("name", "radius"), [("sign", 2.0), ("market", 3.0)])
def test_deconvolution_raises_psnr(
    method: classical.Method, name: str, radius: float, request: pytest.FixtureRequest
) -> None:
    sharp = request.getfixturevalue(name)
    seen = blurred(sharp, radius)
    result = deconvolve(seen, flat_map(radius), method=method)
    assert result.shape == seen.shape and result.min() >= 0 and result.max() <= 1
    gain = psnr_8bit(result[0], sharp) - psnr_8bit(seen[0], sharp)
    assert gain > 1
    wrong = deconvolve(seen, flat_map(radius + 3), method=method)  # the radius matters
    assert psnr_8bit(wrong[0], sharp) < psnr_8bit(result[0], sharp) - 1


@pytest.mark.parametrize(("method", "least"), [("wiener", 1.8), ("richardson_lucy", 3.7)])
def test_deconvolution_works_in_linear_light(sign: Tensor, method: classical.Method, least: float) -> None:
    """Measured: 2.5 and 5.3 dB, against 1.1 and 2.1 of the same filters on the values as they are stored."""
    seen = blurred(sign, 3.0)
    result = deconvolve(seen, flat_map(3.0), method=method)
    assert psnr_8bit(result[0], sign) - psnr_8bit(seen[0], sign) > least


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
def test_an_even_surface_stays_as_bright_as_it_is(method: classical.Method) -> None:
    """However much noise is assumed: it has none where nothing varies."""
    flat = torch.full((1, 3, 40, 50), 0.4)
    torch.testing.assert_close(deconvolve(flat, flat_map(3.0), method=method, noise=0.5), flat, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
def test_opposite_borders_do_not_touch(market: Tensor, method: classical.Method) -> None:
    """The FFT takes a picture as periodic; 256 columns, as the border that makes others a tile would part them."""
    seen = blurred(market[..., :256], 2.0)
    changed = seen.clone()
    changed[..., :6] = 1 - changed[..., :6]
    before, after = (deconvolve(x, flat_map(2.0), method=method)[..., -60:] for x in (seen, changed))
    assert (before - after).abs().max() < 1 / 255


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
def test_deconvolution_follows_the_map(sign: Tensor, method: classical.Method) -> None:
    radius = torch.zeros(sign.shape[1:])
    radius[:, 100:] = torch.linspace(0, 4, 170)
    seen = render_defocus(sign, radius, levels=16)[None]
    result = deconvolve(seen, map_from_radius(radius)[None, None], method=method)
    assert torch.equal(result[..., :100], seen[..., :100])
    assert psnr_8bit(result[0, :, :, 110:], sign[:, :, 110:]) > psnr_8bit(seen[0, :, :, 110:], sign[:, :, 110:]) + 1


def test_nothing_to_do_changes_nothing(sign: Tensor) -> None:
    assert torch.equal(deconvolve(sign[None], torch.zeros(1, 1, 7, 9)), sign[None])


def test_thin_lines_of_a_larger_map_count(sign: Tensor) -> None:
    lines = torch.zeros(1, 1, 4 * sign.shape[1], 4 * sign.shape[2])
    lines[..., ::4] = 1.0
    assert not torch.equal(deconvolve(sign[None], lines), sign[None])


def test_max_radius_limits(market: Tensor) -> None:
    seen = blurred(market, 2.0)
    limited = deconvolve(seen, flat_map(6.0), max_radius=2.0)
    assert torch.allclose(limited, deconvolve(seen, flat_map(2.0), max_radius=2.0), atol=1e-4)


def test_radii_grow_with_the_picture(market: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = deconvolve(market[None], flat_map(4.0))
    monkeypatch.setattr(classical, "WORKING_SIZE", 135)
    assert torch.allclose(deconvolve(market[None], flat_map(2.0)), expected, atol=1e-4)


def test_noise_and_iterations_set_the_strength(market: Tensor) -> None:
    def detail(picture: Tensor) -> float:
        return float(picture.diff(dim=-1).abs().mean())

    seen, of = blurred(market, 2.0), flat_map(2.0)
    assert detail(deconvolve(seen, of, noise=0.001)) > detail(deconvolve(seen, of, noise=0.1)) > detail(seen)
    few, many = (deconvolve(seen, of, method="richardson_lucy", iterations=n) for n in (3, 20))
    assert detail(many) > detail(few) > detail(seen)


def test_tiles_make_no_seams(market: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = blurred(market, 2.0)
    whole = deconvolve(seen, flat_map(2.0), max_radius=2.0)
    monkeypatch.setattr(classical, "DECONVOLUTION_TILE", 160)
    steps: list[tuple[int, int]] = []
    watch = Callbacks(progress=lambda done, total: steps.append((done, total)))
    tiled = deconvolve(seen, flat_map(2.0), max_radius=2.0, callbacks=watch)
    assert len(steps) > 1 and steps[-1] == (len(steps), len(steps))
    inside = (tiled - whole)[..., 16:-16, 16:-16]  # only there is the border of a tile no border of the picture
    assert inside.abs().max() < 6 / 255 and inside.abs().mean() < 0.1 / 255


def test_tiles_see_what_large_radii_reach(market: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Richardson-Lucy alone: Wiener's ringing reaches further than any overlap."""
    seen = blurred(market, 8.0)
    whole = deconvolve(seen, flat_map(8.0), method="richardson_lucy")
    monkeypatch.setattr(classical, "DECONVOLUTION_TILE", 192)
    tiled = deconvolve(seen, flat_map(8.0), method="richardson_lucy")
    inside = (tiled - whole)[..., 32:-32, 32:-32].abs()
    # Measured: 0.04 and 0.003, with an overlap of 64 pixels 2.9 and 0.12.
    assert 0 < inside.max() < 0.4 / 255 and inside.mean() < 0.02 / 255


# ---------------------------------------------------------------- both


def test_batch_equals_single_pictures(sign: Tensor, market: Tensor) -> None:
    both = torch.stack((sign, market))
    maps = torch.stack((flat_map(1.0)[0], flat_map(2.5)[0]))
    assert torch.equal(edge_defocus_map(both), torch.cat([edge_defocus_map(x[None]) for x in both]))
    for method in ("wiener", "richardson_lucy"):
        singles = [deconvolve(x[None], m[None], method=method) for x, m in zip(both, maps, strict=True)]
        assert torch.equal(deconvolve(both, maps, method=method), torch.cat(singles))
    one_for_all = deconvolve(both, maps[:1])
    assert torch.equal(one_for_all[1:], deconvolve(both[1:], maps[:1]))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (37, 53)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    estimate = edge_defocus_map(picture)
    assert estimate.shape == (1, 1, *size) and estimate.min() >= 0 and estimate.max() <= 1
    for method in ("wiener", "richardson_lucy"):
        result = deconvolve(picture, flat_map(3.0), method=method)
        assert result.shape == picture.shape and torch.isfinite(result).all()


def test_interrupts_pass(sign: Tensor) -> None:
    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        edge_defocus_map(sign[None], callbacks=Callbacks(check_interrupt=stop))
    with pytest.raises(Stop):
        deconvolve(sign[None], flat_map(2.0), callbacks=Callbacks(check_interrupt=stop))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.rand(3, 8, 8)}, r"image must be a tensor \[B, 3, H, W\]"),
        ({"image": torch.rand(1, 3, 8, 8) * 255}, "image must lie in 0..1"),
        ({"image": torch.full((1, 3, 8, 8), torch.nan)}, "image holds NaN"),
        ({"defocus_map": torch.rand(3, 1, 8, 8)}, "defocus_map must be a tensor"),
        ({"defocus_map": torch.full((1, 1, 8, 8), torch.inf)}, "defocus_map holds NaN or infinite"),
        ({"method": "magic"}, "method must be 'wiener' or 'richardson_lucy'"),
        ({"max_radius": 0.0}, "max_radius must be a finite number > 0"),
        ({"iterations": 0}, "iterations must be"),
        ({"noise": float("nan")}, "noise must be"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    inputs = {"image": torch.rand(1, 3, 8, 8), "defocus_map": torch.rand(1, 1, 8, 8), **change}
    with pytest.raises(ValueError, match=message):
        deconvolve(inputs.pop("image"), inputs.pop("defocus_map"), **inputs)
    if "image" in change:
        for function in (edge_defocus_map, unsharp_mask):
            with pytest.raises(ValueError, match=message):
                function(change["image"])


# ---------------------------------------------------------------- sharpening


def test_unsharp_mask_adds_the_difference(sign: Tensor) -> None:
    picture = 0.3 + 0.4 * sign[None]
    assert torch.equal(unsharp_mask(picture, amount=0.0), picture)
    one, half = (unsharp_mask(picture, 1.5, amount) - picture for amount in (0.2, 0.1))
    assert torch.allclose(one, 2 * half, atol=1e-6) and one.abs().max() > 0.01
    flat = torch.full((1, 3, 9, 9), 0.25)
    assert torch.allclose(unsharp_mask(flat, 3.0, 5.0), flat, atol=1e-6)
    with pytest.raises(ValueError, match="radius must be > 0 and amount >= 0"):
        unsharp_mask(picture, 0.0)


def test_unsharp_mask_by_its_formula(sign: Tensor) -> None:
    picture = sign[None]
    for radius, amount in ((1.5, 0.7), (3.0, 2.0)):
        expected = (picture + amount * (picture - gaussian_blur(picture, radius))).clamp(0, 1)
        assert torch.equal(unsharp_mask(picture, radius, amount), expected)
    assert unsharp_mask(picture).diff(dim=-1).abs().mean() > picture.diff(dim=-1).abs().mean()


def test_gaussian_blur_has_its_standard_deviation() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spot = gaussian_blur(point, 2.5)[0, 0]
    offset = torch.arange(41) - 20.0
    assert float(spot.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spot.sum(0) * offset.square()).sum()) == pytest.approx(2.5**2, rel=0.01)
