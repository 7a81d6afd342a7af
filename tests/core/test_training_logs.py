"""Logs of a training run: files, curves, and what a resumed run does with the rows of a killed one."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from rddm_core.training.logs import RunLog, draw_curves, drop_rows_after


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def fill(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.step(step, {"loss": 1 / step}, norm=2.0, rate=1e-3, spent={"hours": step / 100})


def test_csv_rows_are_means_over_their_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True)
    fill(log, 1, 120)
    log.validation({"step": 120, "hours": 0.1, "score": 0.5, "gain": 0.5})
    first, second = rows(tmp_path / "train.csv")
    assert (first["step"], second["step"]) == ("50", "100")
    assert float(first["loss"]) == pytest.approx(sum(1 / s for s in range(1, 51)) / 50, rel=1e-5)
    assert float(second["loss"]) == pytest.approx(sum(1 / s for s in range(51, 101)) / 50, rel=1e-5)
    assert (first["hours"], second["hours"]) == ("0.5", "1"), "spent since the run began, not a mean"
    assert rows(tmp_path / "validation.csv")[0]["gain"] == "0.5"


def test_a_validation_does_not_change_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("rddm_core.training.logs.time", clock)
    log = RunLog(tmp_path, active=True)
    for step in range(1, 101):
        clock.now += 0.5
        fill(log, step, step)
        if step == 80:
            clock.now += 600
            log.validation({"step": 80, "score": 0.5})
    assert [row["steps_per_second"] for row in rows(tmp_path / "train.csv")] == ["2", "2"]


def test_curves_are_drawn_at_each_validation_and_nothing_is_left_behind(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True)
    log.validation({"step": 10, "hours": 0.1, "score": 0.1, "gain": 0.1})  # before any training row
    before = (tmp_path / "curves.png").read_bytes()
    fill(log, 1, 100)
    log.validation({"step": 100, "hours": 0.2, "score": 0.3, "gain": 0.3})
    assert (tmp_path / "curves.png").read_bytes() != before
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    assert not list(tmp_path.glob(".*"))


def test_losses_that_are_not_positive_are_drawn_too(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,learning_rate,loss\n50,1,0\n100,1,-1\n")
    assert draw_curves(tmp_path).is_file()


def test_tensorboard_holds_the_same_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path, active=True)
    fill(log, 1, 100)
    log.validation({"step": 100, "score": 0.25})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [50, 100]
    assert events.Scalars("validation/score")[0].value == pytest.approx(0.25)


def test_a_resumed_run_drops_the_rows_it_will_write_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True)
    fill(log, 1, 200)
    log.validation({"step": 180, "score": 0.25})
    with (tmp_path / "train.csv").open("a") as handle:
        handle.write("250,0.0")  # cut short by a kill
    resumed = RunLog(tmp_path, active=True, step=120)
    assert [r["step"] for r in rows(tmp_path / "train.csv")] == ["50", "100"]
    assert not (tmp_path / "validation.csv").exists()
    fill(resumed, 121, 150)
    assert [r["step"] for r in rows(tmp_path / "train.csv")] == ["50", "100", "150"]


def test_a_file_of_an_earlier_version_keeps_its_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("step,learning_rate,loss\n50,0.1,0.5\n")
    (tmp_path / "validation.csv").write_text("step,hours,score,gain\n50,0.1,0.5,0.6\n")
    log = RunLog(tmp_path, active=True, step=50)
    fill(log, 51, 100)
    log.validation({"step": 100, "hours": 0.2, "cpu_hours": 0.4, "score": 0.7, "gain": 0.8})
    assert [list(r) for r in rows(tmp_path / "train.csv")] == [["step", "learning_rate", "loss"]] * 2
    assert rows(tmp_path / "validation.csv")[1] == {"step": "100", "hours": "0.2", "score": "0.7", "gain": "0.8"}


def test_rows_are_dropped_only_where_there_are_any(tmp_path: Path) -> None:
    drop_rows_after(tmp_path / "none.csv", 5)
    assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, active=False)
    fill(log, 1, 500)
    log.validation({"step": 500, "score": 0.1})
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
