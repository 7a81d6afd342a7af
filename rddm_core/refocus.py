"""Depth of field for pictures that are sharp everywhere, from a depth map: the way back from deblurring."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .callbacks import Callbacks
from .checks import check_map, check_picture
from .classical import WORKING_SIZE
from .optics import Aperture, map_from_radius, render_defocus

LEVELS = 16
"""Layers into which a scene is cut; with fewer, gradients of depth show steps."""
MAX_RADIUS = 128.0
"""Largest radius in pixels; the memory for its spots grows with the square."""


@dataclass(frozen=True)
class Lens:
    """What is in focus, and how much the rest is blurred. Raises ValueError for values out of range.

    Attributes:
        focus: value of the depth map that is sharp, 0..1.
        radius: radius of the blur in pixels of the picture where the map differs from `focus` by 1, 0..MAX_RADIUS.
        blades: 3 or more for the polygon of that many aperture blades, fewer for a round aperture.
        near_is_bright: the map holds nearness (1 the nearest, as depth estimators give it) rather than distance.
    """

    focus: float = 1.0
    radius: float = 8.0
    blades: int = 0
    near_is_bright: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.focus <= 1:
            raise ValueError(f"focus must lie in 0..1, not {self.focus}")
        if not 0 <= self.radius <= MAX_RADIUS:
            raise ValueError(f"the blur's radius must lie in 0..{MAX_RADIUS:g} pixels, not {self.radius}")
        if self.blades < 0:
            raise ValueError(f"blades must be 0 (round) or more, not {self.blades}")


@torch.inference_mode()
def refocus(image: Tensor, depth: Tensor, lens: Lens, *, callbacks: Callbacks = Callbacks()) -> tuple[Tensor, Tensor]:
    """Render the depth of field of a thin lens: pictures [B, 3, H, W] and their defocus map [B, 1, H, W], in 0..1.

    The circle of confusion of a thin lens is linear in the inverse of the distance, 1/D - 1/d up to a factor
    (`optics.circle_of_confusion`), and so in the nearness that depth estimators give.

    Args:
        image: sRGB in 0..1.
        depth: [B or 1, 1, h, w] in 0..1, resized to the picture.
        callbacks: progress counts LEVELS for each picture; fewer layers take larger steps.

    The map counts pixels of a long side of WORKING_SIZE, as `classical.edge_defocus_map` and the learned estimator
    do. Raises ValueError for inputs that do not fit.

    Memory beside the inputs, measured as the growth of the resident set for one picture: 82 bytes per pixel of 6
    megapixels at a radius of 8, 103 for triangles of half of MAX_RADIUS on 3 megapixels (as of MAX_RADIUS on 12).
    """
    check_picture(image, "image")
    check_map(depth, len(image), "depth")
    batch, _, height, width = image.shape
    scale = max(1.0, max(height, width) / WORKING_SIZE)
    pictures = image.new_empty(image.shape, dtype=torch.float32)
    maps = pictures.new_empty(batch, 1, height, width)
    for b in range(batch):
        item = depth[b % len(depth)][None].float().cpu()
        if item.shape[-2:] != image.shape[-2:]:
            item = F.interpolate(item, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        behind = lens.focus - item if lens.near_is_bright else item - lens.focus
        radius = lens.radius * behind[0, 0]
        pictures[b] = render_defocus(
            image[b].float().cpu(),
            radius,
            Aperture(lens.blades, rotation=math.pi / 2),
            levels=LEVELS,
            callbacks=replace(callbacks, progress=partial(_report, callbacks, b, batch)),
        )
        maps[b, 0] = map_from_radius(radius / scale)
    return pictures, maps


def _report(callbacks: Callbacks, b: int, batch: int, done: int, layers: int) -> None:
    """`done` of the `layers` of picture `b`, of which each counts as LEVELS."""
    callbacks.report(b * LEVELS + done * LEVELS // layers, batch * LEVELS)
