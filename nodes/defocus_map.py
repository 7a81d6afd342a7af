"""RDDMDefocusMap: where a photograph is out of focus."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from . import host, layout
from .colours import coloured
from .types import CATEGORY, RDDMModel, coloured_map_output, map_output


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
        blurred, _ = layout.picture(image, "image")
        estimated = host.estimate_map(model, blurred, host.callbacks())
        # For the button of `web/paint_map.js`: the mask editor takes a mask as what is transparent.
        paintable = layout.image(blurred[:1].cpu(), 1 - estimated[:1].cpu())
        return io.NodeOutput(
            host.to_intermediate(estimated[:, 0]),
            host.to_intermediate(layout.image(coloured(estimated))),
            ui={"rddm_paintable": ui.PreviewImage(paintable, cls=cls).values},
        )
