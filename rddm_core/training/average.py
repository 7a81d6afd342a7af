"""The mean of trained networks ("model soups": Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint import load_checkpoint, read_info, save_checkpoint


def average_checkpoints(paths: Sequence[Path], target: Path) -> None:
    """Write the mean of the checkpoints' parameters to `target`, with the provenance of each.

    Of runs that went out from the same weights the mean is often better than any of them; that of others is worthless.
    Raises ValueError for fewer than two, and where configuration, residual scale or recommended steps differ;
    CheckpointError for a file that cannot be used; OSError where `target` cannot be written.
    """
    if len(paths) < 2:
        raise ValueError("a mean needs two checkpoints or more")
    infos = [read_info(path) for path in paths]
    for path, info in zip(paths, infos, strict=True):
        for field in ("config", "residual_scale", "recommended_steps"):
            if getattr(info, field) != getattr(infos[0], field):
                raise ValueError(f"{path} and {paths[0]} differ in {field}: only runs of one network have a mean")
    mean = load_checkpoint(paths[0])
    state = mean.state_dict()
    with torch.no_grad():
        for count, path in enumerate(paths[1:], start=2):
            for key, value in load_checkpoint(path).state_dict().items():
                if value.is_floating_point():
                    state[key].lerp_(value, 1 / count)
    members = {str(i): info.provenance for i, info in enumerate(infos, start=1)}
    licences = dict.fromkeys(info.licence for info in infos)
    save_checkpoint(target, mean, provenance={"mean_of": members}, licence=" / ".join(licences))
