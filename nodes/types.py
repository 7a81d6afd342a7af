"""Names shared by the nodes: their category and their own connection types."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "RDDM defocus deblurring"

RDDMModel = io.Custom("RDDM_MODEL")
"""A ModelPatcher around `rddm_core.networks.model.RDDM`; see `host.load_model`."""

RDDMResidual = io.Custom("RDDM_RESIDUAL")
"""A tensor [B, N, 3, H, W], float32 in image units: N samples of the residual I - I_p for each of B pictures."""
