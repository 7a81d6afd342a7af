"""RDDMDeconvolve: the classical way to deblur by a defocus map."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import CATEGORY


class RDDMDeconvolve(io.ComfyNode):
    """image, map, max_radius, method -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMDeconvolve",
            display_name="RDDM Deconvolve",
            category=CATEGORY,
            description="Deblurs by the map without a model: deconvolution with discs as large as the map says. "
            "The classical method, to compare with.",
            search_aliases=["Wiener", "Richardson-Lucy", "deconvolution", "deblur", "defocus", "classical", "sharpen"],
            inputs=[
                io.Image.Input("image", tooltip="The blurred photograph, or a batch of them."),
                io.Mask.Input(
                    "map",
                    tooltip="The defocus map: 0 in focus, 1 out of focus. From RDDM Edge Defocus Map or "
                    "RDDM Defocus Map, or painted by hand.",
                ),
                io.Float.Input(
                    "max_radius",
                    default=8.0,
                    min=0.5,
                    max=32.0,
                    step=0.5,
                    tooltip="Stronger blur than this many pixels (radius) is treated as this much. Lower it where "
                    "rings appear around edges.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(
                            "wiener",
                            [
                                io.Float.Input(
                                    "noise",
                                    default=0.01,
                                    min=0.0001,
                                    max=1.0,
                                    step=0.0001,
                                    tooltip="How noisy the photograph is taken to be. More gives a smoother, less "
                                    "sharp picture.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "richardson_lucy",
                            [
                                io.Int.Input(
                                    "iterations",
                                    default=15,
                                    min=1,
                                    max=200,
                                    tooltip="More give a sharper picture, and more noise and rings.",
                                )
                            ],
                        ),
                    ],
                    tooltip="wiener is fast. richardson_lucy takes longer and rings less.",
                ),
            ],
            outputs=[io.Image.Output(id="image", display_name="image", tooltip="The deblurred photograph.")],
        )

    @classmethod
    def execute(cls, image: Tensor, map: Tensor, max_radius: float, method: dict[str, Any]) -> io.NodeOutput:
        """Deconvolve."""
        from ..rddm_core.classical import deconvolve

        blurred, alpha = layout.picture(image, "image")
        defocus_map = layout.mask(map, "map", len(blurred))
        notices = layout.notices(map=defocus_map)
        options = {key: value for key, value in method.items() if key in ("noise", "iterations")}
        sharp = deconvolve(
            blurred,
            defocus_map,
            method=method["method"],
            max_radius=max_radius,
            callbacks=host.callbacks(),
            **options,
        )
        return io.NodeOutput(host.to_intermediate(layout.image(sharp, alpha)), ui=notices)
