"""The ablation runs, as the script makes them, on a miniature collection."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from rddm_core.checkpoint import load_checkpoint, read_info
from rddm_core.config import RDDMConfig, config_to_dict
from rddm_core.networks.deformable import DeformableConv
from rddm_core.training.recipe import load_recipe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("ablations")


@pytest.fixture
def run(
    ablations: ModuleType,
    tiny_config: RDDMConfig,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Runs the script for two steps with tiny networks; returns the folder of its runs."""
    folder = tmp_path / "real_pairs"
    folder.mkdir()
    lines = ["blur,sharp,scene,split"]
    for i, (scene, split) in enumerate((("a/1", "train"), ("b/1", "train"), ("a/2", "dev"), ("b/2", "val"))):
        for kind in ("blur", "sharp"):
            pixels = torch.randint(0, 256, (72, 80, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}_{kind}.png")
        lines.append(f"{i}_blur.png,{i}_sharp.png,{scene},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    plan = json.loads(SCRIPT.with_suffix(".json").read_text())
    plan["base"] |= {
        "network": config_to_dict(tiny_config),
        "data": {"root": str(tmp_path), "sharp": "", "masks": ""},
        "mixture": {"crop": 64, "synthetic": 0.0, "real": 1.0, "identity": 0.0},
        "batch": 1,
        "workers": 0,
    }
    for group in plan["groups"].values():
        group["base"] |= {"steps": 2}
        for where in (group["base"], *(v["changes"] for v in group["variants"].values())):
            if where.get("start_from") == "shipped":
                where["start_from"] = str(tiny_checkpoint)
            if "steps" in where:
                where["steps"] = 2
    monkeypatch.setenv("RDDM_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("RDDM_DATA", raising=False)
    monkeypatch.setattr(ablations, "PLAN", tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    def start(*arguments: str) -> Path:
        ablations.main(arguments)
        return tmp_path / "runs" / "ablations"

    return start


def table(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in path.read_text().splitlines() if "|" in line]


def test_variants_are_trained_once_and_tabulated(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str], ablations: ModuleType
) -> None:
    folder = run("--only", "depthwise", "no-diffusion")
    head, _, *rows = table(folder / "adapted-dev.md")
    assert [row[0] for row in rows] == ["blurred", "full", "depthwise", "no-diffusion"]
    assert all(len(row) == len(head) for row in rows)
    assert [row[head.index("against full")] for row in rows[:2]] == ["", ""]
    assert [row[head.index("steps")] for row in rows[1:]] == ["2", "2", "2"]
    gain, against = head.index("PSNR gain, mean"), head.index("against full")
    for row in rows[2:]:
        difference = float(row[gain].split()[0]) - float(rows[1][gain].split()[0])
        assert float(row[against].split()[0]) == pytest.approx(difference, abs=0.011)
    assert "1 pairs of split=dev" in capsys.readouterr().out

    full, depthwise = (load_checkpoint(folder / name / "model.safetensors") for name in ("full", "depthwise"))
    assert any(isinstance(m, DeformableConv) for m in full.denoiser.modules())
    assert not any(isinstance(m, DeformableConv) for m in depthwise.modules())
    no_diffusion = load_checkpoint(folder / "no-diffusion" / "model.safetensors")
    assert not any(gate.weight.any() or gate.bias.any() for gate in no_diffusion.denoiser.state_gates)

    changed = {path: path.stat().st_mtime_ns for path in folder.glob("*/model.safetensors")}
    run("--only", "depthwise", "no-diffusion")
    assert capsys.readouterr().out.count("finished before") == 3
    assert changed == {path: path.stat().st_mtime_ns for path in folder.glob("*/model.safetensors")}
    with pytest.raises(ValueError, match=r"full holds a run of another recipe \(steps\)"):
        run("--only", "depthwise", "--steps", "3")


def test_an_interrupted_run_goes_on(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("rddm_core.training.train.RunLog.step", stop)
        with pytest.raises(KeyboardInterrupt):
            run("--only", "full")
    folder = run("--only", "full")
    assert read_info(folder / "full" / "model.safetensors").provenance["step"] == 2


def test_runs_from_other_weights_are_not_taken_for_finished(run: Callable[..., Path]) -> None:
    folder = run("--only", "full")
    start = folder / "full" / "start.sha256"
    start.write_text("another" + start.read_text())
    with pytest.raises(ValueError, match="full holds a run from other weights than .* is now: move it away"):
        run("--only", "full")


def test_a_collection_is_left_out(run: Callable[..., Path], ablations: ModuleType) -> None:
    folder = run("--only", "fresh", "--leave-out", "b")
    assert not (folder / "fresh-dev.md").exists(), "of one row there is nothing to compare"
    text = (folder / "without-b.md").read_text()
    assert text.index("all 2 pairs of b") < text.index("its 1 pairs of split=val")
    rows = [row[0] for row in table(folder / "without-b.md")]
    assert rows == ["", "---", "blurred", "fresh", "without-b"] * 2
    assert load_recipe(folder / "without-b" / "recipe.json").data.leave_out == "b"
    fresh, without = (load_checkpoint(folder / name / "model.safetensors") for name in ("fresh", "without-b"))
    assert not torch.equal(fresh.denoiser.intro.weight, without.denoiser.intro.weight)
    blurs = [line.split(",")[0] for line in (folder / "without-b.csv").read_text().splitlines()[1:]]
    assert set(blurs) == {"1_blur.png", "3_blur.png"}


def test_the_regression_stands_beside_the_method(run: Callable[..., Path], ablations: ModuleType) -> None:
    folder = run("--only", "regression")
    assert [row[0] for row in table(folder / "fresh-dev.md")[2:]] == ["blurred", "fresh", "regression"]
    assert read_info(folder / "regression" / "model.safetensors").provenance["recipe"]["stage"] == "regression"


def test_stages_are_trained_one_after_the_other(run: Callable[..., Path]) -> None:
    folder = run("--only", "staged", "--jobs", "2")
    assert [row[0] for row in table(folder / "fresh-dev.md")[2:]] == ["blurred", "fresh", "pre-deblur", "staged"]
    first, second = (load_checkpoint(folder / name / "model.safetensors") for name in ("pre-deblur", "staged"))
    for name, value in first.pre_deblur.state_dict().items():
        assert torch.equal(value, second.pre_deblur.state_dict()[name]), name
    assert not torch.equal(first.denoiser.intro.weight, second.denoiser.intro.weight)


def test_several_jobs_are_processes_of_their_own(run: Callable[..., Path], ablations: ModuleType) -> None:
    folder = run("--only", "no-map", "--jobs", "2")
    first = [(folder / name / "model.safetensors").read_bytes() for name in ("full", "no-map")]
    assert "checkpoint:" in (folder / "full.log").read_text()
    assert first[0] != first[1] and [row[0] for row in table(folder / "adapted-dev.md")[3:]] == ["full", "no-map"]
    (folder / "broken.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"broken\.json failed: see .*broken\.log"):
        ablations.train_apart(folder / "broken.json")


def test_the_plan_holds_valid_recipes(ablations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDDM_RUNS", str(tmp_path))
    groups = ablations.read_plan(ablations.PLAN)
    names = [v.name for group in groups.values() for v in group.variants]
    assert len(set(names)) == len(names)
    for name, group in groups.items():
        recipes = [load_recipe(ablations.write_recipe(group.base, v)) for v in group.variants]
        assert len({json.dumps(config_to_dict(recipe)) for recipe in recipes}) == len(recipes)
        same = {(r.seed, json.dumps(config_to_dict(r.mixture)), r.batch, r.learning_rate) for r in recipes}
        assert len(same) == 1 or name == "renders", "a variant changes no samples"
        # A step of the regression takes half the CPU time of one of the method, and two stages share what one run has.
        assert {r.steps for r in recipes if r.stage == "joint" and r.name != "ablations/staged"} == {recipes[0].steps}
    assert groups["adapted"].variants[0].changes == {}
    assert os.listdir(tmp_path) == ["ablations"]
