"""The tile size that a node works with."""

from __future__ import annotations


def automatic_tile(height: int, width: int) -> int | None:
    """The core's own choice by area: None for the whole picture at once."""
    from ..rddm_core.pipeline import AUTO_TILE, WHOLE_IMAGE_PIXELS

    return AUTO_TILE if height * width > WHOLE_IMAGE_PIXELS else None
