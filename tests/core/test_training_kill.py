"""A training process that is killed outright, and what the run that goes on loses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from rddm_core.checkpoint import load_checkpoint
from rddm_core.config import RDDMConfig, config_to_dict
from rddm_core.data.stream import TrainingStream
from rddm_core.training.train import run

KILLED_IN_STEP = 3
CHILD = """
import json, os, signal, sys
from pathlib import Path
from rddm_core.config import config_from_dict
from rddm_core.training import train

train.preset = lambda _: config_from_dict(json.loads(sys.argv[2]))
train.RunLog.step = lambda log, step, *_: step == int(sys.argv[3]) and os.kill(os.getpid(), signal.SIGKILL)
train.run(Path(sys.argv[1]))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One real pair per split, a checkpoint after every step."""
    folder = tmp_path / "real_pairs"
    folder.mkdir()
    lines = ["blur,sharp,split"]
    for i, split in enumerate(("train", "dev")):
        for kind in ("blur", "sharp"):
            pixels = torch.randint(0, 256, (72, 80, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{split}_{kind}.png")
        lines.append(f"{split}_blur.png,{split}_sharp.png,{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    values = {
        "stage": "regression",
        "data": {"root": str(tmp_path), "sharp": "", "masks": ""},
        "mixture": {"crop": 64, "synthetic": 0.0, "real": 1.0, "identity": 0.0},
        "batch": 1,
        "steps": 5,
        "workers": 0,
        "checkpoint_minutes": 0.0,
    }
    for name in ("whole", "killed"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **values}))
    return tmp_path / "killed.json"


def test_a_killed_run_loses_one_interval_and_sees_the_same_samples(
    recipe: Path, tiny_config: RDDMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDDM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("RDDM_DATA", raising=False)
    monkeypatch.setattr("rddm_core.training.train.preset", lambda _: tiny_config)
    config = json.dumps(config_to_dict(tiny_config))
    child = subprocess.run([sys.executable, "-c", CHILD, str(recipe), config, str(KILLED_IN_STEP)], timeout=300)
    assert child.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "runs" / "killed" / "state.pt", weights_only=True)
    assert state["step"] == KILLED_IN_STEP - 1, "the step of the kill was not stored, those before it were"

    drawn: dict[str, list[int]] = {"whole": [], "killed": []}
    original = TrainingStream.__iter__
    for name, resume in (("whole", False), ("killed", True)):

        def watched(stream: TrainingStream, seen: list[int] = drawn[name]):  # type: ignore[no-untyped-def]
            for batch in original(stream):
                seen += batch["index"].tolist()
                yield batch

        monkeypatch.setattr(TrainingStream, "__iter__", watched)
        run(recipe.with_name(f"{name}.json"), resume=resume)
    assert drawn["killed"] == drawn["whole"][KILLED_IN_STEP - 1 :]
    whole, killed = (load_checkpoint(tmp_path / "runs" / name / "model.safetensors").state_dict() for name in drawn)
    assert all(torch.equal(value, killed[key]) for key, value in whole.items())
