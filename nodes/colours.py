"""A defocus map in colours, with a scale below it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = (
    (0.05, 0.03, 0.20),
    (0.20, 0.18, 0.55),
    (0.10, 0.48, 0.62),
    (0.35, 0.75, 0.45),
    (0.99, 0.93, 0.45),
)
"""From in focus to out of focus; each brighter than the one before, so that the order survives without colours."""


def coloured(defocus_map: Tensor) -> Tensor:
    """Defocus map [B, 1, H, W] in 0..1 -> picture [B, 3, H + scale, W] in 0..1."""
    bar = _scale_bar(defocus_map.shape[-1]).to(defocus_map)
    return torch.cat((colourise(defocus_map), bar.expand(len(defocus_map), -1, -1, -1)), dim=2)


def colourise(values: Tensor) -> Tensor:
    """[B, 1, H, W] in 0..1 -> [B, 3, H, W], linearly between COLOURS."""
    table = torch.tensor(COLOURS, device=values.device)
    position = values[:, 0].float() * (len(table) - 1)
    below = position.floor().long().clamp(0, len(table) - 2)
    mixed = torch.lerp(table[below], table[below + 1], (position - below).unsqueeze(-1))
    return mixed.movedim(-1, 1).to(values.dtype)


def _scale_bar(width: int) -> Tensor:
    """[1, 3, h, width]: the colours from 0 to 1, and their meaning below."""
    text_height = max(10, min(28, width // 28))
    bar_height = 2 * text_height
    ramp = colourise(torch.linspace(0, 1, width).expand(1, 1, text_height, width))
    captions = Image.new("RGB", (width, bar_height))
    draw = ImageDraw.Draw(captions)
    font = ImageFont.load_default(size=text_height)
    middle, margin = bar_height // 2, text_height // 2
    ends = ((margin, "0 in focus", "lm"), (width // 2, "0.5", "mm"), (width - margin, "out of focus 1", "rm"))
    for x, text, anchor in ends:
        draw.text((x, middle), text, fill=(255, 255, 255), font=font, anchor=anchor)
    rows = torch.from_numpy(np.asarray(captions).copy()).movedim(-1, 0)[None].float() / 255
    return torch.cat((ramp, rows), dim=2)
