"""The yardstick of the diffusion: a plain network of NAFBlocks that regresses the sharp picture from the blurred one.

It stands in p's place of a checkpoint (preset `nafnet`, training stage `regression`), so that training, storing,
tiling and measuring are those of the method itself. Unlike NAFNet's, its channel attention pools over cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CheckpointError
from .memory import tile_size
from .networks.model import RDDM
from .pipeline import pre_deblur


def is_regression(provenance: dict[str, Any]) -> bool:
    """Whether a checkpoint with this provenance holds such a network, or the mean of such networks."""
    members = provenance.get("mean_of")
    if isinstance(members, dict):
        return any(is_regression(member) for member in members.values() if isinstance(member, dict))
    recipe = provenance.get("recipe")
    return isinstance(recipe, dict) and recipe.get("stage") == "regression"


def refuse_regression(path: Path, provenance: dict[str, Any]) -> None:
    """CheckpointError where a checkpoint of this provenance is to be used for the method, but holds such a network:
    its others have learned nothing."""
    if is_regression(provenance):
        raise CheckpointError(
            f"{path} holds a plain network of the training stage `regression`, not this method: give other weights, or "
            "measure it with `evaluate --peer`"
        )


def regress(model: RDDM, image: Tensor) -> Tensor:
    """image [B, 3, H, W] -> restored [B, 3, H, W], both in 0..1; no map, no diffusion. Large pictures in tiles."""
    tile = tile_size("auto", image.shape[-2], image.shape[-1], model.config)
    return pre_deblur(model, image, torch.zeros_like(image[:, :1]), tile=tile).clamp(0, 1)
