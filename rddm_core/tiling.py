"""Overlapping, feathered tiles on a fixed grid: plan, cut and blend, and their noise, as pure functions.

Tiles start at multiples of the networks' stride, so that a tile and the whole image share their pooling cells
and strided convolutions. Between two neighbours only a narrow zone in the middle of the overlap is blended,
by linear ramps that sum to exactly one; what lies behind the zone is context and is thrown away. Windows are the
same without blending, for feature maps whose network looks further around than tiles overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import EllipsisType

import torch
from torch import Tensor
from torch.nn import functional as F

OVERLAP = 192
"""Least overlap of neighbouring tiles in pixels (less where the tile is too small for it)."""
FEATHER = 64
"""Width of the blended zone in pixels. A power of two, so that neighbouring weights sum to exactly one."""

Window = tuple[EllipsisType, slice, slice]


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the whole image.

    `start:stop` is read by the networks and may reach beyond the image, where the border is replicated.
    `first:last` is what counts of the result; `rise` and `fall` are the lengths of the ramps at its two ends.
    """

    start: int
    stop: int
    first: int
    last: int
    rise: int = 0
    fall: int = 0

    def weights(self) -> Tensor:
        """Blending weights of `first:last`, float32."""
        weights = torch.ones(self.last - self.first)
        ramp = (torch.arange(FEATHER) + 0.5) / FEATHER
        if self.rise:
            weights[: self.rise] = ramp
        if self.fall:
            weights[-self.fall :] = 1 - ramp
        return weights


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image: one span per axis. The windows index [..., H, W]."""

    rows: Span
    columns: Span

    @property
    def outer(self) -> Window:
        """What the networks read, in the image."""
        return ..., slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def inner(self) -> Window:
        """What counts of the result, in the image."""
        return ..., slice(self.rows.first, self.rows.last), slice(self.columns.first, self.columns.last)

    @property
    def kept(self) -> Window:
        """What counts of the result, in the tile itself."""
        rows, columns = self.rows, self.columns
        return (
            ...,
            slice(rows.first - rows.start, rows.last - rows.start),
            slice(columns.first - columns.start, columns.last - columns.start),
        )


def round_up(length: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def plan_axis(length: int, tile: int | None, stride: int, overlap: int = OVERLAP) -> list[Span]:
    """Spans that cover `length` pixels, all of one size; the last may reach beyond the end.

    The grid for starts and sizes is the least multiple of `stride` that holds a blended zone. `tile` is the
    largest size, rounded up to the grid and to two of its cells at least; None makes one span. As few spans
    as possible are used, and they are made as small as their number allows.
    """
    grid = round_up(FEATHER, stride)
    padded = round_up(length, grid)
    if tile is None or padded <= (tile := max(round_up(tile, grid), 2 * grid)):
        return [Span(0, padded, 0, length)]
    overlap = min(round_up(overlap, grid), tile - grid)
    count = -(-(padded - overlap) // (tile - overlap))
    size = round_up(-(-(padded + (count - 1) * overlap) // count), grid)
    starts = [i * (padded - size) // grid // (count - 1) * grid for i in range(count)]
    # The blended zone lies in the middle of the overlap, with as much context on one side as on the other.
    zones = [(a + size + b - FEATHER) // 2 for a, b in pairwise(starts)]
    return [
        Span(
            start,
            start + size,
            first=zones[i - 1] if i > 0 else 0,
            last=zones[i] + FEATHER if i < count - 1 else length,
            rise=FEATHER if i > 0 else 0,
            fall=FEATHER if i < count - 1 else 0,
        )
        for i, start in enumerate(starts)
    ]


def plan_tiles(height: int, width: int, tile: int | None, stride: int, overlap: int = OVERLAP) -> list[Tile]:
    """Tiles of at most `tile` x `tile` pixels over an image, row by row; one tile if `tile` is None.

    Raises ValueError if `tile` is not positive.
    """
    if tile is not None and tile < 1:
        raise ValueError(f"the tile size must be a positive number of pixels, not {tile}")
    columns = plan_axis(width, tile, stride, overlap)
    return [Tile(rows, c) for rows in plan_axis(height, tile, stride, overlap) for c in columns]


def plan_windows(height: int, width: int, core: int, context: int, stride: int) -> list[Tile]:
    """Windows over an image padded to multiples of `stride`, row by row; their kept parts touch and do not overlap.

    A kept part is `core` pixels long or shorter, and `context` more pixels around it are read; both are rounded up to
    multiples of `stride`. One window if that holds the whole image.
    """
    core, context = round_up(core, stride), round_up(context, stride)

    def axis(length: int) -> list[Span]:
        padded = round_up(length, stride)
        if padded <= core + context:
            return [Span(0, padded, 0, padded)]
        size = round_up(-(-padded // -(-padded // core)), stride)
        firsts = range(0, padded, size)
        return [
            Span(max(0, first - context), min(padded, first + size + context), first, min(padded, first + size))
            for first in firsts
        ]

    columns = axis(width)
    return [Tile(rows, c) for rows in axis(height) for c in columns]


def cut(image: Tensor, tile: Tile, context: int = 0) -> Tensor:
    """The tile of [B, C, H, W], with `context` pixels more on every side; the image's border is replicated."""
    (above, rows, below), (left, columns, right) = (
        _clip(span.start - context, span.stop + context, length)
        for span, length in zip((tile.rows, tile.columns), image.shape[-2:], strict=True)
    )
    part, margins = image[..., rows, columns], (left, right, above, below)
    return F.pad(part, margins, mode="replicate") if any(margins) else part


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """[B, C, H, W] with its lower and right border replicated up to sides that are multiples of `multiple`."""
    down, across = (round_up(n, multiple) - n for n in image.shape[-2:])
    return F.pad(image, (0, across, 0, down), mode="replicate") if down or across else image


def _clip(start: int, stop: int, length: int) -> tuple[int, slice, int]:
    """How much of `start:stop` lies before, the part within, and how much lies behind `length` pixels."""
    return max(0, -start), slice(max(0, start), min(stop, length)), max(0, stop - length)


def cut_features(features: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """The tile of a feature map [B, C, h, w] that covers a padded image of `height` x `width` pixels.

    Raises ValueError unless a feature covers a whole number of pixels and the tile of features.
    """
    h, w = features.shape[-2:]
    y, x = height // h, width // w
    if h * y != height or w * x != width or tile.rows.start % y or tile.columns.start % x:
        raise ValueError(f"features of {h}x{w} do not belong to an image padded to {height}x{width}")
    rows, columns = tile.rows, tile.columns
    return features[..., rows.start // y : rows.stop // y, columns.start // x : columns.stop // x]


def join_features(parts: Iterable[Sequence[Tensor]], windows: Sequence[Tile]) -> tuple[Tensor, ...]:
    """Feature maps [B, C, h, w] of the padded image, one per stage, from those of its windows.

    `parts` yields the stages of one window after the other, and may compute them as they are asked for: only those of
    one are held beside the result.
    """
    whole: tuple[Tensor, ...] = ()
    for stages, window in zip(parts, windows, strict=True):
        if len(windows) == 1:
            return tuple(stages)
        whole = whole or tuple(_empty_features(part, window, windows[-1]) for part in stages)
        (_, to_rows, to_columns), (_, from_rows, from_columns) = window.inner, window.kept
        for joined, part in zip(whole, stages, strict=True):
            y, x = _cell(part, window)
            kept = part[..., _divide(from_rows, y), _divide(from_columns, x)]
            joined[..., _divide(to_rows, y), _divide(to_columns, x)] = kept
    return whole


def _empty_features(part: Tensor, window: Tile, last: Tile) -> Tensor:
    """Room for the features of the whole padded image, whose last window is `last`."""
    y, x = _cell(part, window)
    return part.new_empty(*part.shape[:-2], last.rows.stop // y, last.columns.stop // x)


def _cell(part: Tensor, window: Tile) -> tuple[int, int]:
    """Pixels, down and across, that one feature of a window's part stands for."""
    rows, columns = window.rows, window.columns
    return (rows.stop - rows.start) // part.shape[-2], (columns.stop - columns.start) // part.shape[-1]


def _divide(pixels: slice, by: int) -> slice:
    return slice(pixels.start // by, pixels.stop // by)


def add_tile(canvas: Tensor, values: Tensor, tile: Tile, top: int = 0) -> None:
    """Blend a tile's result into `canvas` [..., h, W] in place; it starts at zero, every tile comes once.

    `top` is the image's row at which the canvas begins.
    """
    weights = tile.rows.weights()[:, None] * tile.columns.weights()[None, :]
    _, rows, columns = tile.inner
    canvas[..., rows.start - top : rows.stop - top, columns] += weights.to(canvas) * values[tile.kept].to(canvas)


def noise_tile(tile: Tile, block: int, seed: int, sample: int, step: int) -> Tensor:
    """The tile's part of the standard normal field of (seed, sample, step): [1, 3, h, w] float32 on the CPU.

    The field covers the plane in squares of `block` pixels, each with a generator of its own; tiles start and
    end at multiples of it. So overlapping tiles read the same noise, no field of the image's size is held,
    and padding or enlarging the image changes none of it.
    """
    rows = range(tile.rows.start, tile.rows.stop, block)
    columns = range(tile.columns.start, tile.columns.stop, block)
    strips = [torch.cat([_noise_block((seed, sample, step, y, x), block) for x in columns], -1) for y in rows]
    return torch.cat(strips, dim=-2)


def _noise_block(key: tuple[int, ...], size: int) -> Tensor:
    # Hashed, because torch's CPU generator reads only the lower 32 bits of a seed.
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randn(1, 3, size, size, generator=generator)
