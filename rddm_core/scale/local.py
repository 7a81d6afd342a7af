"""Many pictures in this process: while one is computed, the next is read and the one before is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

from ..bit_depth import open_any_size
from ..files import remove_own_partials
from ..images import READ_FORMATS, LoadedImage
from ..networks.model import RDDM
from .job import Job, Outcome, Pictures, Work, compute, failure, read, success, write

OVERLAP_PIXELS = 16_000_000
"""Up to this size a picture waits in memory for its turn, before or after it is computed: 0.2 GB each."""
GRACE = 1.0
"""Seconds that a picture being written gets to the end when the run is interrupted."""

Report = Callable[[Outcome], None]
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]


def run_local(
    jobs: Sequence[Job],
    work: Work,
    report: Report,
    watch: Watch = lambda name: nullcontext(),
    overlap: bool = True,
) -> None:
    """Deblur `jobs` one by one, in their order, with the same results whether or not stages overlap.

    Args:
        report: called with each outcome, in order, from one other thread.
        watch: a context per picture, by name, that yields its progress callback (done, total).
        overlap: read ahead and write behind, by one picture each, where both pictures are at most OVERLAP_PIXELS.

    Raises CheckpointError before the first picture, and what `report` raises. On KeyboardInterrupt nothing is waited
    for longer than GRACE and no unfinished file is left; the caller should then end the process without waiting for its
    threads, since neither decoding nor encoding can be interrupted.
    """
    model = work.load_model()
    reader, writer = (ThreadPoolExecutor(1, f"deblur-{stage}") for stage in ("read", "write"))
    run = _Run(model, work, report, watch, overlap, reader, writer)
    try:
        for job, following in zip_longest(jobs, jobs[1:]):
            run.one(job, following)
        run.wait()
    except KeyboardInterrupt:
        try:
            wait([run.written], GRACE)
        finally:
            for folder in {path.parent for job in jobs for path in job.outputs()}:
                remove_own_partials(folder)
        raise
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=False, cancel_futures=True)


class _Run:
    """The picture that is being read ahead and the one that is being written, while another is computed."""

    def __init__(
        self,
        model: RDDM,
        work: Work,
        report: Report,
        watch: Watch,
        overlap: bool,
        reader: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
    ) -> None:
        self.model, self.work, self.report, self.watch, self.overlap = model, work, report, watch, overlap
        self.reader, self.writer = reader, writer
        self.upcoming: Future[LoadedImage] | None = None
        self.written: Future[None] = writer.submit(lambda: None)

    def one(self, job: Job, following: Job | None) -> None:
        """Compute `job`; on return it is written or being written, and `following` may be being read."""
        started = perf_counter()
        reading = self.upcoming or self.reader.submit(read, self.work, job)
        self.upcoming, ahead = None, False
        try:
            loaded = reading.result()
            del reading  # it holds the picture too
            ahead = following is not None and self._fit(loaded, following)
            if ahead and following is not None:
                self.upcoming = self.reader.submit(read, self.work, following)
            with self.watch(job.source.name) as progress:
                pictures = compute(self.model, self.work, job, loaded, progress)
        except Exception as error:
            outcome = failure(job, error)
            self.wait()
            self.written = self.writer.submit(self.report, outcome)
        else:
            self.wait()
            self.written = self.writer.submit(self._finish, job, loaded, pictures, started)
        if not ahead:
            self.wait()

    def wait(self) -> None:
        """Until the last picture is written and reported."""
        self.written.result()

    def _fit(self, loaded: LoadedImage, following: Job) -> bool:
        # With overlap three pictures may be in memory, which large ones and a memory budget do not allow.
        if not self.overlap or loaded.pixels[0].numel() > OVERLAP_PIXELS:
            return False
        # In the thread that reads: it alone may change what becomes of warnings.
        return self.reader.submit(_pixels, following.source).result() <= OVERLAP_PIXELS

    def _finish(self, job: Job, loaded: LoadedImage, pictures: Pictures, started: float) -> None:
        try:
            write(job, loaded, pictures)
            outcome = success(job, pictures, started)
        except Exception as error:
            outcome = failure(job, error)
        self.report(outcome)


def _pixels(source: Path) -> int:
    """By the file's header; 0 where it cannot be read, which is said when the picture is."""
    if not source.is_file():  # a pipe would keep whoever opens it waiting
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said when the picture is read
            with open_any_size(source, READ_FORMATS) as image:
                return image.width * image.height
    except Exception:
        return 0
