"""Time and peak memory of the whole pipeline beside NAFNet-w32, in one run.

    python benchmarks/speed.py [--sizes 640x960 1120x1680] [--steps 1 3] [--repeats 3] [--threads 2] [--json FILE]

Every contender gets a process of its own at every size. It is warmed up once, then timed; memory is what the
operating system counts (VmHWM) above the process with the network loaded. Random pixels and, for NAFNet, random
weights: neither changes the arithmetic. The contenders take turns, so that a machine that slows down slows all.
Needs Linux and the extra `test` (spandrel).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAFNET = "NAFNet-w32"


def main() -> None:
    """Run all contenders, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["640x960", "1120x1680"], metavar="HxW")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1, 3], help="0 is the checkpoint's choice")
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped weights)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(**json.loads(args.worker))))
        return
    rows = []
    for size in args.sizes:
        height, width = (int(n) for n in size.split("x"))
        contenders = [{"name": NAFNET, "steps": 0, "dtype": d} for d in args.dtypes]
        contenders += [{"name": "RDDM", "steps": n, "dtype": d} for d in args.dtypes for n in args.steps]
        shared = {"height": height, "width": width, "threads": args.threads, "model": args.model}
        runs: list[list[dict[str, Any]]] = [[] for _ in contenders]
        for _ in range(args.repeats):
            for contender, measured in zip(contenders, runs, strict=True):
                measured.append(in_process(contender | shared))
        reference: dict[str, float] = {}
        for contender, measured in zip(contenders, runs, strict=True):
            rows.append(summarise(size, contender, measured, reference))
    print(format_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def in_process(task: dict[str, Any]) -> dict[str, Any]:
    """Run `measure` in a fresh interpreter."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(task)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(answer.stdout.splitlines()[-1])


def measure(name: str, steps: int, dtype: str, height: int, width: int, threads: int, model: str) -> dict[str, Any]:
    """One warm-up and one timed run; seconds and MB above the loaded process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image = torch.rand(1, 3, height, width)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    used, work = rddm(image, steps, kind, model) if name == "RDDM" else (0, nafnet(image, kind))
    loaded = status("VmRSS")
    reset_peak()
    work()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": status("VmHWM") - loaded, "steps": used}


def rddm(image: Any, steps: int, dtype: Any, model: str) -> tuple[int, Callable[[], object]]:
    """The whole pipeline on the whole picture."""
    sys.path.insert(0, str(ROOT))
    from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
    from rddm_core.pipeline import DeblurSettings, deblur

    network = load_checkpoint(model or default_checkpoint_path(), dtype=dtype)
    settings = DeblurSettings(steps=steps, working_size="full", tile=None)
    return steps or network.recommended_steps, lambda: deblur(network, image, settings=settings)


def nafnet(image: Any, dtype: Any) -> Callable[[], object]:
    """NAFNet-w32 with blocks 1-1-1-28 / 1 / 1-1-1-1, the deblurring configuration of its authors."""
    import torch
    from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet

    network = NAFNet(width=32, middle_blk_num=1, enc_blk_nums=[1, 1, 1, 28], dec_blk_nums=[1, 1, 1, 1])
    network = network.eval().to(dtype)
    x = image.to(dtype)

    def work() -> object:
        with torch.inference_mode():
            return network(x)

    return work


def status(key: str) -> float:
    """An entry of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def reset_peak() -> None:
    """Start VmHWM from the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def summarise(
    size: str, contender: dict[str, Any], runs: list[dict[str, Any]], reference: dict[str, float]
) -> dict[str, Any]:
    """Medians and spread of one contender, and its ratios to NAFNet of the same precision."""
    seconds = [r["seconds"] for r in runs]
    median, memory = statistics.median(seconds), statistics.median(r["megabytes"] for r in runs)
    key = contender["dtype"]
    if contender["name"] == NAFNET:
        reference |= {f"{key} time": median, f"{key} memory": memory}
    steps = runs[0]["steps"]
    label = contender["name"] if contender["name"] == NAFNET else f"RDDM, {steps} step{'s' * (steps > 1)}"
    if contender["name"] == "RDDM" and contender["steps"] == 0:
        label += " (default)"
    return {
        "size": size,
        "contender": label,
        "dtype": key,
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "megabytes": memory,
        "time_ratio": median / reference[f"{key} time"],
        "memory_ratio": memory / reference[f"{key} memory"],
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| size | network | precision | s (min to max) | MB | time ratio | memory ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        spread = f"{r['seconds']:.2f} ({r['seconds_min']:.2f} to {r['seconds_max']:.2f})"
        ratios = f"{r['time_ratio']:.2f} | {r['memory_ratio']:.2f}"
        lines.append(f"| {r['size']} | {r['contender']} | {r['dtype']} | {spread} | {r['megabytes']:.0f} | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
