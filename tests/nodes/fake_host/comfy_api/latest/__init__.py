"""The V3 schema, as much of it as the pack uses."""

from __future__ import annotations

from . import io, ui

__all__ = ["ComfyExtension", "io", "ui"]


class ComfyExtension:
    """What a pack's entry point returns."""

    async def on_load(self) -> None:
        """Called first."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        raise NotImplementedError
