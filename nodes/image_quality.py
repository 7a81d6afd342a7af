"""RDDMImageQuality: figures for a picture, with or without one to compare it with."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui
from torch import Tensor

from . import host, layout
from .types import CATEGORY


class RDDMImageQuality(io.ComfyNode):
    """image, reference? -> STRING, STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="RDDMImageQuality",
            display_name="RDDM Image Quality",
            category=CATEGORY,
            description="How close a picture comes to a reference (PSNR, SSIM, MAE, HaarPSI), and how sharp it is.",
            search_aliases=["PSNR", "SSIM", "HaarPSI", "MAE", "metrics", "score", "sharpness", "measure"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture to measure, or a batch of them."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The sharp original, of the same size: one for each picture, or one for all. Without it "
                    "only the sharpness is measured.",
                ),
            ],
            outputs=[
                io.String.Output(
                    id="text", display_name="text", tooltip="The figures to read, one line for each picture."
                ),
                io.String.Output(
                    id="values",
                    display_name="values",
                    tooltip="The same as JSON: a list with an object of numbers for each picture.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, reference: Tensor | None = None) -> io.NodeOutput:
        """Measure every picture. Raises ValueError for pictures too small for a metric, ImportError without piq."""
        measured, _ = layout.picture(image, "image")
        targets: Tensor | None = None
        if reference is not None:
            targets, _ = layout.picture(reference, "reference")
            layout.check_batch(targets, "reference", len(measured), allow_one=True)
            layout.check_size(targets, "reference", measured, "image")
        watch, rows = host.callbacks(), []
        for b, picture in enumerate(measured):
            watch.check()
            with host.needed_packages():
                rows.append(figures(picture, None if targets is None else targets[b % len(targets)]))
            watch.report(b + 1, len(measured))
        text = "\n".join(f"{b + 1}: {describe(row)}" if len(rows) > 1 else describe(row) for b, row in enumerate(rows))
        return io.NodeOutput(text, json.dumps(rows), ui=ui.PreviewText(text))


def figures(picture: Tensor, target: Tensor | None) -> dict[str, float]:
    """What is measured of [3, H, W] in 0..1, by name."""
    from ..rddm_core import metrics, sharpness

    sharp = {"tenengrad": sharpness.tenengrad(picture), "laplacian_variance": sharpness.laplacian_variance(picture)}
    if target is None:
        return sharp
    fidelity = {
        "psnr": metrics.psnr_8bit(picture, target),
        "ssim": metrics.ssim(picture, target),
        "mae": metrics.mae(picture, target),
        "haarpsi": metrics.haarpsi(picture, target),
    }
    return {**fidelity, **sharp, "reference_tenengrad": sharpness.tenengrad(target)}


def describe(row: dict[str, float]) -> str:
    """A line to read."""
    sharp = f"sharpness {row['tenengrad']:.1f} (Tenengrad), {row['laplacian_variance']:.1f} (variance of the Laplacian)"
    if "psnr" not in row:
        return sharp
    fidelity = f"PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, MAE {row['mae']:.4f}, HaarPSI {row['haarpsi']:.4f}"
    return f"{fidelity}; {sharp}, reference {row['reference_tenengrad']:.1f} (Tenengrad)"
