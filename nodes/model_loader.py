"""RDDMModelLoader: a checkpoint in the care of ComfyUI's model management."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .types import CATEGORY, RDDMModel


class RDDMModelLoader(io.ComfyNode):
    """file, dtype -> RDDM_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; the list of files is read anew each time."""
        return io.Schema(
            node_id="RDDMModelLoader",
            display_name="Load RDDM Model",
            category=CATEGORY,
            description="Loads the networks that deblur out-of-focus photographs. Weights are included; they were "
            "trained in part on photographs for research only, see the help page before commercial use.",
            search_aliases=["deblur", "defocus", "out of focus", "sharpen", "RDDM checkpoint"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.checkpoint_names(),
                    tooltip="The weights. Those that come with this pack are listed first, then the .safetensors "
                    "files in models/rddm.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(host.DTYPES),
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the networks. auto is fp32, the best quality. fp16 needs less memory and "
                    "differs hardly; bf16 loses a little quality.",
                ),
            ],
            outputs=[RDDMModel.Output(id="model", display_name="model", tooltip="The networks, for the other nodes.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, dtype: str) -> Any:
        """A file that was replaced under the same name is loaded again; not where its name comes from another node,
        which the host does not tell beforehand.
        """
        if file is None:
            return None
        status = host.checkpoint_path(file).stat()
        return file, dtype, status.st_size, status.st_mtime_ns

    @classmethod
    def execute(cls, file: str, dtype: str) -> io.NodeOutput:
        """Load the checkpoint."""
        return io.NodeOutput(host.load_model(host.checkpoint_path(file), dtype))
