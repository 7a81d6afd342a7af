"""RDDMPreDeblur: the cheap first guess of the sharp picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import CATEGORY, RDDMModel


class RDDMPreDeblur(io.ComfyNode):
    """model, image, map? -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMPreDeblur",
            display_name="RDDM Pre-Deblur",
            category=CATEGORY,
            description="Makes a first, quick guess of the sharp photograph. RDDM Sampler then draws what is missing.",
            search_aliases=["deblur", "defocus", "out of focus", "sharpen", "refocus"],
            inputs=[
                RDDMModel.Input("model", tooltip="From Load RDDM Model."),
                io.Image.Input("image", tooltip="The blurred photograph, or a batch of them."),
                io.Mask.Input(
                    "map",
                    optional=True,
                    tooltip="The defocus map: 0 in focus, 1 out of focus. From RDDM Defocus Map, or painted by hand. "
                    "Without one it is estimated here.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    id="pre_deblurred",
                    display_name="pre_deblurred",
                    tooltip="The first guess. Its values may leave 0..1 a little; that is cut off when it is merged.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, image: Tensor, map: Tensor | None = None) -> io.NodeOutput:
        """Run the pre-deblur module, after the estimator where no map is connected."""
        from ..rddm_core.pipeline import pre_deblur

        blurred, alpha = layout.picture(image, "image")
        size = (blurred.shape[-2], blurred.shape[-1])
        watch = host.callbacks()
        notices = None
        if map is None:
            defocus_map = host.estimate_map(model, blurred, watch.share(0, 2))
            watch = watch.share(1, 2)
        else:
            defocus_map = layout.mask(map, "map", len(blurred))
            notices = layout.notices(map=defocus_map)
        guess = host.run_in_tiles(
            model,
            size,
            "auto",
            lambda networks, tile: pre_deblur(networks, blurred, defocus_map, tile=tile, callbacks=watch),
        )
        return io.NodeOutput(host.to_intermediate(layout.image(guess, alpha)), ui=notices)
