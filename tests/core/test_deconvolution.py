"""The bank of Wiener deconvolutions that joins the denoiser's condition."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rddm_core.config import DenoiserConfig
from rddm_core.networks import deconvolution
from rddm_core.networks.deconvolution import CONTEXT, KEPT_SIZES, Filters, surrounded, wiener_bank
from rddm_core.networks.denoiser import DenoisingNetwork
from rddm_core.optics import Aperture, aperture_kernel

RADII = (1.0, 3.0, 6.0)


def texture(height: int = 96, width: int = 80) -> torch.Tensor:
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def blur(image: torch.Tensor, radius: float) -> torch.Tensor:
    kernel = aperture_kernel(radius, Aperture(), 17)[None, None].expand(3, 1, -1, -1)
    return F.conv2d(F.pad(image, (8,) * 4, mode="replicate"), kernel, groups=3)


@pytest.mark.parametrize("true_index", [1, 2])
def test_the_matching_radius_restores_best(true_index):
    sharp = texture()
    blurred = blur(sharp, RADII[true_index])
    wanted = (sharp - blurred).mean(1)[:, 16:-16, 16:-16]
    changes = wiener_bank(surrounded(blurred), RADII)[:, :, 16:-16, 16:-16]
    errors = [float((changes[:, i] - wanted).square().mean()) for i in range(len(RADII))]
    assert min(errors) == errors[true_index] < 0.7 * float(wanted.square().mean())


def test_a_flat_picture_stays_flat():
    assert wiener_bank(surrounded(torch.full((1, 3, 50, 31), 0.7)), RADII).abs().max() < 1e-5


def test_changes_are_limited_to_the_range_of_a_picture():
    """Squares of one pixel, in black and white, would gain twice that."""
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(1, 3, 64, 64)
    assert wiener_bank(surrounded(checks), RADII).abs().max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 65)])
def test_any_size_and_every_item_by_itself(size):
    batch = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    bank = wiener_bank(surrounded(batch), RADII)
    assert bank.shape == (2, len(RADII), *size) and torch.isfinite(bank).all()
    torch.testing.assert_close(bank[1:], wiener_bank(surrounded(batch[1:]), RADII), atol=1e-6, rtol=0)


def test_a_tile_agrees_with_the_whole():
    whole = texture(256, 256)
    inside = wiener_bank(surrounded(whole), RADII)[..., 64:192, 64:192]
    tile = wiener_bank(whole[..., 64 - CONTEXT : 192 + CONTEXT, 64 - CONTEXT : 192 + CONTEXT], RADII)
    assert (inside - tile).abs().max() < 0.01 < inside.abs().max()
    alone = wiener_bank(surrounded(whole[..., 64:192, 64:192]), RADII)
    assert (alone - inside).abs().max() > 0.05, "without its surroundings it does not"


def test_opposite_borders_do_not_touch():
    """The FFT takes a picture as periodic; what stands at the left must not show at the right."""
    picture = texture(64, 256)
    changed = picture.clone()
    changed[..., :8] = 1 - changed[..., :8]
    apart = (wiener_bank(surrounded(changed), RADII) - wiener_bank(surrounded(picture), RADII)).abs()
    assert apart[..., -128:].max() < 0.01 < apart[..., :8].max()


def test_half_precision_and_autocast_keep_the_transform_in_fp32():
    image = texture()
    with torch.autocast("cpu", torch.bfloat16):
        assert wiener_bank(image, RADII).dtype == torch.float32
    torch.testing.assert_close(wiener_bank(image.half(), RADII), wiener_bank(image.half().float(), RADII))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, tuple[int, int]]]:
    """Radius and size of every filter that is made."""
    made, make = [], deconvolution._inverse_filter

    def watched(radius: float, size: tuple[int, int]) -> torch.Tensor:
        made.append((radius, size))
        return make(radius, size)

    monkeypatch.setattr(deconvolution, "_inverse_filter", watched)
    return made


def test_filters_are_made_once_for_tiles_and_turned_ones(made: list[tuple[float, tuple[int, int]]]) -> None:
    kept: Filters = {}
    wide, high = texture(64, 100), texture(100, 64)
    for picture in (wide, high, wide, high):
        assert torch.equal(wiener_bank(surrounded(picture), RADII, kept), wiener_bank(surrounded(picture), RADII))
    without = 4 * len(RADII)
    assert len(made) - without == 2 * len(RADII)
    wiener_bank(surrounded(texture(40, 40)), RADII, kept)
    assert len(kept) == KEPT_SIZES
    wiener_bank(surrounded(high), RADII[:1], kept)
    assert made[-1][0] == RADII[0], "other radii are not taken for these"


def test_filters_of_large_pictures_are_not_kept(
    made: list[tuple[float, tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Filters = {}
    first = wiener_bank(surrounded(texture()), RADII, kept)
    [filters] = kept.values()
    monkeypatch.setattr(deconvolution, "KEPT_BYTES", sum(x.nbytes for x in filters) - 1)
    kept.clear()
    assert torch.equal(wiener_bank(surrounded(texture()), RADII, kept), first) and not kept
    assert len(made) == 2 * len(RADII)


def test_filters_go_with_their_network() -> None:
    config = DenoiserConfig(widths=(8,) * 4, middle_width=8, decoder_mixers=("depthwise",) * 4, time_width=8)
    config = replace(config, deconvolution_radii=RADII)
    network = DenoisingNetwork(config, guidance_width=8, timesteps=10, attention_cell=64).eval()
    guidance = tuple(torch.zeros(1, 8, 64 // s, 64 // s) for s in (4, 8, 16))
    with torch.inference_mode():
        network.encode_condition(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), guidance)
    [filters] = network.kept_filters.values()
    assert len(filters) == len(RADII) and not any(x.is_inference() for x in filters), "training may use them next"
    assert not any("filter" in name for name in copy.deepcopy(network).state_dict())
    gone = [weakref.ref(x) for x in filters]
    del network, filters
    gc.collect()
    assert all(x() is None for x in gone)


@pytest.mark.parametrize("change", [{"deconvolution_radii": (0.0,)}, {"state_entry": "encoder"}])
def test_radii_that_make_no_sense_are_refused(change):
    config = DenoiserConfig(**{"deconvolution_radii": RADII, **change})
    with pytest.raises(ValueError, match="deconvolution_radii"):
        DenoisingNetwork(config, guidance_width=8, timesteps=10, attention_cell=64)
