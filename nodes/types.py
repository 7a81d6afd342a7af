"""Names shared by the nodes: their category and their own connection types."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

CATEGORY = "RDDM defocus deblurring"

RDDMModel = io.Custom("RDDM_MODEL")
"""A ModelPatcher around `rddm_core.networks.model.RDDM`; see `host.load_model`."""

RDDMResidual = io.Custom("RDDM_RESIDUAL")
"""A tensor [B, N, 3, H, W], float32 in image units: N samples of the residual I - I_p for each of B pictures."""


def batch_noise_input() -> Any:
    """The choice of noise for batches: "own" or "shared"; see `layout.seeds`."""
    return io.Combo.Input(
        "batch_noise",
        options=["own", "shared"],
        default="own",
        optional=True,
        tooltip="Noise in a batch. own: each picture its own, from seed, seed + 1 and so on. shared: the same for all, "
        "which keeps the frames of a video steady.",
    )
