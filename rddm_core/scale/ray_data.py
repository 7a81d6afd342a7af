"""Many pictures on Ray Data: actors that load the model once and are fed with names, never with pixels.

Every picture is a block of its own, so that what an actor had in hand when it died is one picture, which another
computes again. Files appear whole or not at all whoever writes them, so doing one twice harms nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..files import remove_abandoned
from .job import Job, Outcome, Work, run_job

ATTEMPTS = 3
"""How often a picture is begun whose workers die, which it may itself have killed (out of memory)."""
MAX_BLOCKS = 10_000
"""With more pictures than this, several share a block: what Ray keeps of a block, it keeps for all at once."""
OBJECT_STORE_BYTES = 128 << 20
"""For names and answers; Ray's own default is a third of the machine's memory."""
LAST_WRITES = 1.0
"""Seconds to wait for workers to be gone after Ray was shut down."""
# Nothing is fetched, uploaded or shown; of Ray's own messages only what stops it. What the user has set stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_PACKAGE_ROOT = str(Path(__file__).parents[2])


class EngineError(RuntimeError):
    """Ray is missing or could not do its work; the message names the cause and, where there is one, the cure."""


def require_ray() -> Any:
    """The module `ray`, with `ray.data`. Raises EngineError without it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when Ray is imported, and by its processes
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EngineError(
            f"--engine ray needs Ray Data ({error}): pip install 'ray[data]>=2.40' (or the extra `scale`)"
        ) from error
    for library in ("ray", "ray.data"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return ray


def share_cores(cores: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """Workers and threads of each, where not given: one worker for four cores, and all cores shared among them."""
    workers = workers or max(1, cores // (threads or 4))
    return workers, threads or max(1, cores // workers)


def run_ray(
    jobs: Sequence[Job],
    work: Work,
    report: Callable[[Outcome], None],
    *,
    workers: int,
    threads: int,
    warn: Callable[[str], None] = logging.getLogger(__name__).warning,
) -> None:
    """Deblur `jobs` by `workers` actors of `threads` torch threads each, in any order.

    The bytes are those of `run_local` in a process with as many threads. Uses the Ray that this process has started,
    else the cluster that RAY_ADDRESS names (its machines then need this package and the same paths), else starts one
    on this machine and stops it at the end.

    Args:
        report: called with each outcome, once per job, from this thread.
        warn: called with what the package logged about a picture.

    Raises EngineError, and what `report` raises.
    """
    ray = require_ray()
    waiting = {os.path.abspath(job.target): job for job in jobs}
    folders = {Path(path).parent for job in jobs for path in job.outputs()}
    try:
        with _session(ray, workers * threads):
            for answer in _answers(ray, jobs, work, min(workers, len(jobs)), threads):
                for message in answer.pop("warnings"):
                    warn(message)
                job = waiting.pop(answer.pop("target"), None)
                if job is not None:
                    report(Outcome(job, **answer))
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray failed: {_first_lines(error)}") from error
    finally:
        _clean_up(folders)
    for job in waiting.values():
        report(Outcome(job, f"{job.source}: Ray lost it: run the same command again"))


class Deblurrer:
    """What an actor holds: the model, loaded once. Rows come and go as JSON, which takes any file name.

    `begin` counts how often a target was begun, across all actors.
    """

    def __init__(self, work: Work, threads: int, begin: Callable[[str], int]) -> None:
        torch.set_num_threads(threads)
        self.work, self.model, self.begin = work, work.load_model(), begin

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        names = json.loads(row["job"])
        extras = {name: Path(path) for name, path in names["extras"].items()}
        job = Job(Path(names["source"]), Path(names["target"]), extras)
        with _collected_warnings() as warnings:
            if self.begin(names["target"]) > ATTEMPTS:
                outcome = Outcome(job, f"{job.source}: its worker died {ATTEMPTS} times, out of memory? Try --memory")
            else:
                outcome = run_job(self.model, self.work, job)
        answer = {key: getattr(outcome, key) for key in ("error", "width", "height", "seconds")}
        return {"answer": json.dumps({"target": names["target"], "warnings": warnings, **answer})}


class Attempts:
    """How often each picture was begun, in an actor of its own: what a picture kills cannot count for it."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, target: str) -> int:
        self.begun[target] += 1
        return self.begun[target]


def _begin(attempts: Any, target: str) -> int:
    import ray

    return ray.get(attempts.begin.remote(target))


def _answers(ray: Any, jobs: Sequence[Job], work: Work, workers: int, threads: int) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # one that Ray loses does not stop the others
    on_gpu = work.device.type == "cuda"
    if on_gpu:  # Ray shows each actor one GPU
        work = replace(work, device=torch.device("cuda"))
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    rows = [{"job": _names(job)} for job in jobs]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map(
        Deblurrer,
        fn_constructor_args=(
            replace(work, checkpoint=Path(os.path.abspath(work.checkpoint))),
            threads,
            partial(_begin, attempts),
        ),
        # One at a time: no picture waits at an actor that another one kills. Actors and tasks are restarted for ever
        # (Ray Data's default); ATTEMPTS ends it.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        num_gpus=1 if on_gpu else 0,
    )
    for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
        for answer in batch["answer"]:
            yield json.loads(str(answer))


def _names(job: Job) -> str:
    paths = {"source": os.path.abspath(job.source), "target": os.path.abspath(job.target)}
    return json.dumps({**paths, "extras": {name: os.path.abspath(path) for name, path in job.extras.items()}})


@contextmanager
def _session(ray: Any, cpus: int) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        _start(ray, cpus)
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    # One CPU more than the actors take: Ray Data keeps some for itself.
    local = {"include_dashboard": False, "num_cpus": cpus + 1, "object_store_memory": OBJECT_STORE_BYTES}
    address = os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            with _path_of_package():
                ray.init(address="local", **local, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError(f"Ray could not be started: {_first_lines(error)}") from error
    except SystemExit:  # from Ray's own handler of SIGTERM, which it has put in place
        if callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def _path_of_package() -> Iterator[None]:
    """Ray's processes import the code that runs here, whatever else is installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_PACKAGE_ROOT, before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _clean_up(folders: set[Path]) -> None:
    """Remove what workers left that were stopped while writing. They die a moment after Ray is gone."""
    deadline = time.monotonic() + LAST_WRITES
    for folder in folders:
        while remove_abandoned(folder) and time.monotonic() < deadline:
            time.sleep(0.02)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """What this package logs, warnings and worse, as text."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(__package__.rpartition(".")[0])
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3]) or type(error).__name__
