"""Attack the package and measure how it stands: kills, Ctrl-C, exhausted memory, long runs, determinism.

    python benchmarks/stress [PART ...] [--times 30] [--images 500] [--seed 0] [--write]

Parts: kill-deblur, kill-train, interrupt, oom, soak, determinism; all of them by default. Ends with a table in
Markdown; `--write` stores it as benchmarks/STRESS.md, with all figures in benchmarks/stress.json. Exit code 1 if
anything failed. Needs Linux and the extra `test`. Child processes run with one thread, those of `determinism` with one
and with two.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

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
    options = Options(args.times, args.images, args.seed)
    outcomes = [run_check(check, options) for part in args.parts or PARTS for check in PARTS[part]]
    table = format_table(outcomes)
    print(table)
    if args.write:
        command = "python benchmarks/stress " + " ".join(sys.argv[1:] if arguments is None else arguments)
        MARKDOWN.write_text(format_page(table, outcomes, command), encoding="utf-8")
        FIGURES.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def run_check(check: Check, options: Options) -> Outcome:
    """One check in a folder of its own, timed; what breaks it is its outcome."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rddm-stress-") as folder:
        try:
            outcome = check(options, Path(folder))
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(check.__name__, False, f"{type(error).__name__}: {error}")
    outcome = replace(outcome, seconds=round(time.monotonic() - started, 1))
    print(f"{'passed' if outcome.passed else 'FAILED'} in {outcome.seconds:.0f} s: {outcome.check}: {outcome.measured}")
    sys.stdout.flush()
    return outcome


def format_table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = ["| check | held | measured | s |", "|---|---|---|---|"]
    for o in outcomes:
        measured = o.measured.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {o.check} | {'yes' if o.passed else '**no**'} | {measured} | {o.seconds:.0f} |")
    return "\n".join(lines)


def format_page(table: str, outcomes: Sequence[Outcome], command: str) -> str:
    """STRESS.md."""
    import os

    import torch

    machine = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    minutes = sum(o.seconds for o in outcomes) / 60
    return (
        "# Stress\n\n"
        f"Written by `{command.strip()}` ({machine}, {os.cpu_count()} cores, {minutes:.0f} minutes); "
        "`make stress` runs the same. All figures: stress.json.\n\n"
        f"{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
