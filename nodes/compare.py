"""RDDMCompare: before and after under one slider."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from . import host, layout
from .types import CATEGORY


class RDDMCompare(io.ComfyNode):
    """before, after -> shown."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs; what it shows is drawn by `web/compare.js`."""
        return io.Schema(
            node_id="RDDMCompare",
            display_name="RDDM Compare",
            category=CATEGORY,
            description="Shows two pictures under a slider, at 100 % and 200 % too, or their difference.",
            search_aliases=["before after", "slider", "image comparer", "compare images", "difference", "A/B"],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="Shown on the left: one picture, or a batch."),
                io.Image.Input(
                    "after",
                    tooltip="Shown on the right: as many pictures as before, or one of the two is a single picture. "
                    "It may have another size, for example after an upscaler.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before: Tensor, after: Tensor) -> io.NodeOutput:
        """Save previews for the slider. Raises ValueError for batches that do not go together."""
        planes = {name: layout.picture(image, name) for name, image in (("before", before), ("after", after))}
        counts = [len(colours) for colours, _ in planes.values()]
        if min(counts) not in (1, max(counts)):
            raise ValueError(
                f"before has {counts[0]} pictures, but after has {counts[1]}: "
                "connect the same number, or a single picture on one side"
            )
        watch, done = host.callbacks(), 0
        # Names of our own: under `images` the host would show them once more, below the slider.
        shown: dict[str, list[Any]] = {f"rddm_{name}": [] for name in planes}
        for files, (colours, alpha) in zip(shown.values(), planes.values(), strict=True):
            for b in range(len(colours)):  # one at a time: a film takes minutes, and can be stopped
                watch.check()
                picture = layout.image(colours[b : b + 1], None if alpha is None else alpha[b : b + 1])
                files += ui.PreviewImage(picture, cls=cls).values
                watch.report(done := done + 1, sum(counts))
            # For a list of inputs the host joins what every run has sent, and a pair must stay a pair.
            files *= max(counts) // len(colours)
        return io.NodeOutput(ui=shown)
