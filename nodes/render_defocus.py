"""RDDMRenderDefocus: depth of field for a sharp photograph."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import CATEGORY


class RDDMRenderDefocus(io.ComfyNode):
    """image, depth, focus, aperture, blades, bright_is -> IMAGE, MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMRenderDefocus",
            display_name="RDDM Render Defocus",
            category=CATEGORY,
            description="Blurs a sharp photograph as a lens would, by a depth map or a mask. After deblurring: "
            "choose the focus anew.",
            search_aliases=["refocus", "bokeh", "lens blur", "depth of field", "blur background", "tilt shift"],
            inputs=[
                io.Image.Input("image", tooltip="A photograph that is sharp everywhere, or a batch of them."),
                io.MultiType.Input(
                    "depth",
                    types=[io.Mask, io.Image],
                    tooltip="How far away things are: a depth map (from any depth estimator), a mask of the subject, "
                    "or a defocus map.",
                ),
                io.Float.Input(
                    "focus",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="What is sharp: the places where depth has this value. 1 = the white ones.",
                ),
                io.Float.Input(
                    "aperture",
                    default=8.0,
                    min=0.0,
                    max=128.0,
                    step=0.5,
                    tooltip="How much the rest is blurred: radius in pixels where depth differs from focus by 1.",
                ),
                io.Int.Input(
                    "blades",
                    default=0,
                    min=0,
                    max=12,
                    tooltip="Shape of blurred lights: 5 to 9 as of that many aperture blades, 0 (to 2) = round.",
                ),
                io.Combo.Input(
                    "bright_is",
                    options=["near", "far"],
                    default="near",
                    tooltip="near: white is close to the camera, as most depth estimators give it, and for masks of "
                    "the subject. far: white is far away; with focus 0 it suits a defocus map of the background.",
                ),
            ],
            outputs=[
                io.Image.Output(id="image", display_name="image", tooltip="The photograph with its new focus."),
                io.Mask.Output(
                    id="map", display_name="map", tooltip="Its defocus map, as RDDM Defocus Map would see it."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, depth: Tensor, focus: float, aperture: float, blades: int, bright_is: str
    ) -> io.NodeOutput:
        """Render."""
        from ..rddm_core.refocus import Lens, refocus

        sharp, alpha = layout.picture(image, "image")
        lens = Lens(focus, aperture, blades, near_is_bright=bright_is == "near")
        rendered, defocus_map = refocus(
            sharp, layout.plane(depth, "depth", len(sharp)), lens, callbacks=host.callbacks()
        )
        return io.NodeOutput(
            host.to_intermediate(layout.image(rendered, alpha)), host.to_intermediate(defocus_map[:, 0])
        )
