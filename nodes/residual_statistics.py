"""RDDMResidualStatistics: what several samples agree on, and where they do not."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .colours import coloured
from .types import CATEGORY, RDDMResidual


class RDDMResidualStatistics(io.ComfyNode):
    """residual, full_scale -> RDDM_RESIDUAL, MASK, IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMResidualStatistics",
            display_name="RDDM Residual Statistics",
            category=CATEGORY,
            description="The mean of several samples, and how far they differ: where they do, the result is least "
            "certain.",
            search_aliases=["uncertainty", "confidence", "standard deviation", "variance", "mean", "deblur"],
            inputs=[
                RDDMResidual.Input(
                    "residual", tooltip="From RDDM Sampler, with 2 samples or more; 8 are a good start."
                ),
                io.Float.Input(
                    "full_scale",
                    default=0.1,
                    min=0.005,
                    max=1.0,
                    step=0.005,
                    tooltip="The difference between samples that is drawn as 1, as a share of the way from black to "
                    "white. Smaller shows fainter doubts.",
                ),
            ],
            outputs=[
                RDDMResidual.Output(
                    id="mean", display_name="mean", tooltip="The mean of the samples, for RDDM Merge Residual."
                ),
                io.Mask.Output(
                    id="uncertainty",
                    display_name="uncertainty",
                    tooltip="Standard deviation of the samples over full scale, from 0 (all agree) to 1.",
                ),
                io.Image.Output(
                    id="coloured", display_name="coloured", tooltip="The uncertainty in colours, above a scale."
                ),
            ],
        )

    @classmethod
    def execute(cls, residual: Tensor, full_scale: float) -> io.NodeOutput:
        """Mean and standard deviation over the samples."""
        from ..rddm_core.residuals import reduce_samples, sample_spread

        samples = layout.residual(residual, "residual")
        uncertainty = (sample_spread(samples) / full_scale).clamp(0, 1)
        captions = ("0 all agree", f"{full_scale / 2:.3g}", f"samples differ {full_scale:.3g}")
        return io.NodeOutput(
            host.to_intermediate(reduce_samples(samples, "mean")[:, None], torch.float32),
            host.to_intermediate(uncertainty[:, 0]),
            host.to_intermediate(layout.image(coloured(uncertainty, captions, check=host.callbacks().check))),
        )
