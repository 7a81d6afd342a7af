"""Measure everything, or parts of it, and write RESULTS.md, results.json and plots.

    python -m benchmarks                       # all parts but `compile`: about 20 minutes on two quiet cores
    python -m benchmarks --only speed --sizes 0.25 0.6
    python -m benchmarks --only compile        # what torch.compile would bring: some minutes more
    python -m benchmarks --quick               # under three minutes; the last line is JSON

Parts that are not measured keep their figures of earlier runs; RESULTS.md says which command measured which part. The
design of the main part, and why not every combination is measured, is in speed.py. Needs Linux, glibc and the extra
`test`; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from rddm_core.checkpoint import default_checkpoint_path, read_info
from rddm_core.files import write_text

from . import analysis, contenders, speed, tiles
from .pictures import SIZES, save_photograph
from .process import MB, ROOT, MeasurementError, in_fresh_process, machine, run_command

IMPORTS = "import torch, torchvision, timm, transformers, safetensors, numpy, PIL"
"""The bare library imports that the first result of a fresh process is compared with."""
THREADS = 2
TARGET_SIZE = "0.6"
RESULTS = ROOT / "benchmarks" / "results.json"


def main() -> None:
    """Run the parts asked for and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only three figures, as one line of JSON; writes no file")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=USUAL, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="MP", help=", ".join(SIZES)
    )
    parser.add_argument(
        "--rounds", type=int, help="of the part speed, instead of 3 for quick and 1 or 2 for long cases"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, metavar="FILE", help="results.json; the rest is beside it"
    )
    args = parser.parse_args()
    if args.quick:
        print(json.dumps(quick()))
        return
    from .report import write_report  # imports matplotlib

    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {"parts": {}}
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    for name in args.only:
        started = time.perf_counter()
        _say(f"{name} ...")
        try:
            found = PARTS[name](args)
        except MeasurementError as error:
            _say(f"{name} failed: {error}")
            found = {"error": str(error)}
        took = time.perf_counter() - started
        _say(f"{name}: {took:.0f} s")
        about = {"command": command, "date": date.today().isoformat(), "machine": machine(), "weights": weights()}
        results["parts"][name] = about | {"took": round(took), "figures": found}
        write_text(args.output, json.dumps(results, indent=1) + "\n")
    write_report(results, args.output.parent)
    _say(f"wrote {args.output} and RESULTS.md beside it")


def weights() -> str:
    """Which weights the parts measure: the first digits of the shipped file's SHA-256."""
    return hashlib.sha256(default_checkpoint_path().read_bytes()).hexdigest()[:12]


# ---------------------------------------------------------------- parts


def measure_speed(args: argparse.Namespace) -> Any:
    """Rows of `speed.summarise`."""
    steps = read_info(default_checkpoint_path()).recommended_steps
    rows = []
    for size in args.sizes:
        counts = {case: args.rounds or speed.rounds(case) for case in speed.cases(size, steps)}
        rows += speed.summarise(speed.take_turns(counts, measure_case))
    return {"default_steps": steps, "rows": rows}


def measure_case(case: speed.Case) -> speed.Run:
    """In a fresh process; a failure is a result."""
    try:
        run: speed.Run = in_fresh_process(contenders.measure, **case.arguments())
    except MeasurementError as error:
        run = {"error": str(error)}
    _say(f"  {case}: {run.get('error') or format(run['seconds'], '.2f') + ' s'}")
    return run


def measure_stages(args: argparse.Namespace) -> Any:
    """Time and memory of each stage alone, at the target's size."""
    rows = []
    for stage in contenders.STAGES:
        found = in_fresh_process(
            contenders.measure_stage, stage=stage, size=SIZES[TARGET_SIZE], threads=THREADS, repeats=5
        )
        row = {"megapixels": TARGET_SIZE, "stage": stage, "megabytes": found["megabytes"]}
        rows.append(row | {"seconds": speed.spread(found["seconds"])})
    return rows


def measure_profile(args: argparse.Namespace) -> Any:
    """`analysis.profile_stages` at the target's size."""
    return in_fresh_process(analysis.profile_stages, size=SIZES[TARGET_SIZE], threads=THREADS, rows=6)


def measure_floor(args: argparse.Namespace) -> Any:
    """`analysis.measure_floor` at the target's size."""
    return in_fresh_process(analysis.measure_floor, size=SIZES[TARGET_SIZE], threads=THREADS, repeats=5)


def measure_first_result(args: argparse.Namespace) -> Any:
    """Seconds of fresh processes, in turns: bare imports, and the command line on a small photograph."""
    imports, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "small.jpg"
        save_photograph(photo, 256, 384)
        for _ in range(5):
            imports.append(run_command([sys.executable, "-c", IMPORTS]))
            deblur = ["-m", "rddm_core", "deblur", str(photo), "-o", str(photo.with_name("result.jpg"))]
            results.append(run_command([sys.executable, *deblur]))
    ratios = [ours / bare for ours, bare in zip(results, imports, strict=True)]
    spreads = {"imports": imports, "result": results, "ratio": ratios}
    return {"code": IMPORTS, "size": "384x256"} | {name: speed.spread(values) for name, values in spreads.items()}


def measure_large(args: argparse.Namespace) -> Any:
    """Peak memory of the command line on a 45-megapixel JPEG at full working size."""
    options = ["--working-size", "full", "--memory", "2GB"]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "large.jpg"
        save_photograph(photo, *SIZES["45"])
        command = ["deblur", str(photo), "-o", str(photo.with_name("result.jpg")), *options]
        return {"options": " ".join(options)} | in_fresh_process(contenders.measure_command, arguments=command)


def measure_tiles(args: argparse.Namespace) -> Any:
    """`tiles.compare_adversarial`."""
    return in_fresh_process(tiles.compare_adversarial, tiles=list(tiles.TILES), threads=THREADS)


def measure_options(args: argparse.Namespace) -> Any:
    """Every variant of `analysis.VARIANTS` in two rounds, in turns."""
    runs: dict[str, list[Any]] = {name: [] for name in analysis.VARIANTS}
    for _ in range(2):
        for name in runs:
            runs[name].append(_measure_variant(name, {"THP_MEM_ALLOC_ENABLE": "1"} if name == "huge pages" else {}))
    return runs


def measure_compile(args: argparse.Namespace) -> Any:
    """The networks through torch.compile, in a process with a cold cache and in one with a warm cache."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            f"compiled, {state} cache": [_measure_variant(analysis.COMPILED, {"TORCHINDUCTOR_CACHE_DIR": cache})]
            for state in ("cold", "warm")
        }


def _measure_variant(name: str, environment: dict[str, str]) -> Any:
    task = {"variant": name, "size": SIZES[TARGET_SIZE], "threads": THREADS, "repeats": 3}
    try:
        found = in_fresh_process(analysis.measure_variant, environment=environment, **task)
    except MeasurementError as error:
        found = {"error": str(error)}
    _say(f"  {name}: {found}")
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "speed": measure_speed,
    "stages": measure_stages,
    "profile": measure_profile,
    "floor": measure_floor,
    "first-result": measure_first_result,
    "large": measure_large,
    "tiles": measure_tiles,
    "options": measure_options,
    "compile": measure_compile,
}
USUAL = [name for name in PARTS if name != "compile"]
"""Compiling takes minutes, and needs a C++ compiler: only where asked for."""


def quick() -> dict[str, float]:
    """`time_ratio` and `memory_ratio` to NAFNet-w32 at 640x960, and `peak_gb` (1e9 bytes above the loaded process) of a
    12-megapixel photograph in tiles.
    """
    steps = read_info(default_checkpoint_path()).recommended_steps
    ours, peer = speed.Case(contenders.PIPELINE, TARGET_SIZE, steps), speed.Case(contenders.NAFNET, TARGET_SIZE)
    rows = speed.summarise(speed.take_turns({peer: 3, ours: 3}, measure_case))
    large = measure_case(speed.Case(contenders.PIPELINE, "12", steps))
    if failed := [r["error"] for r in [*rows, large] if "error" in r]:
        raise SystemExit(f"a measurement failed: {failed[0]}")
    row = rows[1]
    return {
        "time_ratio": round(row["time_ratio"]["median"], 4),
        "memory_ratio": round(row["memory_ratio"]["median"], 4),
        "peak_gb": round(large["megabytes"] * MB / 1e9, 3),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
