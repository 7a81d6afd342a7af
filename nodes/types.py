"""Names shared by the nodes: their category and their own connection types."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

CATEGORY = "RDDM defocus deblurring"

RDDMModel = io.Custom("RDDM_MODEL")
"""A ModelPatcher around `rddm_core.networks.model.RDDM`; see `host.load_model`."""

RDDMResidual = io.Custom("RDDM_RESIDUAL")
"""A tensor [B, N, 3, H, W], float32 in image units: N samples of the residual I - I_p for each of B pictures."""


def mask_input() -> Any:
    """Where to apply the change."""
    return io.Mask.Input(
        "mask",
        optional=True,
        tooltip="Where to apply the change: 1 = fully, 0 = not at all. Without one, everywhere.",
    )


def seed_input(tooltip: str) -> Any:
    """Seed of the noise; it stays as it is unless the user asks for another one after every run."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


def steps_input() -> Any:
    """Diffusion steps, 0 for the checkpoint's choice."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1300,
        tooltip="Steps of the diffusion; 0 = what the checkpoint recommends, otherwise 1 to 4 are usual.",
    )


def strength_input() -> Any:
    """Share of the change."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        tooltip="Share of the change: 0 = the original, 1 = the full result, more exaggerates.",
    )


def map_output() -> Any:
    """A defocus map as a mask."""
    return io.Mask.Output(
        id="map", display_name="map", tooltip="The defocus map, soft from 0 (in focus) to 1 (out of focus)."
    )


def coloured_map_output() -> Any:
    """The same map for the eye; see `colours.coloured`."""
    return io.Image.Output(
        id="coloured",
        display_name="coloured",
        tooltip="The map in colours, dark where in focus and bright where not, above a scale.",
    )


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
