"""Tiling value by value: what the properties in test_tiling.py leave open."""

from __future__ import annotations

import pytest
import torch

from rddm_core.tiling import (
    FEATHER,
    Span,
    Tile,
    add_tile,
    cut,
    cut_features,
    join_features,
    noise_tile,
    plan_axis,
    plan_tiles,
    plan_windows,
)


def test_the_smallest_tile_and_the_overlap_reach_both_axes() -> None:
    tiles = plan_tiles(320, 256, 1, 64, overlap=64)
    rows, columns = plan_axis(320, 128, 64, overlap=64), plan_axis(256, 128, 64, overlap=64)
    assert len(rows) == 4 and len(columns) == 3
    assert tiles == [Tile(r, c) for r in rows for c in columns], "row by row"
    few, many = (plan_axis(1280, 512, 64, overlap) for overlap in (64, 192))
    assert len(few) < len(many) and many == plan_axis(1280, 512, 64), "the overlap decides on their number"
    assert plan_tiles(1280, 1280, 512, 64, overlap=64) == [Tile(r, c) for r in few for c in few]
    assert plan_tiles(1280, 1280, 512, 64) == [Tile(r, c) for r in many for c in many]


def test_spans_by_hand() -> None:
    assert plan_axis(100, None, 64) == [Span(0, 128, 0, 100)]
    assert plan_axis(250, 128, 64, overlap=64) == [
        Span(0, 128, 0, 128, 0, FEATHER),
        Span(64, 192, 64, 192, FEATHER, FEATHER),
        Span(128, 256, 128, 250, FEATHER, 0),
    ]


def test_weights_by_hand() -> None:
    weights = Span(0, 256, 0, 256, rise=FEATHER, fall=FEATHER).weights()
    assert weights[0] == 0.5 / FEATHER and weights[FEATHER - 1] == (FEATHER - 0.5) / FEATHER
    assert bool((weights[FEATHER:-FEATHER] == 1).all())
    assert torch.equal(weights.flip(0), weights)


def test_cut_takes_the_tile_where_it_lies() -> None:
    image = torch.arange(2 * 3 * 300 * 200.0).reshape(2, 3, 300, 200)
    for tile in plan_tiles(300, 200, 128, 64):
        part = cut(image, tile)
        inside = image[:, :, tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop]
        assert torch.equal(part[..., : inside.shape[-2], : inside.shape[-1]], inside)
        kept = image[:, :, tile.rows.first : tile.rows.last, tile.columns.first : tile.columns.last]
        assert torch.equal(part[tile.kept], kept) and torch.equal(image[tile.inner], kept)


@pytest.mark.parametrize(
    ("features", "start"),
    [((41, 20), (0, 0)), ((40, 21), (0, 0)), ((40, 20), (4, 0)), ((40, 20), (0, 8)), ((40, 20), (4, 8))],
)
def test_features_that_do_not_fit_in_one_axis_alone(features: tuple[int, int], start: tuple[int, int]) -> None:
    """Features of 8x16 pixels each: not a whole number of them in the image, or a tile that begins within one."""
    (top, left) = start
    tile = Tile(Span(top, 320, top, 320), Span(left, 320, left, 320))
    with pytest.raises(ValueError, match="do not belong"):
        cut_features(torch.zeros(1, 1, *features), tile, 320, 320)
    fitting = Tile(Span(8, 320, 8, 320), Span(16, 320, 16, 320))
    assert cut_features(torch.zeros(1, 1, 40, 20), fitting, 320, 320).shape == (1, 1, 39, 19)


@pytest.mark.parametrize("to", ["canvas", "values"])
def test_a_tile_is_added_where_the_canvas_lives(to: str) -> None:
    """On a device without values (meta): mixing devices is an error there as on a GPU."""
    (tile,) = plan_tiles(64, 64, None, 64)
    canvas = torch.zeros(1, 3, 64, 64, device="meta")
    values = torch.zeros(1, 3, 64, 64, device="meta" if to == "values" else "cpu")
    add_tile(canvas, values, tile)
    assert canvas.device.type == "meta"
    halves = torch.zeros(1, 3, 64, 64, dtype=torch.float16)
    add_tile(halves, torch.full((1, 3, 64, 64), 0.25, dtype=torch.float64), tile)
    assert halves.dtype == torch.float16 and bool((halves == 0.25).all())


def test_a_canvas_may_begin_further_down() -> None:
    image = torch.rand(1, 3, 400, 90, generator=torch.Generator().manual_seed(0))
    whole, strip = torch.zeros_like(image), torch.zeros_like(image)[:, :, 100:]
    below = [tile for tile in plan_tiles(400, 90, 128, 64) if tile.rows.first >= 100]
    assert len(below) > 1
    for tile in below:
        add_tile(whole, cut(image, tile), tile)
        add_tile(strip, cut(image, tile), tile, top=100)
    assert torch.equal(strip, whole[:, :, 100:]) and bool(strip.any())


def test_windows_by_hand() -> None:
    """One window as soon as a kept part and its context hold the image."""
    assert plan_windows(192, 10, 128, 64, 64) == [Tile(Span(0, 192, 0, 192), Span(0, 64, 0, 64))]
    assert [w.rows for w in plan_windows(193, 10, 128, 64, 64)] == [Span(0, 192, 0, 128), Span(64, 256, 128, 256)]
    assert [w.columns for w in plan_windows(10, 320, 128, 64, 64)] == [
        Span(0, 192, 0, 128),
        Span(64, 320, 128, 256),
        Span(192, 320, 256, 320),
    ]


def test_features_belong_to_one_window_each() -> None:
    windows = plan_windows(320, 64, 128, 64, 64)
    parts = [torch.zeros(1, 2, w.rows.stop - w.rows.start, 64) for w in windows]
    with pytest.raises(ValueError, match="argument"):
        join_features([[part] for part in [*parts, parts[-1]]], windows)


def test_the_noise_of_a_seed_stays_the_same_over_versions() -> None:
    """Otherwise a saved workflow would give another picture. The values are those of its first release."""
    (tile,) = plan_tiles(64, 128, None, 64)
    noise = noise_tile(tile, 64, 7, 1, 2)
    assert noise[0, :, 0, 0].tolist() == pytest.approx([-0.393482, 0.015863, 1.967354], abs=1e-5)
    assert noise[0, :, 63, 127].tolist() == pytest.approx([-0.963002, 1.649747, -0.807336], abs=1e-5)
