"""Between pictures as files hold them (rows of interleaved values) and planar tensors, part by part.

A photograph of 45 megapixels takes half a gigabyte as float32, so no second copy of it is made on either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STRIP_PIXELS = 1 << 18
"""Strips of whole rows hold about this many pixels."""


class NotFiniteError(ValueError):
    """A picture holds NaN or infinite values."""


@dataclass(frozen=True)
class Block:
    """A part of a stored picture: `values` [h, w, C], of which the first belongs to (channel, top, left)."""

    values: np.ndarray
    top: int = 0
    left: int = 0
    channel: int = 0


def strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row, and row after the last, of strips that cover a picture."""
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def to_planes(
    blocks: Iterable[Block],
    size: tuple[int, int],
    *,
    grey: bool,
    alpha: bool,
    white: float,
    orientation: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """The upright picture: pixels [3, H, W] and, if there is one, alpha [1, H, W]; float32, `white` becomes 1.

    Args:
        blocks: the parts of the stored picture, with one colour channel (`grey`) or three, then alpha.
            Further channels are left out.
        size: height and width as stored; orientations 5 to 8 exchange them.
        orientation: EXIF's, 1 to 8.
    """
    upright = (size[1], size[0]) if orientation >= 5 else size
    pixels = np.empty((3, *upright), np.float32)
    opacity = np.empty((1, *upright), np.float32) if alpha else None
    planes = list(pixels[:1] if grey else pixels) + list(opacity if opacity is not None else ())
    stored = [_as_stored(plane, orientation) for plane in planes]
    for block in blocks:
        height, width, channels = block.values.shape
        rows, columns = slice(block.top, block.top + height), slice(block.left, block.left + width)
        for i in range(min(channels, len(stored) - block.channel)):
            target = stored[block.channel + i][rows, columns]
            np.divide(block.values[:, :, i], np.float32(white), out=target, dtype=np.float32)
    if grey:
        pixels[1:] = pixels[0]
    return torch.from_numpy(pixels), None if opacity is None else torch.from_numpy(opacity)


def to_strips(pixels: Tensor, alpha: Tensor | None, *, grey: bool, bits: int) -> Iterator[np.ndarray]:
    """Rows [h, W, C] of pixels [3, H, W] and alpha [1, H, W], clipped to 0..1, from top to bottom.

    Args:
        grey: write the mean of the colours as one channel.
        bits: 8 (uint8), 16 (uint16) or 32 (float32 in 0..1).

    Raises NotFiniteError at the first strip with NaN or infinity.
    """
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    for top, bottom in strips(*pixels.shape[1:]):
        planes = pixels[:, top:bottom].detach().to("cpu", torch.float32)
        if grey:  # in double precision: the mean of three equal values is then that value
            planes = planes.double().mean(dim=0, keepdim=True).float()
        if alpha is not None:
            planes = torch.cat((planes, alpha[:, top:bottom].detach().to(planes)))
        if not bool(torch.isfinite(planes).all()):
            raise NotFiniteError
        values = planes.clamp(0, 1).permute(1, 2, 0).contiguous()
        if bits < 32:
            values = values.mul_(2**bits - 1).round_()
        yield values.numpy().astype(dtype, copy=False)


def divide_by_alpha(pixels: Tensor, alpha: Tensor) -> None:
    """Undo, in place, the multiplication of colours [3, H, W] by alpha [1, H, W]."""
    for top, bottom in strips(*pixels.shape[1:]):
        opacity = alpha[:, top:bottom]
        part = pixels[:, top:bottom]
        part.copy_(torch.where(opacity > 0, part / opacity, part).clamp(0, 1))


def _as_stored(plane: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an upright plane [H, W] in which rows and columns run as in the file."""
    view = plane.T if orientation >= 5 else plane
    vertical = -1 if orientation in (3, 4, 6, 7) else 1
    horizontal = -1 if orientation in (2, 3, 7, 8) else 1
    return view[::vertical, ::horizontal]
