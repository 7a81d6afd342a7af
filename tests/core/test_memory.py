"""What a picture takes, the tiles that a budget allows, and the signs that memory ran out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_tensors import Peak
from torch import Tensor

from rddm_core import pipeline
from rddm_core.classical import edge_defocus_map
from rddm_core.config import RDDMConfig, lite, paper
from rddm_core.images import comparison_sheet
from rddm_core.memory import (
    AUTO_TILE,
    GUIDANCE_CONTEXT,
    OVERHEAD,
    guidance_bytes,
    guidance_window,
    held_bytes,
    largest_tile,
    network_bytes,
    ran_out_of_memory,
    tile_size,
    wanted_bytes,
)
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import DeblurSettings, deblur, merge_residual
from rddm_core.refocus import Lens, refocus
from rddm_core.residuals import reduce_samples


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


@pytest.mark.parametrize("megabytes", [120, 150, 300, 800])
def test_windows_of_guidance_fit_into_the_budget_too(megabytes: int) -> None:
    """They look further around than small tiles: 80 bytes a pixel of them."""
    side = largest_tile(lite(), megabytes * 10**6, 1000)
    assert side > 0 and OVERHEAD * 80 * (guidance_window(side) + 2 * GUIDANCE_CONTEXT) ** 2 <= megabytes * 1e6


def test_a_device_is_asked_for_the_guidance_of_every_sample() -> None:
    one, two = (wanted_bytes(lite(), 4000, 6000, samples) for samples in (1, 2))
    rows = 12 * 6000 * AUTO_TILE  # of residual
    assert two - one == pytest.approx(guidance_bytes(lite(), 4000, 6000) + rows, abs=2)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="MB more are needed for a picture of 6000x4000.*working size"):
        tile_size("auto", 4000, 6000, lite(), 500_000_000)
    assert largest_tile(lite(), -5, 6000) == 0
    with pytest.raises(ValueError, match="memory must be a positive number of bytes"):
        DeblurSettings(memory=0)


def peak_of_deblur(networks: RDDM, keep: bool = False, mean: bool = False, **settings: Any) -> int:
    """Of live tensors, the picture and its map included."""
    image = torch.rand(1, 3, 700, 900, generator=torch.Generator().manual_seed(0))
    given = torch.rand(1, 1, 700, 900, generator=torch.Generator().manual_seed(1))
    with Peak(networks.parameters()) as peak:
        chosen = DeblurSettings(**{"working_size": "full", **settings})
        deblur(networks, image, settings=chosen, defocus_map=given, keep_stages=keep, mean=mean)
    return peak.peak + image.nbytes + given.nbytes


def test_the_pipeline_keeps_to_its_budget() -> None:
    networks = RDDM(lite()).eval().requires_grad_(False)
    budget = held_bytes(700, 900) + guidance_bytes(lite(), 700, 900) + network_bytes(lite(), 720, 720)
    assert peak_of_deblur(networks, memory=budget) <= budget < peak_of_deblur(networks)


def test_samples_and_stages_take_what_is_counted(tiny_config: RDDMConfig) -> None:
    networks, tile = RDDM(tiny_config).eval().requires_grad_(False), 320

    def counted(samples: int, keep: bool, mean: bool) -> int:
        held = held_bytes(700, 900, samples, keep, mean) + guidance_bytes(tiny_config, 700, 900, samples)
        return held + 12 * samples * 900 * tile

    least = peak_of_deblur(networks, tile=tile) - counted(1, False, False)
    for samples, keep, mean in ((3, False, False), (1, True, False), (3, True, False), (3, False, True)):
        rest = peak_of_deblur(networks, keep, mean, tile=tile, samples=samples) - counted(samples, keep, mean)
        assert least - 8e6 < rest <= least, (samples, keep, mean)


def test_the_mean_of_many_enlarged_samples_takes_no_more_than_that_of_few(tiny_config: RDDMConfig) -> None:
    networks = RDDM(tiny_config).eval().requires_grad_(False)
    few, many = (peak_of_deblur(networks, mean=True, samples=n, working_size=128) for n in (2, 9))
    assert many - few < 12 * 700 * 900


def test_what_is_kept_counts_against_the_budget() -> None:
    sides = [
        tile_size("auto", 4000, 6000, lite(), 2_200_000_000, samples, keep_stages=keep)
        for samples, keep in ((1, False), (1, True), (2, False), (2, True))
    ]
    assert None not in sides and sides == sorted(sides, key=lambda side: -(side or 0)) and len(set(sides)) > 2


def test_thin_pictures_count_with_the_border_that_makes_them_a_tile() -> None:
    assert tile_size("auto", 1, 20_000, lite()) is None
    assert tile_size("auto", 1, 1_900_000, lite()) == AUTO_TILE == tile_size("auto", 100_000, 16, lite())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("whatever it says"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: 9 bytes"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
    ],
)
def test_memory_that_ran_out(error: Exception) -> None:
    assert ran_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("expected a tensor in memory format channels_last"),
        ValueError("out of memory.png is damaged"),
        FileNotFoundError(2, "No such file or directory", "out of memory.png"),
        KeyboardInterrupt(),
    ],
)
def test_what_only_speaks_of_memory(error: BaseException) -> None:
    assert not ran_out_of_memory(error)


def film(frames: int, *channels: int) -> Tensor:
    return torch.rand(frames, *channels, 40, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("job", "channels", "planes"),
    [
        (lambda x: merge_residual(x, x, x), (3,), 3),
        (lambda x: edge_defocus_map(x), (3,), 1),
        (lambda x: refocus(x, x[:1, :1], Lens()), (3,), 4),
        (lambda x: reduce_samples(x, "median"), (8, 3), 3),
    ],
    ids=["merge", "edge map", "refocus", "median"],
)
def test_a_longer_film_takes_only_its_results(
    job: Callable[[Tensor], object], channels: tuple[int, ...], planes: int
) -> None:
    peaks = []
    for frames in (1, 2, 12):  # the first fills caches
        x = film(frames, *channels)
        with Peak([x]) as peak:
            job(x)
        peaks.append(peak.peak)
    assert peaks[2] - peaks[1] == 10 * planes * 4 * 40 * 48


def test_a_comparison_sheet_takes_no_copy_of_a_large_picture() -> None:
    a = torch.rand(3, 1600, 1200, generator=torch.Generator().manual_seed(0))
    b = a.flip(-1)
    with Peak([a, b]) as peak:
        comparison_sheet({"a": a, "b": b}, max_side=64)
    assert peak.peak < a.nbytes / 2
