"""Without an optional library: what still works, and a message that says what to install where it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rddm_core.cli import main
from rddm_core.evaluation.perceptual import PatchFID, lpips_metric
from rddm_core.evaluation.rows import RowError, peer_method
from rddm_core.metrics import MissingExtraError
from rddm_core.training.logs import RunLog


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Let a library, and what was imported of it, be absent."""

    def remove(library: str) -> None:
        for name in [name for name in sys.modules if name == library or name.startswith(library + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)  # an import of it then fails

    return remove


@pytest.mark.parametrize("metric", [lpips_metric, PatchFID])
def test_perceptual_metrics_ask_for_their_extra(missing, metric) -> None:  # type: ignore[no-untyped-def]
    missing("torchmetrics")
    with pytest.raises(MissingExtraError, match="extra `perceptual`: pip install torchmetrics"):
        metric()


def test_other_models_ask_for_spandrel(missing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    missing("spandrel")
    (tmp_path / "other.pth").write_bytes(b"some other model")
    with pytest.raises(RowError, match="no checkpoint of this package, and other models need: pip install spandrel"):
        peer_method("peer", tmp_path / "other.pth", torch.device("cpu"))


def test_logs_do_without_tensorboard(missing, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    missing("tensorboard")
    missing("torch.utils.tensorboard")
    log = RunLog(tmp_path, active=True)
    log.validation({"step": 1, "score": 0.5})
    assert {path.name for path in tmp_path.iterdir()} == {"validation.csv", "curves.png"}


def test_training_asks_for_accelerate(  # type: ignore[no-untyped-def]
    missing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing("accelerate")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": "run", "stage": "joint", "data": {"root": str(tmp_path)}}))
    assert main(["train", str(recipe)]) == 1
    assert "training needs the extra `train` of this package" in capsys.readouterr().err
