"""RDDMResidualMerge: the result, as an adjustable change of the original."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import CATEGORY, RDDMResidual, mask_input, strength_input


class RDDMResidualMerge(io.ComfyNode):
    """original, pre_deblurred, residual, map?, mask?, strength, protect_sharp, reduction -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMResidualMerge",
            display_name="RDDM Merge Residual",
            category=CATEGORY,
            description="original + strength * mask * (pre_deblurred + residual - original). With strength 0, or where "
            "the mask is 0, the original stays exactly as it is.",
            search_aliases=["deblur", "blend", "defocus", "out of focus", "sharpen", "strength"],
            inputs=[
                io.Image.Input("original", tooltip="The blurred photograph that everything started from."),
                io.Image.Input("pre_deblurred", tooltip="The first guess, from RDDM Pre-Deblur."),
                RDDMResidual.Input("residual", tooltip="From RDDM Sampler."),
                io.Mask.Input(
                    "map", optional=True, tooltip="The defocus map. Only read if protect_sharp is more than 0."
                ),
                mask_input(),
                strength_input(),
                io.Float.Input(
                    "protect_sharp",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Leave alone what the map calls sharp: 0 = change everything, 1 = change in proportion to "
                    "the map. Needs the map.",
                ),
                io.DynamicCombo.Input(
                    "reduction",
                    options=[
                        io.DynamicCombo.Option("first", []),
                        io.DynamicCombo.Option(
                            "index",
                            [io.Int.Input("index", default=0, min=0, max=63, tooltip="Which sample, counted from 0.")],
                        ),
                        io.DynamicCombo.Option("mean", []),
                        io.DynamicCombo.Option("median", []),
                    ],
                    tooltip="How several samples become one picture. mean and median are steadier, but smoother.",
                ),
            ],
            outputs=[io.Image.Output(id="image", display_name="image", tooltip="The deblurred photograph.")],
        )

    @classmethod
    def execute(
        cls,
        original: Tensor,
        pre_deblurred: Tensor,
        residual: Tensor,
        strength: float,
        protect_sharp: float,
        reduction: dict[str, Any],
        map: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        """Reduce the samples to one and merge."""
        from ..rddm_core.pipeline import merge_residual
        from ..rddm_core.residuals import reduce_samples

        blurred, alpha = layout.picture(original, "original")
        guess, _ = layout.picture(pre_deblurred, "pre_deblurred", bounded=False)
        samples = layout.residual(residual, "residual")
        for name, planes in (("pre_deblurred", guess), ("residual", samples)):
            layout.check_batch(planes, name, len(blurred))
            layout.check_size(planes, name, blurred, "original")
        weight = None if mask is None else layout.mask(mask, "mask", len(blurred))
        defocus_map, subject = None, weight
        if protect_sharp > 0:
            if map is None:
                raise ValueError("protect_sharp needs to know what is sharp: connect the defocus map, or set it to 0")
            defocus_map = layout.fit(layout.mask(map, "map", len(blurred)), blurred)
            allowed = 1 - protect_sharp * (1 - defocus_map)
            weight = allowed if weight is None else allowed * layout.fit(weight, blurred)
        notices = layout.notices(map=defocus_map, mask=subject)
        change = reduce_samples(samples, reduction["reduction"], reduction.get("index", 0))
        merged = merge_residual(blurred, guess, change, strength=strength, mask=weight)
        return io.NodeOutput(host.to_intermediate(layout.image(merged, alpha)), ui=notices)
