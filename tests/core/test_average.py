"""The mean of checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rddm_core import cli
from rddm_core.checkpoint import load_checkpoint, read_info, save_checkpoint
from rddm_core.networks.model import RDDM
from rddm_core.regression import is_regression


def write(path: Path, model: RDDM, factor: float, **provenance: object) -> Path:
    """`model`, with all that is learned multiplied by `factor`."""
    state = {key: value * factor if value.is_floating_point() else value for key, value in model.state_dict().items()}
    scaled = RDDM(model.config)
    scaled.load_state_dict(state)
    scaled.residual_scale, scaled.recommended_steps = model.residual_scale, model.recommended_steps
    save_checkpoint(path, scaled, provenance=dict(provenance), licence="MIT")
    return path


def test_the_mean_of_three_lies_between_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, mean = load_checkpoint(tiny_checkpoint), tmp_path / "mean.safetensors"
    parts = [write(tmp_path / f"{f}.safetensors", model, f, name=f"run {f}") for f in (1.0, 0.5, 0.0)]
    assert cli.main(["average", *map(str, parts), "-o", str(mean)]) == 0
    averaged = load_checkpoint(mean).state_dict()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(averaged[key], value / 2, rtol=2e-3, atol=1e-6)
    info = read_info(mean)
    assert (info.residual_scale, info.recommended_steps, info.licence) == (10.0, 2, "MIT")
    assert [member["name"] for member in info.provenance["mean_of"].values()] == ["run 1.0", "run 0.5", "run 0.0"]


def test_other_networks_have_no_mean(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, mean = load_checkpoint(tiny_checkpoint), tmp_path / "mean.safetensors"
    model.residual_scale = 11.0
    other = write(tmp_path / "other.safetensors", model, 1.0)
    for parts, cause in (
        ([tiny_checkpoint], "two checkpoints"),
        ([tiny_checkpoint, other], "differ in residual_scale"),
    ):
        assert cli.main(["average", *map(str, parts), "-o", str(mean)]) != 0
        assert cause in capsys.readouterr().err and not mean.exists()


def test_a_mean_takes_the_place_of_none_of_them(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (Path(shutil.copy(tiny_checkpoint, tmp_path / name)) for name in ("a.safetensors", "b.safetensors"))
    for target, message in ((first, "would overwrite the input"), (tmp_path, "is a folder: name a file to write to")):
        assert cli.main(["average", str(first), str(second), "-o", str(target)]) == 1
        assert message in capsys.readouterr().err
    assert first.read_bytes() == tiny_checkpoint.read_bytes()


def test_a_mean_of_regressions_is_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, mean = load_checkpoint(tiny_checkpoint), tmp_path / "mean.safetensors"
    parts = [write(tmp_path / f"{f}.safetensors", model, f, recipe={"stage": "regression"}) for f in (1.0, 0.9)]
    assert cli.main(["average", *map(str, parts), "-o", str(mean)]) == 0
    assert is_regression(read_info(mean).provenance) and not is_regression({"mean_of": {"1": {}}})
