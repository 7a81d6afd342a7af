"""Pictures to measure on, of any size, all made from the examples or from nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rddm_core.images import load_image

from .process import ROOT

EXAMPLE = ROOT / "examples" / "sign.blur.jpg"

SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "0.1": (256, 384),
        "0.25": (384, 640),
        "0.6": (640, 960),
        "1": (832, 1216),
        "4": (1664, 2432),
        "12": (3008, 4032),
        "45": (5504, 8256),
    }
)
"""Megapixels -> height and width; multiples of 64, so that no network pays for padding."""


def photograph(height: int, width: int, file: Path = EXAMPLE) -> Tensor:
    """An example photograph, mirrored again and again until it fills [1, 3, height, width].

    Written into the result piece by piece, so that making it needs hardly more memory than holding it.
    """
    example = load_image(file).pixels
    h, w = example.shape[1:]
    result = torch.empty(1, 3, height, width)
    for i in range(math.ceil(height / h)):
        for j in range(math.ceil(width / w)):
            turned = example.flip([axis for axis, n in ((1, i), (2, j)) if n % 2])
            place = result[0, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
            place.copy_(turned[:, : place.shape[1], : place.shape[2]])
    return result


def save_photograph(path: Path | str, height: int, width: int) -> None:
    """The same as a JPEG file."""
    pixels = photograph(height, width)[0].mul_(255).round_().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(path, quality=92)


def sky(height: int, width: int) -> Tensor:
    """A flat sky: a slow change from blue to pale, in the 256 values of a file. [1, 3, height, width]."""
    down = torch.linspace(0, 1, height)[:, None] + 0.1 * torch.linspace(0, 1, width)[None, :]
    top, bottom = torch.tensor([0.35, 0.55, 0.85]), torch.tensor([0.75, 0.85, 0.95])
    return _eight_bits(torch.lerp(top[:, None, None], bottom[:, None, None], down / 1.1))


def gratings(height: int, width: int) -> Tensor:
    """Bands of gratings with periods of 2 to 64 pixels, upright in the left half and lying in the right one."""
    periods = (2, 3, 5, 8, 13, 21, 34, 64)
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    band = (y * len(periods) // height).expand(height, width)
    period = torch.tensor(periods)[band]
    along = torch.where(x < width // 2, x, y)
    return _eight_bits((0.5 + 0.45 * torch.cos(2 * math.pi * along / period)).expand(3, -1, -1))


def text(height: int, width: int) -> Tensor:
    """A page of black letters of three sizes."""
    page = Image.new("L", (width, height), 245)
    draw = ImageDraw.Draw(page)
    line, y, row = "the quick brown fox jumps over the lazy dog 0123456789 ", 0, 0
    while y < height:
        size = (11, 16, 26)[row % 3]
        draw.text((0, y), line * (width // (size * 12) + 1), fill=20, font=ImageFont.load_default(size))
        y, row = y + round(1.5 * size), row + 1
    values = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
    return (values.reshape(1, 1, height, width) / 255).expand(-1, 3, -1, -1).contiguous()


def _eight_bits(picture: Tensor) -> Tensor:
    return ((picture.clamp(0, 1) * 255).round() / 255)[None].contiguous()
