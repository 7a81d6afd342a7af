"""What a picture takes of memory, the tiles that a budget allows, and the signs that it ran out."""

from __future__ import annotations

import math
from typing import Literal

import torch

from .config import RDDMConfig
from .networks.deconvolution import CONTEXT, RAMP
from .orientation import COUNT
from .tiling import FEATHER, round_up

AUTO_TILE = 1408
"""tile="auto" without a budget: pictures up to the area of such a tile are processed whole, larger ones in tiles.
The largest size at which every tensor of `lite` stays below 32 MiB; larger ones glibc maps and clears anew."""
MIN_TILE = 128
"""A budget that does not even hold tiles of this many pixels is refused."""
GUIDANCE_WINDOW = 1408
"""Side in pixels of the windows in which the guidance of larger pictures is computed, or less for smaller tiles."""
GUIDANCE_CONTEXT = 192
"""What the backbone sees of the picture around such a window, in pixels."""
STRIP_BYTES = 25e6
"""What is alive within a strip of a block (networks/blocks.py)."""
BAG_BYTES = 9e6
"""The same of a deformable convolution on a CPU (networks/deformable.py)."""
OVERHEAD = 3.5
"""What the operating system may count on a CPU for a byte of live tensors: convolutions hold copies in layouts of their
own, and the heap has gaps, which differ from run to run. Measured: 2.2 to 2.6 with AVX2. With AVX-512
it is more: at 3.0, 45 megapixels took 2.07 of 2 GB, at 3.5 they take 1.9 (`python -m benchmarks --only large`)."""
SIGNS_OF_EXHAUSTION = (
    "out of memory",  # devices
    "defaultcpuallocator",
    "not enough memory",
    "can't allocate memory",
    "could not create a primitive",  # oneDNN, which does not even name it
    "can't start new thread",  # no memory for its stack
)
"""In lower case, in the text of a RuntimeError: torch has no error of its own for it on the CPU and on MPS."""


def network_bytes(config: RDDMConfig, height: int, width: int) -> int:
    """Bytes that the most demanding network allocates for a picture or tile of that size.

    Measured as the peak of live tensors in fp32, per pixel: 177 bytes in the denoiser of `lite`, and 90 more in small
    pictures, whose blocks are no larger than a strip; 2000 in that of `paper`, which has 32 channels at full resolution
    and deformable convolutions there (a CPU takes 1600, but 2500 in small pictures); 86 around a bank of six
    deconvolutions, and 39 per pixel of the picture padded for it; 232 in the guidance backbone, if it sees the whole
    picture. Per pixel of its working size the estimator takes 173 (lite) or 282 (paper). Rounded up by 5 to 25 %. Half
    precision needs less, but not half: deformable layers work in fp32.
    """
    pixels, denoiser = height * width, config.denoiser
    channels = denoiser.widths[0] / denoiser.unshuffle**2
    if denoiser.encoder_mixers[0] == "deformable":
        sampling = 70 * channels * pixels + min(12 * channels * pixels, BAG_BYTES)
    else:
        sampling = 46 * channels * pixels + min(22 * channels * pixels, STRIP_BYTES)
    padded = (height + 2 * CONTEXT + RAMP) * (width + 2 * CONTEXT + RAMP)
    bank = (66 + 4 * len(denoiser.deconvolution_radii)) * pixels + 44 * padded
    guidance = _backbone_bytes(config, height, width)
    estimator = (75 + 0.9 * config.estimator.decoder_width) * min(pixels, config.estimator.working_size**2)
    return round(max(sampling, bank, guidance, estimator))


def held_bytes(height: int, width: int, samples: int = 1, keep_stages: bool = False, mean: bool = False) -> int:
    """Bytes of a picture, its map and the results, float32, as `pipeline.deblur` holds them.

    A single result, as the mean is, takes the place of I_p, unless the stages are kept; then the residuals are there as
    well.
    """
    count = 1 if mean else samples
    results = 12 if count == 1 and not keep_stages else 12 + 12 * count
    residuals = 12 * samples if keep_stages else 0
    return (12 + 4 + results + residuals) * height * width


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is why: MemoryError, torch's error for devices, or a RuntimeError with one of SIGNS_OF_EXHAUSTION.

    Other errors are not read: they may name a file with such words in its path.
    """
    # torch.OutOfMemoryError by the name that older versions have as well.
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS_OF_EXHAUSTION)


def fits_in_one_tile(height: int, width: int, side: int) -> bool:
    """Whether a picture, with the border that makes it one tile (`tiling.plan_axis`), has no more pixels than a square
    tile of that side."""
    return max(height, FEATHER) * max(width, FEATHER) <= side * side


def tile_size(
    choice: int | Literal["auto"] | None,
    height: int,
    width: int,
    config: RDDMConfig,
    memory: int | None = None,
    samples: int = 1,
    keep_stages: bool = False,
    mean: bool = False,
) -> int | None:
    """Longest side of a tile for a picture of that size; None is the whole picture at once.

    "auto" takes the largest tiles, up to AUTO_TILE, that fit into `memory` bytes together with what `held_bytes`
    counts; any other choice is returned as it is. Raises ValueError where `memory` is too little for the picture.
    """
    if choice != "auto":
        return choice
    side = AUTO_TILE
    if memory is not None:
        left = memory - held_bytes(height, width, samples, keep_stages, mean)
        left -= guidance_bytes(config, height, width, samples)
        side = largest_tile(config, left, width, samples)
        if side < MIN_TILE:
            lacking = _tile_bytes(config, MIN_TILE, width, samples) - left
            raise ValueError(
                f"{lacking / 1e6:.0f} MB more are needed for a picture of {width}x{height} than the memory allowed: "
                "allow more, or choose a smaller working size"
            )
    return None if fits_in_one_tile(height, width, side) else side


def largest_tile(config: RDDMConfig, memory: int, width: int, samples: int = 1) -> int:
    """The longest side, a multiple of 64 pixels from 0 to AUTO_TILE, of tiles that `memory` bytes hold for a picture of
    that width.
    """
    sides = range(AUTO_TILE, 0, -64)
    return next((side for side in sides if _tile_bytes(config, side, width, samples) <= memory), 0)


def wanted_bytes(config: RDDMConfig, height: int, width: int, samples: int = 1) -> int:
    """What the networks' device should have free for the tiles that tile="auto" takes without a budget: of AUTO_TILE,
    or as large as a smaller picture. With the guidance of the whole picture."""
    side = min(AUTO_TILE, round_up(math.isqrt(max(height, FEATHER) * max(width, FEATHER) - 1) + 1, 64))
    return _tile_bytes(config, side, width, samples) + guidance_bytes(config, height, width, samples)


def guidance_bytes(config: RDDMConfig, height: int, width: int, samples: int = 1) -> int:
    """Bytes of the guidance features of a whole picture in every orientation that its samples see, float32; stages at
    1/4, 1/8 and 1/16 of its (reduced) side."""
    per_pixel = 4 * config.guidance.width * sum(1 / 16 / 4**stage for stage in range(len(config.guidance.stages)))
    return round(min(samples, COUNT) * per_pixel * height * width / config.guidance.reduction**2)


def guidance_window(tile: int | None) -> int:
    """Side of the windows of guidance: twice that of the tiles (None: no tiles), up to GUIDANCE_WINDOW."""
    return GUIDANCE_WINDOW if tile is None else min(2 * tile, GUIDANCE_WINDOW)


def _backbone_bytes(config: RDDMConfig, height: int, width: int) -> float:
    return 320 / config.guidance.reduction**2 * height * width


def _tile_bytes(config: RDDMConfig, side: int, width: int, samples: int) -> int:
    """Of the networks, as the operating system counts, and of the rows of residual that a row of tiles shares."""
    window = guidance_window(side) + 2 * GUIDANCE_CONTEXT
    networks = max(network_bytes(config, side, side), _backbone_bytes(config, window, window))
    return round(OVERHEAD * networks) + 12 * samples * width * side
