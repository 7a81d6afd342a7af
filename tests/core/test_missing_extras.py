"""Without an optional library: what still works, and a message that says what to install where it does not."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from rddm_core.cli import main
from rddm_core.evaluation.perceptual import PatchFID, lpips_metric
from rddm_core.evaluation.rows import RowError, peer_method
from rddm_core.metrics import MissingExtraError
from rddm_core.training.logs import RunLog

ROOT = Path(__file__).parents[2]
HOST = {"comfy", "comfy_api", "folder_paths"}
"""Modules of ComfyUI, which no distribution brings."""
USERS_EXTRAS = ("train", "eval", "depth", "perceptual", "peers", "scale")


def imported(path: Path) -> set[str]:
    """Libraries that a file imports anywhere in it, by the name that is imported."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def test_every_library_is_asked_for_by_its_own_name() -> None:
    """What another library brings, an extra for instance, may be missing without it."""
    extras = dict(
        re.findall(r"^(\w+) = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
    listed = set(re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE))
    for extra in USERS_EXTRAS:
        listed |= set(re.findall(r'^ +"([\w-]+)', extras[extra], re.MULTILINE))
    files = [path for folder in ("rddm_core", "nodes") for path in (ROOT / folder).rglob("*.py")]
    distributions = packages_distributions()
    for library in set().union(*map(imported, files)) - HOST:
        wanted = {name.lower().replace("_", "-") for name in distributions[library]}
        assert wanted & listed, f"{library} is neither in requirements.txt nor in an extra"


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


def test_a_report_asks_for_matplotlib_before_it_measures(  # type: ignore[no-untyped-def]
    missing, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing("matplotlib")
    monkeypatch.setattr("rddm_core.evaluation.evaluate.evaluate", lambda *_, **__: pytest.fail("it has begun"))
    code = main(["evaluate", str(ROOT / "examples" / "manifest.csv"), "--report", str(tmp_path / "r.html")])
    assert code == 1 and 'reports need matplotlib: pip install "matplotlib' in capsys.readouterr().err


def test_training_asks_for_accelerate(  # type: ignore[no-untyped-def]
    missing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing("accelerate")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"name": "run", "stage": "joint", "data": {"root": str(tmp_path)}}))
    assert main(["train", str(recipe)]) == 1
    assert "training needs the extra `train` of this package" in capsys.readouterr().err
