"""What a training run leaves behind beside its checkpoints: CSV, TensorBoard and curves as a picture."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_target, write_text

Row = Mapping[str, float]


class RunLog:
    """train.csv (means over EVERY steps), validation.csv, tensorboard/, curves.png and lines on the console.

    Silent but on the main process. `step` is where the run starts or goes on: rows of later steps, written before a
    kill but after the last checkpoint, are dropped, because those steps are trained again. curves.png is drawn
    at every validation. Without the package tensorboard there are no such files, and nothing else changes.
    """

    EVERY = 50

    def __init__(self, folder: Path, active: bool, step: int = 0) -> None:
        self.folder, self.active = folder, active
        self.sums: dict[str, float] = {}
        self.count = 0
        self.timed, self.started = 0, time.monotonic()
        self.writer: Any = None
        if active:
            for name in ("train.csv", "validation.csv"):
                drop_rows_after(folder / name, step)
            self.writer = open_tensorboard(folder / "tensorboard", step)

    def step(self, step: int, losses: Row, norm: float, rate: float, spent: Row) -> None:
        """Count one training step; every EVERY steps a row is written. `spent`: hours since the run began."""
        self.count += 1
        self.timed += 1
        for key, value in {**losses, "gradient_norm": norm}.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if step % self.EVERY == 0:
            now = time.monotonic()
            row = {"step": step, **spent, "learning_rate": rate, "steps_per_second": self.timed / (now - self.started)}
            row |= {key: value / self.count for key, value in self.sums.items()}
            self._append("train", row)
            if step % (10 * self.EVERY) == 0:
                self.line(" ".join(f"{key} {value:.5g}" for key, value in row.items()))
            self.sums, self.count, self.timed, self.started = {}, 0, 0, now

    def validation(self, row: Row) -> None:
        """Write the figures of one validation (with `step` among them) and draw the curves anew."""
        self._append("validation", row)
        self.line("validation " + " ".join(f"{key} {value:.4g}" for key, value in row.items()))
        if self.active:
            draw_curves(self.folder)
        # The speed of the next row is that of the steps from here on: a validation is no training.
        self.timed, self.started = 0, time.monotonic()

    def line(self, text: str) -> None:
        """A line on the console."""
        if self.active:
            print(text, flush=True)

    def _append(self, name: str, row: Row) -> None:
        if not self.active:
            return
        path = self.folder / f"{name}.csv"
        columns = read_columns(path)  # a file that an earlier version began keeps its own
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=columns or list(row), extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        if self.writer is not None:
            for key, value in row.items():
                if key != "step":
                    self.writer.add_scalar(f"{name}/{key}", value, int(row["step"]))
            self.writer.flush()


def open_tensorboard(folder: Path, step: int) -> Any:
    """A SummaryWriter that hides what an earlier process wrote for steps after `step`; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def read_columns(path: Path) -> list[str]:
    """The column names of a CSV file, [] where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, [] where there is none; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if None not in row.values()]


def drop_rows_after(path: Path, step: int) -> None:
    """Rewrite the CSV file at `path`, if there is one, without the rows whose `step` is above `step`."""
    if not path.is_file():
        return
    kept = [row for row in read_rows(path) if float(row["step"]) <= step]
    if kept:
        write_text(path, "".join(",".join(line) + "\n" for line in (list(kept[0]), *(list(r.values()) for r in kept))))
    else:
        path.unlink()


def draw_curves(folder: Path) -> Path:
    """curves.png in `folder`: the losses of train.csv over the score and the dev figures of validation.csv."""
    from matplotlib.figure import Figure  # the object interface: no window system, no global state

    train, validation = read_rows(folder / "train.csv"), read_rows(folder / "validation.csv")
    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    losses = _series(train, exclude=("hours", "cpu_hours", "learning_rate", "steps_per_second", "gradient_norm"))
    for axis, series, label in (
        (above, losses, "training loss"),
        (below, _series(validation, exclude=("hours", "cpu_hours", "score")), "validation (dev)"),
    ):
        for key, (steps, values) in series.items():
            axis.plot(steps, values, marker="." if len(steps) < 40 else None, label=key)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if series:
            axis.legend(fontsize="small")
    if all(value > 0 for _, values in losses.values() for value in values) and losses:
        above.set_yscale("log")
    below.set_xlabel("step")
    path = folder / "curves.png"
    with atomic_target(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return path


def _series(rows: Sequence[Mapping[str, str]], exclude: tuple[str, ...]) -> dict[str, tuple[list[float], list[float]]]:
    keys = [key for key in (rows[0] if rows else {}) if key not in ("step", *exclude)]
    steps = [float(row["step"]) for row in rows]
    return {key: (steps, [float(row[key]) for row in rows]) for key in keys}
