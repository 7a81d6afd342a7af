"""One picture of a run, and its three stages, which an engine calls where and when it wants."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__, images, pipeline
from ..callbacks import Callbacks
from ..checkpoint import load_checkpoint
from ..memory import ran_out_of_memory
from ..networks.model import RDDM

EXTRA_SUFFIXES = {"map": ".png", "pre-deblur": ".png", "compare": ".jpg"}
"""What may be written beside a result, by name, with the ending of its file."""


@dataclass(frozen=True)
class Job:
    """One picture to deblur: where it is, where the result goes, and the extras beside it by name (EXTRA_SUFFIXES)."""

    source: Path
    target: Path
    extras: dict[str, Path] = field(default_factory=dict)

    def outputs(self) -> list[Path]:
        """Every file that is written."""
        return [self.target, *self.extras.values()]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result of `width` x `height` pixels after `seconds`, or why there is none."""

    job: Job
    error: str | None = None
    width: int = 0
    height: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """How the pictures of a run are deblurred. Small, so that it can be sent to other processes.

    Attributes:
        max_pixels: larger pictures are refused (`images.load_image`).
    """

    settings: pipeline.DeblurSettings
    checkpoint: Path
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    max_pixels: int = images.DEFAULT_MAX_PIXELS

    def load_model(self) -> RDDM:
        """Raises CheckpointError."""
        return load_checkpoint(self.checkpoint, dtype=self.dtype, device=self.device)

    def fingerprint(self) -> str:
        """16 hex digits that change with whatever changes results: settings, weights, precision, kind of device."""
        parts = {
            "settings": asdict(self.settings),
            "weights": hashlib.sha256(self.checkpoint.read_bytes()).hexdigest(),
            "dtype": str(self.dtype),
            "device": self.device.type,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Pictures:
    """What `compute` made for one job: the result [3, H, W] and its extras by name, each [3, h, w]."""

    result: Tensor
    extras: dict[str, Tensor]


def read(work: Work, job: Job) -> images.LoadedImage:
    """The job's picture. Raises ImageError for it, or for a target that could not be written later."""
    images.format_for(job.target)
    loaded = images.load_image(job.source, work.max_pixels)
    images.format_that_holds(job.target, *loaded.pixels.shape[1:])
    return loaded


def compute(
    model: RDDM, work: Work, job: Job, loaded: images.LoadedImage, progress: Callable[[int, int], None] | None = None
) -> Pictures:
    """Deblur one picture; what is not wanted is let go. Raises as `pipeline.deblur`."""
    callbacks = Callbacks(progress=progress)
    deblurred = pipeline.deblur(
        model,
        loaded.pixels[None],
        settings=work.settings,
        keep_stages="pre-deblur" in job.extras,
        mean=True,
        callbacks=callbacks,
    )
    result = deblurred.image[0]
    extras = {}
    for name in job.extras:
        if name == "map":
            extras[name] = deblurred.defocus_map[0].expand(3, -1, -1)
        elif name == "pre-deblur" and deblurred.pre_deblurred is not None:
            extras[name] = deblurred.pre_deblurred[0]
        else:
            extras[name] = images.comparison_sheet({"input": loaded.pixels, "deblurred": result})
    return Pictures(result, extras)


def write(job: Job, loaded: images.LoadedImage, pictures: Pictures) -> None:
    """Write extras first: where the result stands, everything does. Raises ImageError."""
    for name, path in job.extras.items():
        if name == "compare":
            sheet, icc = pictures.extras[name], None if loaded.grey else loaded.icc  # a sheet is never grey
            images.save_image(path, sheet, like=images.LoadedImage(sheet, icc=icc), quality=92)
        else:
            images.save_image(path, pictures.extras[name], like=loaded if name == "pre-deblur" else None)
    images.save_image(job.target, pictures.result, like=loaded)


def failure(job: Job, error: Exception) -> Outcome:
    """What went wrong with one picture, naming it, and the cure where memory ran out."""
    text = str(error) or type(error).__name__
    if ran_out_of_memory(error):
        text = f"out of memory, try --tile 512 or --working-size 1024 ({text.splitlines()[0]})"
    elif not isinstance(error, ValueError | OSError | RuntimeError):
        text = f"{type(error).__name__}: {text}"  # none that this package raises: it says little by itself
    return Outcome(job, text if str(job.source) in text else f"{job.source}: {text}")


def success(job: Job, pictures: Pictures, started: float) -> Outcome:
    """`started`: when work on the picture began, by time.perf_counter."""
    height, width = pictures.result.shape[1:]
    return Outcome(job, None, width, height, time.perf_counter() - started)


def run_job(model: RDDM, work: Work, job: Job) -> Outcome:
    """All stages, one after the other. No exception leaves it: one bad picture does not stop the others."""
    started = time.perf_counter()
    try:
        loaded = read(work, job)
        pictures = compute(model, work, job, loaded)
        write(job, loaded, pictures)
    except Exception as error:
        return failure(job, error)
    return success(job, pictures, started)
