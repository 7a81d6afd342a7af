"""What a picture takes, and the tiles that a budget allows."""

from __future__ import annotations

import pytest
import torch
from live_tensors import Peak

from rddm_core import pipeline
from rddm_core.config import RDDMConfig, lite, paper
from rddm_core.memory import (
    AUTO_TILE,
    OVERHEAD,
    guidance_bytes,
    held_bytes,
    largest_tile,
    network_bytes,
    tile_size,
)
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import DeblurSettings, deblur


@pytest.mark.parametrize(
    ("preset", "size"), [("lite", (192, 256)), ("tiny", (192, 256)), ("paper", (64, 64))]
)  # dominated by the denoiser, the deconvolution bank, and deformable layers
def test_memory_is_asked_for_as_it_is_used(tiny_config: RDDMConfig, preset: str, size: tuple[int, int]) -> None:
    config = {"lite": lite(), "tiny": tiny_config, "paper": paper()}[preset]
    networks = RDDM(config).eval().requires_grad_(False)
    image, defocus_map = torch.rand(1, 3, *size), torch.rand(1, 1, *size)
    with Peak(networks.parameters()) as peak:
        pipeline.estimate_defocus_map(networks, image)
        pipeline.pre_deblur(networks, image, defocus_map)
        pipeline.sample_residual(networks, image, defocus_map)
    needed = network_bytes(config, *size) + held_bytes(*size)
    assert peak.peak <= needed <= 1.3 * peak.peak


def test_auto_takes_small_pictures_whole_and_others_in_the_largest_tiles() -> None:
    assert tile_size("auto", 1000, 1500, lite()) is None
    assert tile_size("auto", AUTO_TILE, AUTO_TILE, lite()) is None
    assert tile_size("auto", AUTO_TILE, AUTO_TILE + 1, lite()) == AUTO_TILE
    assert tile_size(300, 4000, 6000, lite()) == 300 and tile_size(None, 4000, 6000, lite()) is None


@pytest.mark.parametrize("samples", [1, 4])
def test_tiles_and_picture_fit_into_the_budget(samples: int) -> None:
    config, size = lite(), (4000, 6000)
    before = 0
    for budget in (1.6e9 + 0.3e9 * samples, 2.5e9 + 0.4e9 * samples, 8e9):
        side = tile_size("auto", *size, config, round(budget), samples)
        assert side is not None and side % 64 == 0 and before <= side <= AUTO_TILE
        used = held_bytes(*size, samples) + guidance_bytes(config, *size, samples) + 12 * samples * size[1] * side
        assert used + OVERHEAD * network_bytes(config, side, side) <= budget
        before = side
    assert before == AUTO_TILE


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="MB more are needed for a picture of 6000x4000.*working size"):
        tile_size("auto", 4000, 6000, lite(), 500_000_000)
    assert largest_tile(lite(), -5, 6000) == 0
    with pytest.raises(ValueError, match="memory must be a positive number of bytes"):
        DeblurSettings(memory=0)


def test_the_pipeline_keeps_to_its_budget() -> None:
    """The peak of live tensors, the picture itself included."""
    networks = RDDM(lite()).eval().requires_grad_(False)
    image = torch.rand(1, 3, 700, 900, generator=torch.Generator().manual_seed(0))
    given = torch.rand(1, 1, 700, 900, generator=torch.Generator().manual_seed(1))
    budget = held_bytes(700, 900) + guidance_bytes(lite(), 700, 900) + network_bytes(lite(), 640, 640)
    peaks = []
    for memory in (budget, None):
        settings = DeblurSettings(memory=memory, working_size="full")
        with Peak(networks.parameters()) as peak:
            deblur(networks, image, settings=settings, defocus_map=given, keep_stages=False)
        peaks.append(peak.peak + image.nbytes + given.nbytes)
    assert peaks[0] <= budget < peaks[1]
