"""RDDMEdgeDefocusMap: where a photograph is out of focus, from its edges alone."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .colours import coloured
from .types import CATEGORY, coloured_map_output, map_output


class RDDMEdgeDefocusMap(io.ComfyNode):
    """image -> MASK, IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMEdgeDefocusMap",
            display_name="RDDM Edge Defocus Map",
            category=CATEGORY,
            description="Measures at every edge how blurred it is and spreads that over the surfaces between "
            "(Zhuo and Sim 2011). Needs no model; RDDM Defocus Map is the learned one.",
            search_aliases=["blur map", "focus mask", "defocus", "out of focus", "Zhuo Sim", "classical"],
            inputs=[io.Image.Input("image", tooltip="The blurred photograph, or a batch of them.")],
            outputs=[map_output(), coloured_map_output()],
        )

    @classmethod
    def execute(cls, image: Tensor) -> io.NodeOutput:
        """Estimate the map."""
        from ..rddm_core.classical import edge_defocus_map

        blurred, _ = layout.picture(image, "image")
        watch = host.callbacks()
        estimated = edge_defocus_map(blurred, callbacks=watch)
        return io.NodeOutput(
            host.to_intermediate(estimated[:, 0]),
            host.to_intermediate(layout.image(coloured(estimated, check=watch.check))),
        )
