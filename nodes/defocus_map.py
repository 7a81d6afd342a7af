"""RDDMDefocusMap: where a photograph is out of focus."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from . import host, layout
from .colours import coloured
from .types import CATEGORY, RDDMModel, coloured_map_output, map_output

PAINTED_SIZE = 2048
"""Long side in pixels of the picture for the mask editor, at most. A map is smooth, and its size does not matter."""


class RDDMDefocusMap(io.ComfyNode):
    """model, image -> MASK, IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMDefocusMap",
            display_name="RDDM Defocus Map",
            category=CATEGORY,
            description="Estimates where a photograph is out of focus. The map is a mask: edit it with any mask node.",
            search_aliases=["blur map", "focus mask", "defocus", "out of focus", "depth of field", "bokeh"],
            # The button's picture is sent again when the map itself is still known and nothing runs.
            has_intermediate_output=True,
            inputs=[
                RDDMModel.Input("model", tooltip="From Load RDDM Model."),
                io.Image.Input("image", tooltip="The blurred photograph, or a batch of them."),
            ],
            outputs=[map_output(), coloured_map_output()],
        )

    @classmethod
    def execute(cls, model: Any, image: Tensor) -> io.NodeOutput:
        """Run the estimator."""
        from ..rddm_core.networks.defocus_estimator import reduce_to

        blurred, _ = layout.picture(image, "image")
        watch = host.callbacks()
        estimated = host.estimate_map(model, blurred, watch)
        # For the button of `web/paint_map.js`: the mask editor takes a mask as what is transparent.
        shown, shown_map = (reduce_to(planes[:1].cpu(), PAINTED_SIZE) for planes in (blurred, estimated))
        paintable = ui.PreviewImage(layout.image(shown, 1 - shown_map), cls=cls)
        return io.NodeOutput(
            host.to_intermediate(estimated[:, 0]),
            host.to_intermediate(layout.image(coloured(estimated, check=watch.check))),
            ui={"rddm_paintable": paintable.values, "rddm_pictures": [len(blurred)]},
        )
