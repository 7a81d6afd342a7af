"""RDDMDeblur: the whole method in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import host, layout
from .types import (
    CATEGORY,
    RDDMModel,
    batch_noise_input,
    map_output,
    mask_input,
    seed_input,
    steps_input,
    strength_input,
)


class RDDMDeblur(io.ComfyNode):
    """model, image, map?, mask?, seed, steps, strength, working_size, batch_noise -> IMAGE, MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMDeblur",
            display_name="RDDM Deblur",
            category=CATEGORY,
            description="Deblurs an out-of-focus photograph: defocus map, first guess, diffusion and merge in one "
            "node.",
            search_aliases=["deblur", "defocus", "out of focus", "sharpen", "refocus", "restore", "unblur"],
            inputs=[
                RDDMModel.Input("model", tooltip="From Load RDDM Model."),
                io.Image.Input(
                    "image", tooltip="The blurred photograph, or a batch of them, such as a video's frames."
                ),
                io.Mask.Input(
                    "map",
                    optional=True,
                    tooltip="The defocus map: 0 in focus, 1 out of focus. From RDDM Defocus Map, or painted by hand. "
                    "Without one it is estimated here.",
                ),
                mask_input(),
                seed_input("Of the noise. The same seed gives the same picture."),
                steps_input(),
                strength_input(),
                io.DynamicCombo.Input(
                    "working_size",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option("full", []),
                        io.DynamicCombo.Option(
                            "manual",
                            [
                                io.Int.Input(
                                    "size",
                                    default=1536,
                                    min=256,
                                    max=16384,
                                    step=64,
                                    tooltip="Long side in pixels at which the networks work.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Size at which the networks work; only their change is enlarged. auto: reduce where the "
                    "blur is stronger than they were trained for. full: never reduce.",
                ),
                batch_noise_input(),
            ],
            outputs=[
                io.Image.Output(id="image", display_name="image", tooltip="The deblurred photograph."),
                map_output(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image: Tensor,
        seed: int,
        steps: int,
        strength: float,
        working_size: dict[str, Any],
        map: Tensor | None = None,
        mask: Tensor | None = None,
        batch_noise: str = "own",
    ) -> io.NodeOutput:
        """Run the whole of it, with progress and previews."""
        from ..rddm_core.memory import AUTO_TILE
        from ..rddm_core.pipeline import DeblurSettings, deblur

        blurred, alpha = layout.picture(image, "image")
        batch, size = len(blurred), (blurred.shape[-2], blurred.shape[-1])
        defocus_map = None if map is None else layout.mask(map, "map", batch)
        where = None if mask is None else layout.mask(mask, "mask", batch)
        notices = layout.notices(map=defocus_map, mask=where)
        choice = working_size["working_size"]
        watch = host.callbacks(preview=True)

        def run(networks: Any, tile: int | None) -> Any:
            settings = DeblurSettings(
                steps=steps,
                seed=layout.seeds(seed, batch, batch_noise),
                strength=strength,
                # The largest is the core's own choice too, which it makes anew for a reduced working size.
                tile="auto" if tile == AUTO_TILE else tile,
                working_size=working_size["size"] if choice == "manual" else choice,
                same_working_size=batch_noise == "shared",
            )
            return deblur(
                networks,
                blurred,
                settings=settings,
                defocus_map=defocus_map,
                mask=where,
                keep_stages=False,
                callbacks=watch,
            )

        result = host.run_in_tiles(model, size, "auto", run)
        return io.NodeOutput(
            host.to_intermediate(layout.image(result.image, alpha)),
            host.to_intermediate(result.defocus_map[:, 0]),
            ui=notices,
        )
