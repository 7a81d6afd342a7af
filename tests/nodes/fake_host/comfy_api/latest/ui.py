"""What nodes show on themselves, as much of it as the pack uses. Nothing is written to disk."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class PreviewImage:
    """Pictures for the front end; the host saves them and gives their file names."""

    def __init__(self, image: Tensor, cls: Any = None) -> None:
        self.values = [{"filename": f"{i}.png", "subfolder": "", "type": "temp"} for i in range(len(image))]


class PreviewText:
    """A text for the front end."""

    def __init__(self, value: str) -> None:
        self.value = value
