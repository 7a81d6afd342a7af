"""Maps as pictures in colours, with a scale below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colours = Sequence[tuple[float, float, float]]

COLOURS = (
    (0.05, 0.03, 0.20),
    (0.20, 0.18, 0.55),
    (0.10, 0.48, 0.62),
    (0.35, 0.75, 0.45),
    (0.99, 0.93, 0.45),
)
"""From in focus to out of focus; each brighter than the one before, so that the order survives without colours."""

SIGNED_COLOURS = (
    (0.02, 0.12, 0.42),
    (0.20, 0.45, 0.75),
    (0.50, 0.50, 0.50),
    (0.95, 0.70, 0.35),
    (1.00, 0.95, 0.75),
)
"""From darker (blue) over unchanged (grey) to brighter (orange); each brighter than the one before."""

FOCUS_SCALE = ("0 in focus", "0.5", "out of focus 1")


def coloured(
    values: Tensor,
    captions: Sequence[str] = FOCUS_SCALE,
    colours: Colours = COLOURS,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Map [B, 1, H, W] in 0..1 -> picture [B, 3, H + scale, W] in 0..1.

    `captions` stand at the left end, in the middle and at the right end of the scale. `check` is called before every
    picture, and may end it all by raising.
    """
    batch, _, height, width = values.shape
    bar = _scale_bar(width, captions, colours).to(values)
    result = values.new_empty(batch, 3, height + bar.shape[2], width)
    result[:, :, height:] = bar
    for b in range(batch):  # a batch may be a whole film
        check()
        result[b : b + 1, :, :height] = colourise(values[b : b + 1], colours)
    return result


def colourise(values: Tensor, colours: Colours = COLOURS) -> Tensor:
    """[B, 1, H, W] in 0..1 -> [B, 3, H, W], linearly between the colours."""
    table = torch.tensor(colours, device=values.device)
    position = values[:, 0].float() * (len(table) - 1)
    below = position.floor().long().clamp(0, len(table) - 2)
    mixed = torch.lerp(table[below], table[below + 1], (position - below).unsqueeze(-1))
    return mixed.movedim(-1, 1).to(values.dtype)


def _scale_bar(width: int, captions: Sequence[str], colours: Colours) -> Tensor:
    """[1, 3, h, width]: the colours from 0 to 1, and their meaning below."""
    text_height = max(10, min(28, width // 28 // 2 * 2))  # even, as the pictures of a video must be
    bar_height = 2 * text_height
    ramp = colourise(torch.linspace(0, 1, width).expand(1, 1, text_height, width), colours)
    picture = Image.new("RGB", (width, bar_height))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=text_height)
    middle, margin = bar_height // 2, text_height // 2
    for x, text, anchor in zip((margin, width // 2, width - margin), captions, ("lm", "mm", "rm"), strict=True):
        draw.text((x, middle), text, fill=(255, 255, 255), font=font, anchor=anchor)
    rows = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)[None].float() / 255
    return torch.cat((ramp, rows), dim=2)
