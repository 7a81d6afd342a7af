"""RDDMResidualPreview: a residual as a picture to look at."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .colours import SIGNED_COLOURS, coloured
from .types import CATEGORY, RDDMResidual


class RDDMResidualPreview(io.ComfyNode):
    """residual, gain -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMResidualPreview",
            display_name="RDDM Residual Preview",
            category=CATEGORY,
            description="Shows what the sampler adds to the first guess: blue where it darkens, grey where it changes "
            "nothing, orange where it brightens.",
            search_aliases=["difference", "visualize", "visualise", "heat map", "residual", "deblur"],
            inputs=[
                RDDMResidual.Input("residual", tooltip="From RDDM Sampler or RDDM Residual Statistics."),
                io.Float.Input(
                    "gain",
                    default=8.0,
                    min=0.5,
                    max=64.0,
                    step=0.5,
                    tooltip="How strongly small changes are shown. The ends of the scale are at 1 / gain, where 1 is "
                    "the way from black to white.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    id="image",
                    display_name="image",
                    tooltip="One picture for each sample, above a scale. In a batch, all samples of the first picture "
                    "come first.",
                )
            ],
        )

    @classmethod
    def execute(cls, residual: Tensor, gain: float) -> io.NodeOutput:
        """Colour the change of brightness."""
        samples = layout.residual(residual, "residual").flatten(0, 1)
        weights = samples.new_tensor([0.299, 0.587, 0.114])[:, None, None]
        change = torch.stack([(sample * weights).sum(dim=0, keepdim=True) for sample in samples])
        captions = (f"{-1 / gain:.3g} darker", "0", f"brighter +{1 / gain:.3g}")
        shown = coloured(
            change.mul_(0.5 * gain).add_(0.5).clamp_(0, 1), captions, SIGNED_COLOURS, host.callbacks().check
        )
        return io.NodeOutput(host.to_intermediate(layout.image(shown)))
