"""Attack the package and measure how it stands: kills, Ctrl-C, exhausted memory, long runs, determinism.

    python benchmarks/stress [PART ...] [--times 30] [--images 500] [--seed 0] [--write]

Parts: kill-deblur, kill-train, interrupt, oom, soak, determinism; all of them by default. Ends with a table in
Markdown; `--write` stores it as benchmarks/STRESS.md, with all figures in benchmarks/stress.json, where the lines of
other parts stay. Exit code 1 if anything failed. Needs Linux and the extra `test`. Child processes run with one thread,
those of `determinism` with one and with two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import determinism  # noqa: E402
import faults  # noqa: E402
import memory  # noqa: E402
from common import Options, Outcome  # noqa: E402

Check = Callable[[Options, Path], Outcome]
PARTS: dict[str, tuple[Check, ...]] = {
    "kill-deblur": (faults.kill_deblur,),
    "kill-train": (faults.kill_train,),
    "interrupt": (faults.interrupt,),
    "oom": (memory.out_of_memory_in_nodes, memory.out_of_memory_in_command, memory.real_limit),
    "soak": (memory.soak_command, memory.soak_nodes),
    "determinism": (determinism.same_bytes, determinism.tolerance),
}
MARKDOWN, FIGURES = ROOT / "benchmarks" / "STRESS.md", ROOT / "benchmarks" / "stress.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print the table; 0 only if every check held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--times", type=int, default=Options.times, help="kills, and interrupts (default: 30)")
    parser.add_argument("--images", type=int, default=Options.images, help="pictures of each soak (default: 500)")
    parser.add_argument("--seed", type=int, default=Options.seed, help="of the random moments (default: 0)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/STRESS.md and stress.json")
    args = parser.parse_args(arguments)
    # A shell has its background jobs, and what they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`: children end too
    options = Options(args.times, args.images, args.seed)
    checks = [(check, part) for part in args.parts or PARTS for check in PARTS[part]]
    outcomes = {check.__name__: run_check(check, options, part) for check, part in checks}
    print(format_table(outcomes.values()))
    if args.write:
        known = {name: Outcome(**values) for name, values in read_figures().items()} | outcomes
        everything = {c.__name__: known[c.__name__] for part in PARTS.values() for c in part if c.__name__ in known}
        figures = {name: asdict(outcome) for name, outcome in everything.items()}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        MARKDOWN.write_text(format_page(everything.values()), encoding="utf-8")
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


def read_figures() -> dict[str, dict[str, Any]]:
    """What earlier runs stored."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def run_check(check: Check, options: Options, part: str) -> Outcome:
    """One check in a folder of its own, timed; what breaks it is its outcome."""
    command = f"python benchmarks/stress {part} --times {options.times} --images {options.images} --seed {options.seed}"
    today, started = date.today().isoformat(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rddm-stress-") as folder:
        try:
            outcome = check(options, Path(folder))
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(check.__name__, False, f"{type(error).__name__}: {error}")
    outcome = replace(outcome, seconds=round(time.monotonic() - started, 1), date=today, command=command)
    print(f"{'passed' if outcome.passed else 'FAILED'} in {outcome.seconds:.0f} s: {outcome.check}: {outcome.measured}")
    sys.stdout.flush()
    return outcome


def format_table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = ["| check | held | measured | s | on |", "|---|---|---|---|---|"]
    for o in outcomes:
        measured = o.measured.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {o.check} | {'yes' if o.passed else '**no**'} | {measured} | {o.seconds:.0f} | {o.date} |")
    return "\n".join(lines)


def format_page(outcomes: Collection[Outcome]) -> str:
    """STRESS.md."""
    import torch

    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    commands = "\n".join(dict.fromkeys(outcome.command for outcome in outcomes))
    return (
        "# Stress\n\n"
        f"Written by `python benchmarks/stress --write` (`make stress`): {platform.system()}, {os.cpu_count()} cores, "
        f"{versions}. All figures: stress.json. The commands of the parts:\n\n```sh\n{commands}\n```\n\n"
        f"{format_table(outcomes)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
