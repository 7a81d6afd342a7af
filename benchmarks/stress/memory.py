"""Memory: errors injected at every tile size, a real limit, and five hundred pictures in one process."""

from __future__ import annotations

import importlib
import io
import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Options,
    Outcome,
    child,
    digests,
    draw_picture,
    environment,
    partial_files,
    resident_kb,
    run_worker,
    write_pictures,
)

STAGES = {"pre_deblur": (448, 256, 64), "guidance": (544, 64), "denoiser": (448, 256, 64)}
"""Sides in pixels above which a stage fails. Tiles of the probe's picture are 576, 320 and 192 pixels long; windows of
the guidance, which have context around, 576 and 512. The last is one that nothing fits."""
CALLS = (1, 3)
"""The error comes at the first evaluation of a stage that is too large, or at a later one."""
LIMITS_MB = (8, 32, 64, 128, 256, 512, 1024)
SOAK_SIZES = ((96, 128), (128, 96), (160, 120), (64, 200), (112, 112))
SOAK_WARMUP = 100
SOAK_BLOCK = 20
FLAT_KB_PER_IMAGE = 10.0
"""Slope up to which memory counts as flat: ten thousand pictures then add 100 MB at most."""


@contextmanager
def failing_above(networks: Any, stage: str, side: int, call: int, error: Exception) -> Iterator[None]:
    """Let the n-th evaluation of a stage on a tile with a side above `side` pixels, and those after it, fail."""
    calls = 0

    def check(module: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal calls
        if max(inputs[0].shape[-2:]) > side:
            calls += 1
            if calls >= call:
                raise error

    hook = getattr(networks, stage).register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def out_of_memory_in_nodes(options: Options, work: Path) -> Outcome:
    """Every stage of the nodes runs out of memory above every tile size."""
    found = run_worker(Path(__file__), "probe_nodes", {"work": str(work)}, work / "log")
    wrong = [case for case in found["cases"] if not case["right"]]
    measured = f"{len(found['cases'])} cases (sides above {STAGES}; first or later)"
    measured += f": {sum(c['end'] == 'result' for c in found['cases'])} right results by smaller tiles, "
    measured += f"{sum(c['end'] == 'error' for c in found['cases'])} out-of-memory errors where no tile fits; "
    measured += f"wrong: {wrong or 'none'}"
    return Outcome("Out of memory in the nodes", not wrong, measured, figures=found)


def probe_nodes(work: str) -> dict[str, Any]:
    """Worker: nodes over the stand-in host, each case against the result with tiles set by hand."""
    import torch
    from pack import fake_host_modules, loaded_pack
    from tiny import write_tiny_checkpoint

    cases = []
    height, width = 300, 520
    halved = (None, 260, 130)  # of which the networks see 320x576, 320x320 and 192x192
    with fake_host_modules() as host:
        host.folders.models_dir = work
        write_tiny_checkpoint(Path(work) / "rddm" / "tiny.safetensors")
        with loaded_pack() as pack:
            (model,) = pack.nodes["RDDMModelLoader"].execute(file="tiny.safetensors", dtype="auto").result
            image = torch.from_numpy(np.array(draw_picture(height, width, 0))).float()[None] / 255
            mask = torch.linspace(0, 1, width).expand(1, height, width)
            core = importlib.import_module(f"{pack.name}.rddm_core.pipeline")
            picture, defocus_map = image.movedim(-1, 1), mask[:, None]

            def by_hand(stage: str, tile: int | None) -> Any:
                guess = core.pre_deblur(model.model, picture, defocus_map, tile=tile)
                if stage == "pre_deblur":
                    return guess.movedim(1, -1)
                return core.sample_residual(model.model, picture, defocus_map, steps=2, samples=2, tile=tile)

            def by_node(stage: str) -> Any:
                if stage == "pre_deblur":
                    return pack.nodes["RDDMPreDeblur"].execute(model=model, image=image, map=mask).result[0]
                inputs = {"pre_deblurred": image, "map": mask, "seed": 0, "steps": 2, "eta": 0.0, "samples": 2}
                sampler = pack.nodes["RDDMSampler"]
                return sampler.execute(model=model, **inputs, tiling={"tiling": "auto"}).result[0]

            for stage, sides in STAGES.items():
                wanted = [by_hand(stage, tile) for tile in halved]
                for side in sides:
                    for call in CALLS:
                        error = torch.OutOfMemoryError("injected: out of memory")
                        with failing_above(model.model, stage, side, call, error):
                            try:
                                result = by_node(stage)
                            except torch.OutOfMemoryError as raised:
                                right, end = raised is error and side == min(sides), "error"
                            else:
                                right, end = any(torch.equal(result, w) for w in wanted), "result"
                        cases.append({"stage": stage, "side": side, "call": call, "end": end, "right": right})
                # Nothing of it is left over for the next execution.
                cases[-1]["right"] = cases[-1]["right"] and torch.equal(by_node(stage), wanted[0])
    return {"cases": cases}


def out_of_memory_in_command(options: Options, work: Path) -> Outcome:
    """Every stage of the command line runs out of memory above every tile size, by every kind of error."""
    found = run_worker(Path(__file__), "probe_command", {"work": str(work)}, work / "log")
    wrong = [case for case in found if not case["right"]]
    measured = f"{len(found)} cases: {sum(c['code'] == 0 for c in found)} right results, "
    measured += f"{sum(c['code'] == 1 for c in found)} messages with the cure, the other pictures written; "
    measured += f"wrong: {wrong or 'none'}"
    return Outcome("Out of memory in `deblur`", not wrong, measured, figures={"cases": found})


def probe_command(work: str) -> list[dict[str, Any]]:
    """Worker: `deblur` on a small, a large and a small picture, where the large one does not fit."""
    import torch
    from tiny import write_tiny_checkpoint

    from rddm_core import checkpoint, cli

    folder = Path(work)
    model_file = write_tiny_checkpoint(folder / "tiny.safetensors")
    pictures = write_pictures(folder / "in", [(60, 60), (300, 520), (60, 64)])
    network = checkpoint.load_checkpoint(model_file)
    checkpoint.load_checkpoint = lambda *args, **options: network

    def run(tile: int | str) -> tuple[int, str, dict[str, str]]:
        out, said = folder / "out", io.StringIO()
        shutil.rmtree(out, ignore_errors=True)
        arguments = ["deblur", *map(str, pictures), "-o", f"{out}/", "--tile", str(tile), "--model", str(model_file)]
        with redirect_stdout(said), redirect_stderr(said):
            code = cli.main(arguments)
        if partial_files(out):
            raise RuntimeError(f"partial files: {partial_files(out)}")
        return code, said.getvalue(), digests(out)

    errors = {
        "torch.OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "the CPU allocator's": lambda: RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 99 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "MemoryError": lambda: MemoryError(),
    }
    tiles: tuple[int | str, ...] = ("off", 320, 192)
    free = {tile: run(tile)[2] for tile in tiles}
    cases = []
    for tile, stage, side in itertools.product(tiles, STAGES, (448, 256, 64)):
        name = list(errors)[len(cases) % len(errors)]
        with failing_above(network, stage, side, 1, errors[name]()):
            code, said, files = run(tile)
        if code == 0:  # tiled finely enough, by the user or by the program
            right = any(files == f for f in free.values())
        else:
            small_ones = all(files.get(p.name) == free[tile][p.name] for p in (pictures[0], pictures[2]))
            right = code == 1 and small_ones and len(files) == 2 and "out of memory, try --tile" in said
        cases.append({"tile": tile, "stage": stage, "error": name, "side": side, "code": code, "right": right})
    return cases


def real_limit(options: Options, work: Path) -> Outcome:
    """A real limit of the address space, set after the weights are loaded."""
    pictures, out, log = work / "in", work / "out", work / "log"
    write_pictures(pictures, [(96, 128), (700, 900)])
    script = (
        "import resource, sys; from rddm_core import checkpoint, cli\n"
        "load = checkpoint.load_checkpoint\n"
        "def limited(*args, **options):\n"
        "    model = load(*args, **options)\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)\n"
        "    return model\n"
        "checkpoint.load_checkpoint = limited\n"
        "sys.exit(cli.main(sys.argv[2:]))\n"
    )
    arguments = ["deblur", str(pictures), "-o", f"{out}/", "--tile", "off", "--working-size", "full"]
    ends: dict[str, str] = {}
    wrong = []
    wanted: dict[str, str] = {}
    for limit in (2**20, *LIMITS_MB):  # first as good as none, to know the right result
        shutil.rmtree(out, ignore_errors=True)
        with child([sys.executable, "-c", script, str(limit), *arguments], log, environment()) as run:
            code, said = run.wait(), run.output()
        files = digests(out)
        wanted = wanted or files
        cures = ("out of memory, try --tile", "does not fit into memory", "out of memory, end other programs")
        told = any(cure in said for cure in cures)
        whole = all(wanted.get(name) == digest for name, digest in files.items())
        if not (whole and not partial_files(out) and ((code == 0 and files == wanted) or (code == 1 and told))):
            wrong.append({"MB": limit, "code": code, "files": len(files), "said": run.tail()})
        if limit in LIMITS_MB:
            ends[f"{limit} MB"] = f"{len(files)} of 2 pictures" if code == 0 or told else f"exit code {code}"
    measured = "above the loaded process: " + ", ".join(f"{k}: {v}" for k, v in ends.items())
    measured += "; every failure with the cure named" if not wrong else f"; WRONG: {wrong}"
    return Outcome("A real limit of memory", not wrong, measured, figures={"ends": ends, "wrong": wrong})


def soak_command(options: Options, work: Path) -> Outcome:
    """Many pictures by one `deblur` command."""
    sizes = [SOAK_SIZES[i % len(SOAK_SIZES)] for i in range(options.images)]
    write_pictures(work / "in", sizes)
    series = run_worker(Path(__file__), "deblur_many", {"work": str(work)}, work / "log")
    return soak_outcome("Soak: `deblur` on a folder", series, options)


def deblur_many(work: str) -> list[int]:
    """Worker: VmRSS in KB after every picture."""
    from rddm_core import cli

    series: list[int] = []

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if " -> " in text:  # one line per finished picture
                series.append(resident_kb())
            return len(text)

    with redirect_stdout(Watched()):
        code = cli.main(["deblur", f"{work}/in", "-o", f"{work}/out/"])
    if code:
        raise RuntimeError(f"exit code {code}")
    return series


def soak_nodes(options: Options, work: Path) -> Outcome:
    """Many executions of RDDM Deblur in one process."""
    task = {"work": str(work), "images": options.images}
    series = run_worker(Path(__file__), "execute_many", task, work / "log")
    return soak_outcome("Soak: RDDM Deblur in a stand-in host", series, options)


def execute_many(work: str, images: int) -> list[int]:
    """Worker: VmRSS in KB after every execution, with the shipped weights."""
    import torch
    from pack import fake_host_modules, loaded_pack

    series = []
    with fake_host_modules() as host:
        host.folders.models_dir = work
        with loaded_pack() as pack:
            loader, deblur = pack.nodes["RDDMModelLoader"], pack.nodes["RDDMDeblur"]
            shipped = importlib.import_module(f"{pack.name}.nodes.host").checkpoint_names()[0]
            (model,) = loader.execute(file=shipped, dtype="auto").result
            for i in range(images):
                height, width = SOAK_SIZES[i % len(SOAK_SIZES)]
                image = torch.from_numpy(np.array(draw_picture(height, width, i))).float()[None] / 255
                settings = {"seed": i, "steps": 0, "strength": 1.0, "working_size": {"working_size": "auto"}}
                deblur.execute(model=model, image=image, **settings)
                host.utils.updates.clear()  # the stand-in keeps what it is told
                host.management.load_calls.clear()
                series.append(resident_kb())
    return series


def soak_outcome(check: str, series: list[int], options: Options) -> Outcome:
    """The slope after the warm-up, from means of blocks, whose errors hardly depend on each other."""
    slope, half_width = fit_slope(series, SOAK_WARMUP if len(series) >= 4 * SOAK_WARMUP else len(series) // 4)
    flat = len(series) == options.images and slope - half_width <= FLAT_KB_PER_IMAGE and slope <= 2 * FLAT_KB_PER_IMAGE
    measured = f"{len(series)} pictures: {slope:+.2f} ± {half_width:.2f} KB per picture (95 %); "
    measured += f"{series[-1] / 1024:.0f} MB at the end"
    figures = {"slope_kb": slope, "half_width_kb": half_width, "rss_kb_every_10th": series[::10]}
    return Outcome(check, flat, measured, figures=figures)


def fit_slope(series: list[int], warmup: int) -> tuple[float, float]:
    """Slope per item, and half the width of its 95 % interval, by least squares over the means of blocks."""
    from scipy import stats

    values = np.asarray(series[warmup:], float)
    block = SOAK_BLOCK if len(values) >= 5 * SOAK_BLOCK else max(1, len(values) // 5)
    count = len(values) // block
    means = values[: count * block].reshape(count, block).mean(axis=1)
    if not np.ptp(means):  # scipy has no error for a line without any deviation
        return 0.0, 0.0
    line = stats.linregress(np.arange(count) * block, means)
    return float(line.slope), float(stats.t.ppf(0.975, count - 2) * line.stderr)
