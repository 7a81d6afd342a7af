"""What a picture takes of memory, and the tiles that a budget allows."""

from __future__ import annotations

import math
from typing import Literal

from .config import RDDMConfig

AUTO_TILE = 1536
"""tile="auto" without a budget: pictures up to the area of such a tile are processed whole, larger ones in tiles."""
MIN_TILE = 128
"""A budget that does not even hold tiles of this many pixels is refused."""


def network_bytes(config: RDDMConfig, height: int, width: int) -> int:
    """Bytes that the most demanding network allocates for a picture or tile of that size.

    Measured as the peak of live tensors in fp32, per pixel: 227 bytes in the denoiser of `lite`, 2003 in that of
    `paper`, which has 32 channels at full resolution; 273 in the guidance backbone, if it sees the whole picture; 25
    for each radius of the deconvolution bank. Per pixel of its working size the estimator takes 352 (lite) or 640
    (paper). Rounded up by 10 to 25 %. Half precision needs less, but not half: deformable layers work in fp32.
    """
    sampling = _bytes_per_pixel(config) * height * width
    estimator = 3.2 * config.estimator.decoder_width * min(height * width, config.estimator.working_size**2)
    return round(max(sampling, estimator))


def held_bytes(height: int, width: int, samples: int = 1) -> int:
    """Bytes of a picture, its map and the results, float32, as `pipeline.deblur` holds them."""
    return (12 + 4 + 12 * samples) * height * width


def tile_size(
    choice: int | Literal["auto"] | None,
    height: int,
    width: int,
    config: RDDMConfig,
    memory: int | None = None,
    samples: int = 1,
) -> int | None:
    """Longest side of a tile for a picture of that size; None is the whole picture at once.

    "auto" takes the largest tiles, up to AUTO_TILE, that fit into `memory` bytes together with the picture; any other
    choice is returned as it is. Raises ValueError where `memory` is too little for the picture.
    """
    if choice != "auto":
        return choice
    side = AUTO_TILE
    if memory is not None:
        left = memory - held_bytes(height, width, samples) - guidance_bytes(config, height, width)
        side = min(side, largest_tile(config, left, width, samples))
        if side < MIN_TILE:
            lacking = _tile_bytes(config, MIN_TILE, width, samples) - left
            raise ValueError(
                f"{lacking / 1e6:.0f} MB more are needed for a picture of {width}x{height} than the memory allowed: "
                "allow more, or choose a smaller working size"
            )
    return None if height * width <= side * side else side


def largest_tile(config: RDDMConfig, memory: int, width: int, samples: int = 1) -> int:
    """The longest side, a multiple of 64 pixels and 0 at least, of tiles that `memory` bytes hold for a picture of
    that width.
    """
    # The networks' work grows with the side squared, the rows of residual that a row of tiles shares with the side.
    square, linear = _bytes_per_pixel(config), 12.0 * samples * width
    side = (math.sqrt(linear * linear + 4 * square * max(memory, 0)) - linear) / (2 * square)
    return int(side) // 64 * 64


def guidance_bytes(config: RDDMConfig, height: int, width: int) -> int:
    """Bytes of the guidance features of a whole picture, float32; stages at 1/4, 1/8 and 1/16 of its (reduced) side."""
    per_pixel = 4 * config.guidance.width * sum(1 / 16 / 4**stage for stage in range(len(config.guidance.stages)))
    return round(per_pixel * height * width / config.guidance.reduction**2)


def _tile_bytes(config: RDDMConfig, side: int, width: int, samples: int) -> float:
    return _bytes_per_pixel(config) * side * side + 12.0 * samples * width * side


def _bytes_per_pixel(config: RDDMConfig) -> float:
    channels = config.denoiser.widths[0] / config.denoiser.unshuffle**2
    bank = 28 * len(config.denoiser.deconvolution_radii)
    return max(320 / config.guidance.reduction**2, bank, 70 * channels)
