"""The same bytes over runs; how far results move with the number of threads and the composition of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import PROGRAM, Options, Outcome, complete, digests, draw_picture, environment, run_worker, write_pictures

RUNS = 3
THREADS = (1, 2)
THREAD_TOLERANCE = 0.5
"""Largest difference over thread counts in steps of 1/255: sums in another order, never a visible change."""
SETTINGS: dict[str, dict[str, Any]] = {
    "1 step": {"steps": 1},
    "3 steps, eta 1, 2 samples": {"steps": 3, "eta": 1.0, "samples": 2},
    "tiles of 256": {"steps": 1, "tile": 256},
}


def same_bytes(options: Options, work: Path) -> Outcome:
    """`deblur` writes the same files in every run at the same number of threads."""
    write_pictures(work / "in", [(96, 128), (300, 420), (130, 150)], suffix=".jpg")
    found: dict[int, set[str]] = {}
    for threads in THREADS:
        for run in range(RUNS):
            out = work / f"out-{threads}-{run}"
            command = [*PROGRAM, "deblur", work / "in", "-o", f"{out}/", "--save-map", "--compare", "--steps", "2"]
            complete(command, work / "log", environment(threads))
            found.setdefault(threads, set()).add(str(sorted(digests(out).items())))
    passed = all(len(results) == 1 for results in found.values())
    across = len(set().union(*found.values())) == 1
    measured = f"{RUNS} runs each at {' and '.join(map(str, THREADS))} threads: "
    measured += f"{'same' if passed else 'DIFFERENT'} bytes at equal thread count; "
    measured += f"across thread counts {'the same too' if across else 'not the same'}"
    return Outcome("Same bytes over runs", passed, measured, figures={"same across threads": across})


def tolerance(options: Options, work: Path) -> Outcome:
    """Largest difference over thread counts and batch compositions, in steps of 1/255."""
    results = {n: work / f"{n}.npz" for n in THREADS}
    for threads, path in results.items():
        run_worker(Path(__file__), "compute", {"path": str(path)}, work / f"log{threads}", threads)
    arrays = {n: np.load(path) for n, path in results.items()}
    few, many = (arrays[n] for n in THREADS)
    over_threads = {name: _steps(few[f"{name}/alone"], many[f"{name}/alone"]) for name in SETTINGS}
    over_batches = {
        f"{name}, {n} threads": max(
            _steps(arrays[n][f"{name}/alone"], arrays[n][f"{name}/{other}"]) for other in ("batch", "reversed")
        )
        for name in SETTINGS
        for n in THREADS
    }
    passed = max(over_threads.values()) <= THREAD_TOLERANCE and max(over_batches.values()) == 0
    measured = f"largest difference in steps of 1/255: {THREADS[0]} against {THREADS[1]} threads "
    measured += ", ".join(f"{name} {value:.2g}" for name, value in over_threads.items())
    measured += f"; alone against in a batch {max(over_batches.values()):.2g}"
    return Outcome(
        "Thread counts and batches", passed, measured, figures={"threads": over_threads, "batches": over_batches}
    )


def compute(path: str) -> int:
    """Worker: three pictures alone, as a batch, and as a batch in reverse order; results to an .npz file."""
    import os

    import torch

    from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
    from rddm_core.pipeline import DeblurSettings, deblur

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = load_checkpoint(default_checkpoint_path())
    pictures = [torch.from_numpy(np.array(draw_picture(320, 400, i))).permute(2, 0, 1)[None] / 255 for i in range(3)]
    arrays = {}
    for name, values in SETTINGS.items():
        seeds = (7, 8, 9)

        def run(order: list[int], values: dict[str, Any] = values, seeds: tuple[int, ...] = seeds) -> np.ndarray:
            settings = DeblurSettings(seed=tuple(seeds[i] for i in order), working_size="full", **values)
            image = deblur(model, torch.cat([pictures[i] for i in order]), settings=settings).image
            return image.reshape(len(order), -1, *image.shape[1:]).numpy()

        arrays[f"{name}/alone"] = np.concatenate([run([i]) for i in range(3)])
        arrays[f"{name}/batch"] = run([0, 1, 2])
        arrays[f"{name}/reversed"] = run([2, 1, 0])[::-1]
    np.savez(path, **arrays)
    return torch.get_num_threads()


def _steps(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max() * 255)
