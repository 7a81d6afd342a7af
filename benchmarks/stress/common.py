"""What the stress runs share: pictures, child processes, what lies in a folder, outcomes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "rddm_core")
POLL = 0.0005
"""Seconds between two looks at a folder; a small picture is written in some milliseconds."""
PATIENCE = 3600.0
"""Seconds after which a child process counts as hung."""


@dataclass(frozen=True)
class Outcome:
    """One line of the summary: what was checked, whether it held, what was measured, in what time, on which day and by
    which command."""

    check: str
    passed: bool
    measured: str
    seconds: float = 0.0
    date: str = ""
    command: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """times: kills and interrupts; images: of each soak; seed: of every random choice."""

    times: int = 30
    images: int = 500
    seed: int = 0


def environment(threads: int = 1, **more: str) -> dict[str, str]:
    """Of child processes: this checkout, that number of threads, no network, output line by line."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RDDM_")}
    number = str(threads)
    fixed = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": number}
    return {**kept, **fixed, "MKL_NUM_THREADS": number, **more}


def draw_picture(height: int, width: int, seed: int) -> Image.Image:
    """Soft shapes, a grating and lines: something to blur and to sharpen, the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for x in range(0, width // 2, 4):
        draw.line((x, 0, x, height // 3), fill=(20, 20, 20))
    for _ in range(12):
        ends = [int(v) for v in rng.integers(0, max(height, width), 4)]
        draw.line(ends, fill=tuple(int(v) for v in rng.integers(0, 256, 3)), width=2)
    return picture


def write_pictures(folder: Path, sizes: Sequence[tuple[int, int]], suffix: str = ".png") -> list[Path]:
    """One picture per size (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (height, width) in enumerate(sizes):
        paths.append(folder / f"p{i:04d}{suffix}")
        draw_picture(height, width, i).save(paths[-1])
    return paths


class Child:
    """A command in a session of its own, so that a signal can go to it alone or, like Ctrl-C, to all its processes."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: dict[str, str]) -> None:
        self.log, self.started = log, time.monotonic()
        with log.open("wb") as handle:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def session(self) -> int:
        """Of this process and of those that it starts."""
        return self.process.pid

    def running(self) -> bool:
        """Whether the command itself has not ended."""
        return self.process.poll() is None

    def wait(self) -> int:
        """Exit code, negative for a signal; a process that hangs is killed, which fails the run."""
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.end()
            hung = f"{self.process.args!r} hung for {PATIENCE:.0f} s"
            raise RuntimeError(f"{hung}; its output ends: {self.tail()}") from None

    def kill(self) -> None:
        """kill -9 of the command alone, as from a shell; processes that it started are not told."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the whole session."""
        os.killpg(self.session, signal.SIGINT)

    def end(self) -> None:
        """Nothing of it runs any more."""
        if self.running():
            os.killpg(self.session, signal.SIGKILL)
            self.process.wait()

    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The end of what it printed."""
        return self.output()[-600:].strip()


@contextmanager
def child(command: Sequence[str | Path], log: Path, env: dict[str, str]) -> Iterator[Child]:
    """A running command, ended at the latest on leaving."""
    started = Child(command, log, env)
    try:
        yield started
    finally:
        started.end()


def complete(command: Sequence[str | Path], log: Path, env: dict[str, str]) -> float:
    """Run a command to its end; the seconds it took. RuntimeError with its output unless it succeeds."""
    with child(command, log, env) as running:
        if code := running.wait():
            raise RuntimeError(f"exit code {code} of {running.process.args!r}: {running.tail()}")
        return time.monotonic() - running.started


def run_worker(module: Path, function: str, task: dict[str, Any], log: Path, threads: int = 1) -> Any:
    """`function(**task)` of a stress module in a fresh interpreter; what it returns, by JSON."""
    import json

    answer = log.with_suffix(".json")
    script = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); from pathlib import Path; "
        f"import {module.stem} as m; "
        f"Path(sys.argv[3]).write_text(json.dumps(m.{function}(**json.loads(sys.argv[2]))))"
    )
    paths = json.dumps([str(module.parent), str(ROOT / "tests" / "support")])
    complete([sys.executable, "-c", script, paths, json.dumps(task), answer], log, environment(threads))
    return json.loads(answer.read_text())


def sessions_alive(sessions: Sequence[int]) -> list[int]:
    """Those of `sessions` that still have a process, zombies aside."""
    alive = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                state, _, _, session = Path(entry.path, "stat").read_text().rpartition(") ")[2].split()[:4]
            except OSError:  # it has ended meanwhile
                continue
            if state != "Z":
                alive.add(int(session))
    return [session for session in sessions if session in alive]


def partial_files(folder: Path) -> list[Path]:
    """Temporary files of writes under way, or left by a kill."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith(".partial")) if folder.is_dir() else []


def digests(folder: Path) -> dict[str, str]:
    """Name -> hash of every finished file in the folder."""
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")] if folder.is_dir() else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def resident_kb(pid: int | str = "self") -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no VmRSS: this needs Linux")


def spread(values: Sequence[float]) -> str:
    """Least, median and largest."""
    if not values:
        return "none"
    low, middle, high = min(values), float(np.median(values)), max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f}"
