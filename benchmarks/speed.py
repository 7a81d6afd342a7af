"""Time and memory of the whole pipeline beside others: which cases are measured, in which order, and their ratios.

Every measurement has a process of its own. The contenders of one size take turns, round after round, so that a machine
that slows down slows all of them; a ratio is taken within its round and then summed up over the rounds.

Not every combination at every size. Size, precision, threads and steps act almost independently here, so that each is
varied alone around one point, fp32 with two threads at the default steps: sizes from 0.25 to 45 megapixels there; steps
1 to 4 and one thread at 0.6 (640x960, where the targets lie); bf16 at 0.1, since a processor without such arithmetic
takes minutes for more. Restormer is measured at 0.1, NAFNet up to 1 megapixel (1.5 KB of memory per pixel), the Wiener
filter at 0.25 and 1, Richardson-Lucy at 0.25: larger ones would take the time of all the rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .contenders import NAFNET, PIPELINE, RESTORMER, RICHARDSON_LUCY, UNSHARP, WIENER
from .pictures import SIZES

Run = dict[str, Any]
"""What `contenders.measure` returns, or an `error`."""


@dataclass(frozen=True)
class Case:
    """One contender in one setting. `megapixels` is a key of SIZES, `steps` 0 for what has none."""

    contender: str
    megapixels: str
    steps: int = 0
    dtype: str = "fp32"
    threads: int = 2

    def arguments(self) -> dict[str, Any]:
        """For `contenders.measure`."""
        arguments = asdict(self)
        return arguments | {"size": SIZES[arguments.pop("megapixels")]}

    def same_setting(self, other: Case) -> bool:
        """Whether the two may be compared."""
        mine, theirs = ((c.megapixels, c.dtype, c.threads) for c in (self, other))
        return mine == theirs


def cases(megapixels: str, default_steps: int) -> list[Case]:
    """The cases of one size, NAFNet before what is compared with it."""
    nafnet, network = Case(NAFNET, megapixels), Case(PIPELINE, megapixels, default_steps)
    unsharp, wiener, lucy = (Case(name, megapixels) for name in (UNSHARP, WIENER, RICHARDSON_LUCY))
    if megapixels == "0.1":
        return [nafnet, network, replace(nafnet, dtype="bf16"), replace(network, dtype="bf16"), Case(RESTORMER, "0.1")]
    if megapixels == "0.25":
        return [nafnet, network, unsharp, wiener, lucy]
    if megapixels == "0.6":
        steps = [Case(PIPELINE, megapixels, n) for n in sorted({1, 2, 3, 4, default_steps})]
        return [nafnet, *steps, replace(nafnet, threads=1), replace(network, threads=1), unsharp]
    return [nafnet, network, unsharp, wiener] if megapixels == "1" else [network, unsharp]


def rounds(case: Case) -> int:
    """How often a case is measured: once where a run takes very long, twice where it takes long, else three times."""
    if case.dtype == "bf16" or case.contender == RESTORMER:
        return 1
    return 2 if case.threads == 1 or case.contender == RICHARDSON_LUCY or float(case.megapixels) > 1 else 3


def take_turns(counts: Mapping[Case, int], run: Callable[[Case], Run]) -> dict[Case, list[Run]]:
    """`run` the cases in turns, each in as many rounds as `counts` says, from the first round on."""
    runs: dict[Case, list[Run]] = {case: [] for case in counts}
    for turn in range(max(counts.values())):
        for case, count in counts.items():
            if turn < count:
                runs[case].append(run(case))
    return runs


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(runs: dict[Case, list[Run]]) -> list[dict[str, Any]]:
    """One row per case: its setting, spread of `seconds` and `megabytes`, median `stages`, and `time_ratio` and
    `memory_ratio` to NAFNet in the same setting and round, where there is one. Failed cases have an `error`.
    """
    rows = []
    for case, measured in runs.items():
        row: dict[str, Any] = asdict(case)
        if errors := [r["error"] for r in measured if "error" in r]:
            rows.append(row | {"error": errors[0]})
            continue
        for key in ("seconds", "megabytes"):
            row[key] = spread([r[key] for r in measured])
        row["stages"] = {
            stage: statistics.median(r["stages"].get(stage, 0.0) for r in measured) for stage in measured[0]["stages"]
        }
        peers = next((runs[c] for c in runs if c.contender == NAFNET and c.same_setting(case)), [])
        if peers and all("error" not in r for r in peers):
            for key, name in (("seconds", "time_ratio"), ("megabytes", "memory_ratio")):
                row[name] = spread([mine[key] / theirs[key] for mine, theirs in zip(measured, peers, strict=False)])
        rows.append(row)
    return rows


def find(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row without an error that has these values."""
    matches = (r for r in rows if "error" not in r and all(r[key] == value for key, value in wanted.items()))
    return next(matches, None)
