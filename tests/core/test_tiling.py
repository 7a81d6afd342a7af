"""Plan, cut and blend: a partition of unity on the stride grid, and one noise field for all tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rddm_core.tiling import (
    FEATHER,
    OVERLAP,
    add_tile,
    cut,
    cut_features,
    join_features,
    noise_tile,
    pad_to_multiple,
    plan_axis,
    plan_tiles,
    plan_windows,
    round_up,
)

LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 320, 511, 640, 1000, 1025, 1601, 4032)


@pytest.mark.parametrize("stride", [16, 64, 96, 128])
@pytest.mark.parametrize("tile", [1, 100, 128, 192, 256, 500, 1024])
def test_spans_are_a_partition_of_unity_on_the_grid(tile: int, stride: int) -> None:
    grid = round_up(FEATHER, stride)
    limit = max(round_up(tile, grid), 2 * grid)
    for length in LENGTHS:
        spans = plan_axis(length, tile, stride)
        weights = torch.zeros(length)
        for span in spans:
            assert span.start % grid == 0 and (span.stop - span.start) % grid == 0
            assert span.stop - span.start <= limit
            assert span.start <= span.first < span.last <= min(span.stop, length)
            weights[span.first : span.last] += span.weights()
        assert bool((weights == 1).all()), (length, tile, stride)
        assert spans[0].start == 0 and 0 <= spans[-1].stop - length < grid
        assert len({span.stop - span.start for span in spans}) == 1


@pytest.mark.parametrize("tile", [256, 512, 1024])
def test_inner_borders_keep_context(tile: int) -> None:
    least = (min(OVERLAP, tile - 64) - FEATHER) // 2
    for length in LENGTHS:
        for left, right in pairwise(plan_axis(length, tile, 64)):
            assert left.stop - left.last >= least
            assert right.first - right.start >= least


def test_spans_are_no_larger_than_their_number_needs() -> None:
    assert len(plan_axis(1024, 1024, 64)) == 1
    spans = plan_axis(1152, 1024, 64)
    assert [(s.start, s.stop) for s in spans] == [(0, 704), (448, 1152)]


def test_one_tile_without_a_size_and_errors() -> None:
    (tile,) = plan_tiles(100, 1, None, 64)
    assert (tile.rows.stop, tile.columns.stop) == (128, 64)
    with pytest.raises(ValueError, match="positive"):
        plan_tiles(100, 100, 0, 64)


@pytest.mark.parametrize("size", [(1, 1), (65, 3), (200, 333), (320, 128)])
def test_blending_cut_tiles_gives_the_image_back(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    canvas = torch.zeros_like(image)
    for tile in plan_tiles(*size, 128, 64):
        part = cut(image, tile)
        assert part.shape[-2] == tile.rows.stop - tile.rows.start
        assert part.shape[-1] == tile.columns.stop - tile.columns.start
        add_tile(canvas, part, tile)
    assert torch.allclose(canvas, image, rtol=0, atol=2e-7)


def test_cut_replicates_the_border() -> None:
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    part = cut(image, plan_tiles(2, 3, None, 64)[0])[0, 0]
    assert part.shape == (64, 64)
    assert torch.equal(part[:2, :3], image[0, 0])
    assert bool((part[2:, 1] == 4).all() and (part[0, 3:] == 2).all() and (part[2:, 3:] == 5).all())


def test_padding_replicates_the_lower_and_right_border() -> None:
    image = torch.rand(1, 3, 5, 8)
    padded = pad_to_multiple(image, 4)
    assert padded.shape[-2:] == (8, 8) and torch.equal(padded[..., :5, :], image)
    assert torch.equal(padded[..., 5:, :], image[..., 4:, :].expand(-1, -1, 3, -1))
    assert pad_to_multiple(padded, 4) is padded


def test_a_wrong_tile_leaves_a_seam() -> None:
    """The blend hides nothing: a tile that differs shows in its own inner area, and only there."""
    tiles = plan_tiles(64, 320, 192, 64)
    canvas = torch.zeros(1, 1, 64, 320)
    for i, tile in enumerate(tiles):
        add_tile(canvas, torch.full((1, 1, 64, tile.columns.stop - tile.columns.start), float(i)), tile)
    first, last = tiles[0].columns, tiles[-1].columns
    assert bool((canvas[..., : tiles[1].columns.first] == 0).all())
    assert bool((canvas[..., first.last :] > 0).all())
    assert bool((canvas[..., tiles[-2].columns.last :] == len(tiles) - 1).all())
    assert float(canvas.diff(dim=-1).abs().max()) <= 1 / FEATHER + 1e-6
    assert last.last == 320


def test_features_are_cut_at_their_own_stride() -> None:
    tile = plan_tiles(320, 320, 128, 64)[-1]
    features = torch.arange(40 * 20.0).reshape(1, 1, 40, 20)
    part = cut_features(features, tile, 320, 320)
    rows, columns = tile.rows, tile.columns
    assert torch.equal(part, features[..., rows.start // 8 :, columns.start // 16 :])
    for shape in ((1, 1, 39, 20), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="do not belong"):
            cut_features(torch.zeros(shape), tile, 320, 320)


@pytest.mark.parametrize("core", [64, 100, 256])
@pytest.mark.parametrize("context", [0, 64, 100])
def test_windows_partition_the_padded_image(core: int, context: int) -> None:
    for height, width in ((1, 1), (65, 300), (700, 129), (1000, 641)):
        windows = plan_windows(height, width, core, context, 64)
        padded = round_up(height, 64), round_up(width, 64)
        count = torch.zeros(padded)
        for window in windows:
            count[window.inner[1:]] += 1
            for span, length in ((window.rows, padded[0]), (window.columns, padded[1])):
                assert span.start % 64 == span.stop % 64 == 0 and 0 <= span.start < span.stop <= length
                assert span.first - span.start == min(span.first, round_up(context, 64)) or len(windows) == 1
                assert span.stop - span.last == min(length - span.last, round_up(context, 64)) or len(windows) == 1
                assert span.stop - span.start <= round_up(core, 64) + 2 * round_up(context, 64)
        assert bool((count == 1).all())


def test_features_of_windows_are_joined_at_their_own_stride() -> None:
    image = torch.rand(2, 3, 500, 300)
    (whole,) = plan_windows(500, 300, 1000, 0, 64)
    windows = plan_windows(500, 300, 128, 64, 64)
    assert len(windows) > 4
    for stride in (1, 8, 32):
        expected = torch.nn.functional.max_pool2d(cut(image, whole), stride)
        parts = [torch.nn.functional.max_pool2d(cut(image, window), stride) for window in windows]
        (joined,) = join_features(([part] for part in parts), windows)
        assert torch.equal(joined, expected)
    assert join_features([[image]], [whole])[0] is image


def test_tiles_read_one_noise_field() -> None:
    (whole,) = plan_tiles(320, 256, None, 64)
    field = noise_tile(whole, 64, 7, 0, 0)
    assert field.shape == (1, 3, 320, 256)
    for tile in plan_tiles(300, 250, 128, 64):
        assert torch.equal(noise_tile(tile, 64, 7, 0, 0), field[tile.outer])
    (larger,) = plan_tiles(500, 700, None, 64)
    assert torch.equal(noise_tile(larger, 64, 7, 0, 0)[..., :320, :256], field)


def test_noise_is_standard_normal_and_differs_by_every_key() -> None:
    (tile,) = plan_tiles(256, 256, None, 64)
    keys = [(7, 0, 0), (8, 0, 0), (7, 1, 0), (7, 0, 1), (7 + 2**32, 0, 0), (-7, 0, 0), (7 + 2**80, 0, 0)]
    fields = [noise_tile(tile, 64, *key).flatten() for key in keys]
    for field in fields:
        assert abs(float(field.mean())) < 0.01 and abs(float(field.std()) - 1) < 0.01
    correlation = torch.corrcoef(torch.stack(fields)) - torch.eye(len(keys))
    assert float(correlation.abs().max()) < 0.01
    blocks = fields[0].reshape(3, 4, 64, 4, 64).permute(1, 3, 0, 2, 4).reshape(16, -1)
    assert float((torch.corrcoef(blocks) - torch.eye(16)).abs().max()) < 0.05
