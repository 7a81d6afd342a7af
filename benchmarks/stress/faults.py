"""kill -9 and Ctrl-C at random moments of `deblur` on a folder and of `train`."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import (
    POLL,
    PROGRAM,
    Child,
    Options,
    Outcome,
    child,
    complete,
    digests,
    draw_picture,
    environment,
    partial_files,
    sessions_alive,
    spread,
    write_pictures,
)

KINDS: tuple[Literal["at any time", "at work", "while writing"], ...] = ("at any time", "at work", "while writing")
KILLS_PER_RUN = 5
"""After so many kills the run is left to complete, and compared."""
MANIFEST = "manifest.jsonl"
"""What `deblur --resume` keeps among the results; it holds times."""
SIZES = ((96, 128), (160, 120), (64, 200), (384, 512))
TRAINING_STEPS = 6
ORPHANS_MAY_LIVE = 30.0
"""Seconds: loader workers of a killed training look for their parent every few."""
CTRL_C_LIMIT = 2.0
GOOD_ENDS = ("130", "by the signal while the program was imported", "1 while Python itself started")
"""After Ctrl-C. Shells show 130 for the second too; of the third no program knows."""


@dataclass(frozen=True)
class Moment:
    """When to strike: `delay` seconds after the start, or after the first write, or while the n-th file is written."""

    kind: Literal["at any time", "at work", "while writing"]
    delay: float
    write: int

    def reach(self, victim: Child, folder: Path) -> bool:
        """Wait for it; False where the command ended before."""
        if self.kind == "at any time":
            return _sleep(victim, self.delay)
        seen: set[str] = set()
        before = time.time_ns()
        while victim.running():
            under_way = [path for path in _names(folder) if path.endswith(".partial")]
            seen.update(under_way)
            if self.kind == "while writing" and under_way and len(seen) >= self.write:
                return True
            if self.kind == "at work" and (seen or _written_after(folder, before)):
                return _sleep(victim, self.delay)
            time.sleep(POLL)
        return False


@dataclass(frozen=True)
class Course:
    """How an uninterrupted run went: seconds until its first write and in all, and its writes."""

    first_write: float
    seconds: float
    writes: int

    def moment(self, kind: Literal["at any time", "at work", "while writing"], rng: np.random.Generator) -> Moment:
        """A random one of that kind."""
        length = self.seconds if kind == "at any time" else self.seconds - self.first_write
        return Moment(kind, float(rng.uniform(0, length)), int(rng.integers(1, self.writes + 1)))


def watch_course(command: list[str | Path], log: Path, env: dict[str, str], folder: Path) -> Course:
    """Run a command to its end and note when it writes into `folder`."""
    seen: set[str] = set()
    first = 0.0
    with child(command, log, env) as running:
        while running.running():
            under_way = {name for name in _names(folder) if name.endswith(".partial")}
            if under_way and not seen:
                first = time.monotonic() - running.started
            seen |= under_way
            time.sleep(POLL)
        if code := running.wait():
            raise RuntimeError(f"exit code {code} of {command}: {running.tail()}")
        return Course(first, time.monotonic() - running.started, max(1, len(seen)))


def kill_deblur(options: Options, work: Path) -> Outcome:
    """Kill `deblur` on a folder at random moments; what is finished is whole, and a restart completes.

    The runs take turns: into an empty folder, over the results of the run before, and with --resume into an empty one.
    """
    pictures, out, log = work / "in", work / "out", work / "log"
    write_pictures(pictures, SIZES)
    extras = ["--save-map", "--compare"]
    command = [*PROGRAM, "deblur", pictures, "-o", f"{out}/", *extras]
    course = watch_course(command, log, environment(), out)
    wanted = digests(out)
    rng = np.random.default_rng(options.seed)
    kinds: Counter[str] = Counter()
    number = left = wrong = completed = litter = runs = 0
    while number < options.times:
        if runs % 3 != 1:
            shutil.rmtree(out)
        this_run = [*command, "--resume"] if runs % 3 == 2 else command
        for _ in range(min(KILLS_PER_RUN, options.times - number)):
            number += 1
            kind = KINDS[number % len(KINDS)]
            strike = _kill(this_run, log, environment(), out, course, kind, rng)
            if not strike.reached:  # with --resume everything may be done already
                shutil.rmtree(out)
                strike = _kill(this_run, log, environment(), out, course, kind, rng)
            kinds[kind] += strike.reached
            left += len(partial_files(out))
            finished = {name: digest for name, digest in digests(out).items() if name != MANIFEST}
            wrong += sum(wanted[name] != digest for name, digest in finished.items())
        complete(this_run, log, environment())
        runs += 1
        completed += {name: digest for name, digest in digests(out).items() if name != MANIFEST} == wanted
        litter += len(partial_files(out))
    figures = {
        "kills": dict(kinds),
        "partial files right after kills": left,
        "finished files that differ": wrong,
        "runs completed with the same bytes": f"{completed} of {runs}",
        "partial files after completion": litter,
    }
    passed = wrong == litter == 0 and completed == runs and sum(kinds.values()) == options.times
    return Outcome("kill -9 of `deblur` on a folder", passed, _sentence(figures), figures=figures)


@dataclass(frozen=True)
class Strike:
    """A struck command: whether the moment came, and the session of its processes."""

    reached: bool
    session: int


def _kill(
    command: list[str | Path],
    log: Path,
    env: dict[str, str],
    folder: Path,
    course: Course,
    kind: Literal["at any time", "at work", "while writing"],
    rng: np.random.Generator,
    attempts: int = 5,
) -> Strike:
    """Start a command and kill it; where it ends before its moment, again with an earlier one."""
    session = 0
    for attempt in range(attempts):
        drawn = course.moment(kind, rng)
        moment = Moment(kind, drawn.delay / (attempt + 1), max(1, drawn.write // (attempt + 1)))
        with child(command, log, env) as victim:
            session = victim.session
            if moment.reach(victim, folder):
                victim.kill()
                return Strike(True, session)
            if code := victim.wait():
                raise RuntimeError(f"exit code {code} of {command}: {victim.tail()}")
    return Strike(False, session)


def write_recipe(work: Path, name: str) -> Path:
    """A recipe for the tiny networks: two real pairs, a validation and a checkpoint after every step, one worker."""
    from tiny import write_tiny_checkpoint

    pairs, tiny = work / "real_pairs", work / "tiny.safetensors"
    if not tiny.exists():
        write_tiny_checkpoint(tiny)
        pairs.mkdir()
        lines = ["blur,sharp,split"]
        for i, split in enumerate(("train", "train", "dev")):
            for kind, factor in (("blur", 3), ("sharp", 1)):
                picture = draw_picture(88, 96, i)
                small = picture.resize((96 // factor, 88 // factor)).resize((96, 88))
                small.save(pairs / f"{i}_{kind}.png")
            lines.append(f"{i}_blur.png,{i}_sharp.png,{split}")
        (pairs / "manifest.csv").write_text("\n".join(lines) + "\n")
    values: dict[str, Any] = {
        "name": name,
        "stage": "joint",
        "start_from": str(tiny),
        "data": {"root": str(work), "sharp": "", "masks": ""},
        "mixture": {"crop": 64, "synthetic": 0.0, "real": 1.0, "identity": 0.0},
        "batch": 2,
        "steps": TRAINING_STEPS,
        "warmup_steps": 2,
        "workers": 1,
        "checkpoint_minutes": 0.0,
        "validate_minutes": 0.0,
    }
    path = work / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def training_result(folder: Path) -> dict[str, Any]:
    """What a run ended with, comparable bit for bit: hashes of both exported weights, scores by step."""
    import hashlib

    from safetensors import safe_open

    result: dict[str, Any] = {}
    for name in ("model", "best"):
        digest = hashlib.sha256()
        with safe_open(folder / f"{name}.safetensors", "pt") as tensors:  # without the header, which holds hours
            for key in sorted(tensors.keys()):
                digest.update(key.encode() + tensors.get_tensor(key).numpy().tobytes())
        result[name] = digest.hexdigest()
    with (folder / "validation.csv").open(newline="") as handle:
        rows = [
            {key: value for key, value in row.items() if not key.endswith("hours")} for row in csv.DictReader(handle)
        ]
    result["validation"] = {row["step"]: row for row in rows}
    return result


def kill_train(options: Options, work: Path) -> Outcome:
    """Kill `train` at random moments; --resume completes with the weights of an uninterrupted run."""
    runs, log = work / "runs", work / "log"
    env = environment(RDDM_RUNS=str(runs))
    reference = [*PROGRAM, "train", write_recipe(work, "whole"), "--resume"]
    course = watch_course(reference, log, env, runs / "whole")
    wanted = training_result(runs / "whole")
    rng = np.random.default_rng(options.seed)
    kinds: Counter[str] = Counter()
    sessions: list[int] = []
    number = completed = same = left = litter = 0
    while number < options.times:
        name = f"killed-{completed}"
        command = [*PROGRAM, "train", write_recipe(work, name), "--resume"]
        for _ in range(min(KILLS_PER_RUN, options.times - number)):
            number += 1
            kind = KINDS[number % len(KINDS)]
            strike = _kill(command, log, env, runs / name, course, kind, rng)
            kinds[kind] += strike.reached
            sessions.append(strike.session)
            left += len(partial_files(runs / name))
        complete(command, log, env)
        completed += 1
        same += training_result(runs / name) == wanted
        litter += len(partial_files(runs / name))
        shutil.rmtree(runs / name)
    orphans = _orphans(sessions)
    figures = {
        "kills": dict(kinds),
        "partial files right after kills": left,
        "runs completed with the same weights and scores": f"{same} of {completed}",
        "partial files after completion": litter,
        "processes left behind": len(orphans),
    }
    passed = same == completed and not litter and not orphans and sum(kinds.values()) == options.times
    return Outcome("kill -9 of `train`, then `--resume`", passed, _sentence(figures), figures=figures)


def interrupt(options: Options, work: Path) -> Outcome:
    """Ctrl-C at random moments of `deblur` and of `train`: soon over, exit code 130, nothing half written."""
    small, large, out, runs = work / "in", work / "large", work / "out", work / "runs"
    write_pictures(small, SIZES)
    write_pictures(large, [(1000, 1500)])
    deblur = [*PROGRAM, "deblur", small, "-o", f"{out}/", "--save-map", "--compare"]
    whole = [*PROGRAM, "deblur", large, "-o", f"{out}/", "--tile", "off", "--working-size", "full"]
    train = [*PROGRAM, "train", write_recipe(work, "run"), "--resume"]
    env, log, rng = environment(RDDM_RUNS=str(runs)), work / "log", np.random.default_rng(options.seed)
    cases: list[tuple[str, list[str | Path], Path, Course, tuple[float, float]]] = []
    for name, command, folder in (
        ("small pictures", deblur, out),
        ("one large picture", whole, out),
        ("training", train, runs / "run"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        course = watch_course(command, log, env, folder)
        if name == "small pictures":  # the imports, mostly
            cases.append(("start-up", command, folder, course, (0.0, course.first_write)))
        # Of the large picture everything after the start-up of the small ones is its evaluation.
        begin = cases[0][3].first_write if name == "one large picture" else course.first_write
        cases.append((name, command, folder, course, (min(begin, course.seconds / 2), course.seconds)))
    seconds: dict[str, list[float]] = {}
    codes: Counter[str] = Counter()
    litter = missed = 0
    sessions = []
    for number in range(options.times):
        name, command, folder, course, (low, high) = cases[number % len(cases)]
        writing = name in ("small pictures", "training") and number // len(cases) % 2 == 0
        shutil.rmtree(folder, ignore_errors=True)
        delay = float(rng.uniform(low, high))
        moment = Moment("while writing" if writing else "at any time", delay, int(rng.integers(1, course.writes + 1)))
        with child(command, log, env) as running:
            sessions.append(running.session)
            if not moment.reach(running, folder):
                missed += 1
                continue
            struck = time.monotonic()
            running.interrupt()
            code = running.wait()
            seconds.setdefault(name, []).append(time.monotonic() - struck)
            codes[_how_it_ended(code, running.output())] += 1
            litter += len(partial_files(folder))
    orphans = _orphans(sessions)
    slowest = max((t for times in seconds.values() for t in times), default=0.0)
    wrong = [code for code in codes if code not in GOOD_ENDS]
    figures = {
        "seconds to exit, least / median / largest": {name: spread(times) for name, times in seconds.items()},
        "exit codes": dict(codes),
        "partial files": litter,
        "ended before the moment": missed,
        "processes left behind": len(orphans),
    }
    passed = slowest <= CTRL_C_LIMIT and not (wrong or litter or orphans) and missed < options.times / 2
    return Outcome("Ctrl-C in `deblur` and `train`", passed, _sentence(figures), figures=figures)


def _how_it_ended(code: int, output: str) -> str:
    """One of GOOD_ENDS, or the code and the end of the output."""
    if code == 130 and "interrupted:" in output:
        return GOOD_ENDS[0]
    if code == -signal.SIGINT:
        return GOOD_ENDS[1]
    if code == 1 and "Fatal Python error: init_import_site" in output:
        return GOOD_ENDS[2]
    return f"{code} ({output[-200:].strip()})"


def _orphans(sessions: list[int]) -> list[int]:
    """Sessions that still have processes after the time that loader workers need to find their parent gone."""
    give_up = time.monotonic() + ORPHANS_MAY_LIVE
    while (alive := sessions_alive(sessions)) and time.monotonic() < give_up:
        time.sleep(0.5)
    return alive


def _sleep(victim: Child, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while victim.running():
        if time.monotonic() >= until:
            return True
        time.sleep(POLL)
    return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _written_after(folder: Path, nanoseconds: int) -> bool:
    for name in _names(folder):
        try:
            if os.stat(folder / name).st_mtime_ns > nanoseconds:
                return True
        except FileNotFoundError:  # renamed meanwhile
            continue
    return False


def _sentence(figures: dict[str, Any]) -> str:
    parts = []
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        parts.append(f"{name}: {value}")
    return "; ".join(parts)
