"""What a run does in its steps, and between them: short runs of a regression, which is the fastest to train.

What is not asked about is left out of them: the validation's photographs, and the drawing of curves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import write_recipe
from torch import Tensor

from rddm_core.checkpoint import load_checkpoint, read_info
from rddm_core.networks.model import RDDM
from rddm_core.training import train
from rddm_core.training.recipe import load_recipe
from rddm_core.training.train import learning_rate, run, select_trainable

PAIRS = {"crop": 64, "synthetic": 0.0, "real": 1.0, "identity": 0.0}
MASKS = {"crop": 64, "synthetic": 0.0, "real": 0.0, "identity": 0.0, "masks": 1.0}


@pytest.fixture(autouse=True)
def _short(runs: Path, narrow_networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "open_validation", lambda _: lambda model, sheet: (0.0, {}))
    monkeypatch.setattr("rddm_core.training.logs.draw_curves", lambda _: None)
    monkeypatch.setattr("rddm_core.training.logs.open_tensorboard", lambda *_: None)


@pytest.fixture
def recipe(tmp_path: Path, collection: Path) -> Callable[..., Path]:
    """The file of a recipe: a regression on the real pair, but for the changes."""

    def write(**changes: object) -> Path:
        return write_recipe(tmp_path, collection, **{"stage": "regression", "mixture": PAIRS, "batch": 1, **changes})

    return write


@pytest.fixture
def state(runs: Path) -> Callable[[], dict[str, Any]]:
    """What the run left to go on from."""
    return lambda: torch.load(runs / "tiny" / "state.pt", weights_only=True)


def test_what_is_exported_are_the_averages(recipe: Callable[..., Path], state: Callable[[], dict[str, Any]]) -> None:
    path = recipe(steps=3, learning_rate=0.05)
    exported, last = load_checkpoint(run(path)), state()
    trained = RDDM(exported.config)
    trained.load_state_dict(last["model"])
    weights, latest = (select_trainable(model, load_recipe(path)) for model in (exported, trained))

    def distance(others: list[Tensor]) -> float:
        return sum(float((a - b).detach().abs().sum()) for a, b in zip(weights, others, strict=True))

    assert distance(last["average"]) < 0.1 * distance(latest)  # checkpoints are fp16


def test_every_step_has_its_learning_rate_and_every_group_its_share(
    recipe: Callable[..., Path], state: Callable[[], dict[str, Any]]
) -> None:
    path = recipe(steps=3)
    run(path)
    groups = state()["optimizers"][0]["param_groups"]
    assert {group["share"] for group in groups} == {1.0, 1 / 16}
    for group in groups:
        assert group["lr"] == pytest.approx(group["share"] * learning_rate(load_recipe(path), 2))


def test_gradients_are_clipped(recipe: Callable[..., Path], state: Callable[[], dict[str, Any]]) -> None:
    run(recipe(steps=1, clip_norm=1e-6))
    moments = [float(x["exp_avg"].abs().max()) for x in state()["optimizers"][0]["state"].values()]
    assert 0 < max(moments) <= 1e-6


def test_the_weights_recommend_the_steps_of_their_recipe(recipe: Callable[..., Path]) -> None:
    assert read_info(run(recipe(steps=1, recommended_steps=3))).recommended_steps == 3


def test_steps_without_a_finite_gradient_are_left_out_and_forgiven(
    recipe: Callable[..., Path], state: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only many in a row stop the run: here every other one is bad, which is twice in all but never two in a row."""
    losses: list[Tensor] = []

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        # The root of zero is zero, and its gradient NaN.
        losses.append(logits.square().mean() if len(losses) % 2 == 0 else (logits * 0).sqrt().mean())
        return losses[-1]

    monkeypatch.setattr(train, "estimator_loss", loss)
    monkeypatch.setattr(train, "MAX_BAD_STEPS", 1)
    run(recipe(stage="estimator", mixture=MASKS, steps=4))
    assert len(losses) == 4 and bool(torch.isfinite(torch.stack(losses)).all())
    assert all(bool(torch.isfinite(value).all()) for value in state()["model"].values())


@pytest.mark.parametrize(("stage", "asked"), [("joint", True), ("pre_deblur", True), ("regression", False)])
def test_maps_of_pairs_are_made_where_the_networks_see_maps(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stage: str, asked: bool
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(train, "estimate_pair_maps", lambda _, pairs: calls.append(pairs) or {})
    run(recipe(stage=stage), minutes=0)
    assert bool(calls) is asked


def test_no_maps_are_made_of_pairs_that_no_sample_shows(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "estimate_pair_maps", lambda *_: pytest.fail("asked for"))
    run(recipe(stage="joint", mixture={**PAIRS, "real": 0.0, "identity": 1.0}), minutes=0)


def test_the_time_of_a_run_that_goes_on_is_added_up(
    recipe: Callable[..., Path], state: Callable[[], dict[str, Any]], runs: Path
) -> None:
    path = recipe(steps=1)
    run(path)
    torch.save(state() | {"seconds": 1000.0}, runs / "tiny" / "state.pt")
    run(path, resume=True)
    assert state()["seconds"] == 1000.0


def test_a_run_validates_when_it_is_due(recipe: Callable[..., Path], runs: Path) -> None:
    run(recipe(steps=1, validate_minutes=0.0))
    lines = (runs / "tiny" / "validation.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "1"]  # the last one at its end


def test_after_a_validation_the_networks_are_in_training_mode_again(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, original = [], train.pre_deblur_loss

    def watched(model: RDDM, *arguments: Any) -> dict[str, Tensor]:
        modes.append((model.training, model.estimator.training))
        return original(model, *arguments)

    monkeypatch.setattr(train, "pre_deblur_loss", watched)
    run(recipe(steps=2, validate_minutes=0.0))
    assert modes == [(True, False)] * 2
