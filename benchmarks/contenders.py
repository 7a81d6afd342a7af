"""The work that is measured: the pipeline, its stages, and what it is compared with. Run in fresh processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rddm_core import checkpoint, cli, pipeline
from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
from rddm_core.classical import deconvolve, edge_defocus_map, unsharp_mask
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import DeblurSettings, deblur

from .pictures import photograph
from .process import MB, PeakMemory, timed

PIPELINE, NAFNET, RESTORMER = "RDDM", "NAFNet-w32", "Restormer"
UNSHARP, WIENER, RICHARDSON_LUCY = "unsharp mask", "edge map and Wiener", "edge map and Richardson-Lucy"
STAGES = ("estimator", "pre-deblur", "guidance", "condition", "step", "merge")
LONG = 5.0
"""Seconds from which a first run is taken as it is; shorter ones are repeated, warmed up."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(contender: str, size: tuple[int, int], steps: int, dtype: str, threads: int) -> dict[str, Any]:
    """Seconds of a run on the photograph of `size` (height, width), and MB above the process with the network loaded.

    Memory counts the picture's own pixels. For the pipeline (in tiles of "auto", at full working size, the result alone
    kept) `stages` has the seconds of each network; what is missing to the whole is cutting, noise, merging and checks.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build(contender, DTYPES[dtype])
    memory = PeakMemory()
    picture = photograph(*size)
    clock = StageClock()
    if isinstance(network, RDDM):
        clock.watch(network)
        settings = DeblurSettings(steps=steps, working_size="full")

        def work() -> object:
            return deblur(network, picture, settings=settings, keep_stages=False)
    else:

        def work() -> object:
            with torch.inference_mode():
                return network(picture)

    memory.restart()
    seconds = timed(work)
    if seconds < LONG:
        clock.seconds.clear()
        seconds = timed(work)
    return {"seconds": seconds, "megabytes": memory.above(), "stages": clock.seconds}


def build(contender: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The network (random weights for the peers: they do not change the arithmetic) or function of a contender."""
    if contender == PIPELINE:
        return load_checkpoint(default_checkpoint_path(), dtype=dtype)
    if contender == UNSHARP:
        return unsharp_mask
    if contender == WIENER:
        return lambda x: deconvolve(x, edge_defocus_map(x), method="wiener")
    if contender == RICHARDSON_LUCY:
        return lambda x: deconvolve(x, edge_defocus_map(x), method="richardson_lucy")
    network = {NAFNET: nafnet, RESTORMER: restormer}[contender]().eval().to(dtype)
    return lambda x: network(x.to(dtype))


def nafnet() -> nn.Module:
    """NAFNet-w32 with blocks 1-1-1-28 / 1 / 1-1-1-1, the deblurring configuration of its authors."""
    from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet

    return NAFNet(width=32, middle_blk_num=1, enc_blk_nums=[1, 1, 1, 28], dec_blk_nums=[1, 1, 1, 1])


def restormer() -> nn.Module:
    """Restormer as its authors configure it for defocus deblurring from one picture."""
    from spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch import Restormer

    return Restormer()


def measure_command(arguments: list[str]) -> dict[str, float]:
    """The command line with these arguments, in this process: seconds, MB once the network is loaded, and MB above that
    at the peak. Raises SystemExit if it fails.
    """
    loaded: list[PeakMemory] = []
    load = checkpoint.load_checkpoint

    def load_and_note(*args: Any, **kwargs: Any) -> RDDM:
        model = load(*args, **kwargs)
        loaded.append(PeakMemory())
        loaded[0].restart()
        return model

    checkpoint.load_checkpoint = load_and_note
    started = time.perf_counter()
    if code := cli.main(arguments):
        raise SystemExit(code)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "loaded_mb": loaded[0].before / MB, "above_mb": loaded[0].above()}


class StageClock:
    """Sums up the seconds that a model's stages take inside the pipeline."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, model: RDDM) -> None:
        """Time the calls of `model` from now on."""
        denoiser = model.denoiser
        for stage, owner, name in (
            ("estimator", model.estimator, "forward"),
            ("pre-deblur", model.pre_deblur, "forward"),
            ("guidance", model.guidance, "forward"),
            ("condition", denoiser, "encode_condition"),
            ("step", denoiser, "forward"),
        ):
            setattr(owner, name, self._timed(stage, getattr(owner, name)))

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

        return run


def stage_works(model: RDDM, size: tuple[int, int]) -> Mapping[str, Callable[[], object]]:
    """Every stage on the whole photograph of `size`, its inputs computed beforehand; call them in inference mode."""
    picture = photograph(*size)
    defocus_map = pipeline.estimate_defocus_map(model, picture)
    guess = pipeline.pre_deblur(model, picture, defocus_map)
    guidance = pipeline.encode_guidance(model, guess)
    condition = model.denoiser.encode_condition(guess, defocus_map, guidance)
    noise, t = torch.randn_like(picture), torch.full((1,), model.config.diffusion.timesteps)
    residual = model.denoiser(noise, t, condition) / model.residual_scale
    return {
        "estimator": lambda: pipeline.estimate_defocus_map(model, picture),
        "pre-deblur": lambda: pipeline.pre_deblur(model, picture, defocus_map),
        "guidance": lambda: pipeline.encode_guidance(model, guess),
        "condition": lambda: model.denoiser.encode_condition(guess, defocus_map, guidance),
        "step": lambda: model.denoiser(noise, t, condition),
        "merge": lambda: pipeline.merge_residual(picture, guess, residual),
    }


def measure_stage(stage: str, size: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of `repeats` runs of one stage on the whole photograph, and MB above what its inputs take."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        work = stage_works(load_checkpoint(default_checkpoint_path()), size)[stage]
        memory = PeakMemory()
        memory.restart()
        work()
        return {"seconds": [timed(work) for _ in range(repeats)], "megabytes": memory.above()}
