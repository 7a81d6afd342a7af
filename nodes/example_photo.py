"""RDDMExamplePhoto: a photograph to try the pack on, with nothing to upload."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from . import host, layout
from .types import CATEGORY

EXAMPLES = Path(__file__).parent.parent / "examples"
BLURRED, SHARP = ".blur.jpg", ".sharp.jpg"


class RDDMExamplePhoto(io.ComfyNode):
    """name -> IMAGE, IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs; the names are those of the files in `examples`."""
        return io.Schema(
            node_id="RDDMExamplePhoto",
            display_name="RDDM Example Photo",
            category=CATEGORY,
            description="A photograph that comes with this pack, out of focus and sharp. For a first try, and to see "
            "how close a result comes to the truth.",
            search_aliases=["sample image", "test image", "demo", "example", "defocus", "deblur"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=names(),
                    default="sign",
                    tooltip="Which photograph. Their authors and licences stand in examples/ATTRIBUTION.md.",
                )
            ],
            outputs=[
                io.Image.Output(id="blurred", display_name="blurred", tooltip="The photograph, partly out of focus."),
                io.Image.Output(
                    id="sharp", display_name="sharp", tooltip="The same photograph, sharp: what deblurring should give."
                ),
            ],
        )

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Read both files. Raises `rddm_core.images.ImageError` where one is missing."""
        from ..rddm_core.images import load_image

        if name not in names():
            raise ValueError(f"there is no example {name!r}: choose one of {', '.join(names())}")
        pictures = (load_image(EXAMPLES / (name + ending)).pixels[None] for ending in (BLURRED, SHARP))
        return io.NodeOutput(*(host.to_intermediate(layout.image(picture)) for picture in pictures))


def names() -> list[str]:
    """The examples that are there, in alphabetical order."""
    return sorted(path.name.removesuffix(BLURRED) for path in EXAMPLES.glob(f"*{BLURRED}"))
