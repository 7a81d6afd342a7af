"""Shared by all tests: no network, one thread, and a tiny network with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before any library reads them: nothing may be downloaded, and tiny tensors gain nothing from threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from chromium import chromium  # noqa: E402

from rddm_core.checkpoint import save_checkpoint  # noqa: E402
from rddm_core.config import EstimatorConfig, RDDMConfig, lite  # noqa: E402
from rddm_core.networks.model import RDDM  # noqa: E402


@pytest.fixture(scope="session")
def tiny_config() -> RDDMConfig:
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
            middle_width=32,
            middle_blocks=1,
            deformable_group_width=16,
            time_width=16,
        ),
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config: RDDMConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that change a picture visibly; the same bytes in every run."""
    torch.manual_seed(0)
    model = RDDM(tiny_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("pre_deblur", "denoiser")) and not parameter.any():
                parameter.normal_(0, 0.02)  # what starts at zero would leave the picture as it is
    model.residual_scale, model.recommended_steps = 10.0, 2
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, model, provenance={"data": "none", "steps": 0}, licence="none: random weights")
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, one for all tests: a process can drive only one at a time."""
    with chromium() as running:
        yield running
