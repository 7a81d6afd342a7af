"""RDDMSampler: draws the residual between the sharp picture and the first guess, by diffusion."""

from __future__ import annotations

from typing import Any, Literal

import torch
from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import CATEGORY, RDDMModel, RDDMResidual, batch_noise_input, seed_input, steps_input


class RDDMSampler(io.ComfyNode):
    """model, pre_deblurred, map, seed, steps, eta, samples, tiling, noise?, schedule, batch_noise
    -> RDDM_RESIDUAL, IMAGE.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMSampler",
            display_name="RDDM Sampler",
            category=CATEGORY,
            description="Draws the detail that the first guess lacks, by a few steps of diffusion. "
            "RDDM Merge Residual adds it to the photograph.",
            search_aliases=["deblur", "defocus", "diffusion", "out of focus", "sharpen", "refocus"],
            inputs=[
                RDDMModel.Input("model", tooltip="From Load RDDM Model."),
                io.Image.Input("pre_deblurred", tooltip="The first guess, from RDDM Pre-Deblur."),
                io.Mask.Input(
                    "map",
                    tooltip="The defocus map: 0 in focus, 1 out of focus. From RDDM Defocus Map, or painted by hand.",
                ),
                seed_input(
                    "Of the noise. The same seed gives the same picture. batch_noise says what it means for a batch."
                ),
                steps_input(),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Fresh noise in every step: 0 = none (DDIM), 1 = as much as in DDPM.",
                ),
                io.Int.Input(
                    "samples",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many answers to draw for each picture: from different noise, and with the picture "
                    "mirrored or turned. RDDM Merge Residual picks one or averages them.",
                ),
                io.DynamicCombo.Input(
                    "tiling",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option("off", []),
                        io.DynamicCombo.Option(
                            "manual",
                            [
                                io.Int.Input(
                                    "tile",
                                    default=512,
                                    min=128,
                                    max=8192,
                                    step=64,
                                    tooltip="Longest side of a tile in pixels. Smaller tiles need less memory.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Work on overlapping parts of the picture. auto: only large pictures. off: the whole "
                    "picture at once. Where memory runs out, smaller tiles are tried in any case.",
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="Noise to start from, e.g. from RandomNoise, instead of that of the seed.",
                ),
                # Appended after the first release, and optional: saved graphs and prompts know nothing of them.
                io.Combo.Input(
                    "schedule",
                    options=["uniform", "quadratic"],
                    default="uniform",
                    optional=True,
                    advanced=True,
                    tooltip="How the steps are spread between noise and picture. uniform: evenly. quadratic: more of "
                    "them near the finished picture. Makes a difference from 2 steps.",
                ),
                batch_noise_input(),
            ],
            outputs=[
                RDDMResidual.Output(
                    id="residual", display_name="residual", tooltip="What to add to the first guess: all samples."
                ),
                io.Image.Output(
                    id="preview",
                    display_name="preview",
                    tooltip="First guess plus residual, one picture for each sample.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        pre_deblurred: Tensor,
        map: Tensor,
        seed: int,
        steps: int,
        eta: float,
        samples: int,
        tiling: dict[str, Any],
        noise: host.Noise | None = None,
        schedule: Literal["uniform", "quadratic"] = "uniform",
        batch_noise: str = "own",
    ) -> io.NodeOutput:
        """Sample, with progress and a preview for every step."""
        from ..rddm_core.pipeline import sample_residual

        guess, alpha = layout.picture(pre_deblurred, "pre_deblurred", bounded=False)
        defocus_map = layout.mask(map, "map", len(guess))
        notices = layout.notices(map=defocus_map)
        size = (guess.shape[-2], guess.shape[-1])
        tile: int | Literal["auto"] | None = "auto" if tiling["tiling"] == "auto" else tiling.get("tile")
        start = None if noise is None else draw_noise(noise, len(guess), samples, size, batch_noise)
        watch = host.callbacks(preview=True)
        residual = host.run_in_tiles(
            model,
            size,
            tile,
            lambda networks, tile: sample_residual(
                networks,
                guess,
                defocus_map,
                seed=layout.seeds(seed, len(guess), batch_noise),
                samples=samples,
                steps=steps,
                eta=eta,
                schedule=schedule,
                noise=start,
                tile=tile,
                callbacks=watch,
            ),
            samples,
        )
        shown = (guess[:, None] + residual).clamp_(0, 1).flatten(0, 1)
        return io.NodeOutput(
            host.to_intermediate(residual, torch.float32),
            host.to_intermediate(layout.image(shown, alpha)),
            ui=notices,
        )


def draw_noise(noise: host.Noise, batch: int, samples: int, size: tuple[int, int], batch_noise: str) -> Tensor:
    """Noise [B, N, 3, H, W] from the host's NOISE, for `batch_noise` "shared" the same for every picture."""
    if batch_noise == "own":
        return host.draw_noise(noise, batch, samples, size)
    return host.draw_noise(noise, 1, samples, size).expand(batch, -1, -1, -1, -1)
