"""A tiny network with every part of the method, for tests and stress runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rddm_core.checkpoint import save_checkpoint
from rddm_core.config import EstimatorConfig, RDDMConfig, lite
from rddm_core.networks.model import RDDM


def make_tiny_config() -> RDDMConfig:
    """`lite` with narrow layers: every part of the method is there."""
    config = lite()
    return replace(
        config,
        name="tiny",
        estimator=EstimatorConfig(
            hidden_sizes=(8, 16, 16, 16),
            heads=(1, 2, 2, 2),
            depths=(1,) * 4,
            decoder_width=16,
            working_size=64,
        ),
        guidance=replace(config.guidance, width=8),
        pre_deblur=replace(config.pre_deblur, widths=(16, 16), deformable_group_width=16),
        denoiser=replace(
            config.denoiser,
            widths=(16, 16, 32, 32),
            encoder_blocks=(1,) * 4,
            decoder_blocks=(1,) * 4,
            middle_width=32,
            middle_blocks=1,
            deformable_group_width=16,
            time_width=16,
        ),
    )


def write_tiny_checkpoint(path: Path) -> Path:
    """A checkpoint of random weights that change a picture visibly; the same bytes in every run."""
    torch.manual_seed(0)
    model = RDDM(make_tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("pre_deblur", "denoiser")) and not parameter.any():
                parameter.normal_(0, 0.02)  # what starts at zero would leave the picture as it is
    model.residual_scale, model.recommended_steps = 10.0, 2
    save_checkpoint(path, model, provenance={"data": "none", "steps": 0}, licence="none: random weights")
    return path
