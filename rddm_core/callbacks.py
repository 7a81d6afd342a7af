"""What a caller may watch of a long computation, and how it stops one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Callbacks:
    """What a caller may watch; each is optional. Exceptions raised by them, BaseException too, pass through.

    progress: called with (done, total) as evaluations finish: of a network in `pipeline` (one per tile for p, one per
        tile, sample and step for f, one per picture for maps), of a deconvolution in `classical`.
    preview: called with the current estimate of the first picture, [1, 3, h, w] in 0..1, long side <= 512.
    check_interrupt: called before every evaluation; raises to stop.
    """

    progress: Callable[[int, int], None] | None = None
    preview: Callable[[Tensor], None] | None = None
    check_interrupt: Callable[[], None] | None = None

    def check(self) -> None:
        """Give the caller the chance to interrupt."""
        if self.check_interrupt is not None:
            self.check_interrupt()

    def report(self, done: int, total: int) -> None:
        """Report `done` of `total` evaluations."""
        if self.progress is not None:
            self.progress(done, total)

    def part(self, offset: int, total: int) -> Callbacks:
        """For a stage of a larger job: its progress counts from `offset` towards the job's `total`."""
        return replace(self, progress=lambda done, _: self.report(offset + done, total))

    def share(self, stage: int, stages: int) -> Callbacks:
        """For the stage of that index, from 0, of several whose lengths are not known beforehand: each counts alike."""
        return replace(self, progress=lambda done, total: self.report(stage * total + done, stages * total))
