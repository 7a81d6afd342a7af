"""Scores of restoration methods over the pairs of a manifest.

A manifest is a CSV file with the columns `blur` and `sharp` (paths relative to the file) and any others, of
which `scene`, `split` and `grade` are carried into the results. A method turns the blurred picture into one
or more named pictures ("rows"). Every row is scored by every metric, with its gain over the row "blurred".
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..files import write_text
from ..images import ImageError, load_image
from ..metrics import mae, psnr_8bit, ssim
from ..networks.model import RDDM
from ..pipeline import DeblurSettings, deblur

BLURRED = "blurred"
"""Name of the row every manifest pair has: the input itself."""

CARRIED_COLUMNS = ("scene", "split", "grade")

Method = Callable[[Tensor], Mapping[str, Tensor]]
"""Blurred picture [3, H, W] in 0..1 -> row name -> picture [3, H, W], in the order of the table."""


@dataclass(frozen=True)
class Metric:
    """A score of (picture, target), both [3, H, W] in 0..1."""

    name: str
    function: Callable[[Tensor, Tensor], float]
    higher_is_better: bool
    decimals: int

    def gain(self, value: float, before: float) -> float:
        """Improvement over `before`; positive is better for every metric."""
        return value - before if self.higher_is_better else before - value

    def worst(self, values: Iterable[float]) -> float:
        """The worst of `values`."""
        return min(values) if self.higher_is_better else max(values)


METRICS = (
    Metric("psnr", psnr_8bit, higher_is_better=True, decimals=2),
    Metric("ssim", ssim, higher_is_better=True, decimals=4),
    Metric("mae", mae, higher_is_better=False, decimals=4),
)


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file and the cure."""


@dataclass(frozen=True)
class Pair:
    """A blurred photograph, its sharp target and the whole row of the manifest."""

    blurred: Path
    sharp: Path
    columns: Mapping[str, str]


@dataclass(frozen=True)
class PairScores:
    """Scores of one pair: row name -> metric name -> value. `error` says why there are none."""

    pair: Pair
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    """Time of the method, without reading and scoring."""
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """One metric of one row over all scored pairs; gains are over the blurred input, positive = better."""

    row: str
    metric: str
    mean: float
    median: float
    worst: float
    mean_gain: float
    median_gain: float
    worst_gain: float
    worst_pair: str
    """The manifest's `blur` of the pair with the worst gain."""


def read_manifest(path: Path, where: Sequence[tuple[str, str]] = (), limit: int | None = None) -> list[Pair]:
    """The pairs of a manifest whose columns have all the values of `where`, at most the first `limit`.

    Raises ManifestError for an unreadable file, missing columns and a selection that leaves nothing. The
    pictures are not looked at.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read as a CSV file: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = list(reader.fieldnames or [])
    for column in ("blur", "sharp", *(column for column, _ in where)):
        if column not in names:
            raise ManifestError(f"{path} has no column {column!r}; it has: {', '.join(names) or 'none'}")
    pairs = []
    for row in reader:
        columns = {k: v or "" for k, v in row.items() if isinstance(k, str)}
        if all(columns[column] == value for column, value in where):
            blurred, sharp = (path.parent / columns[c] for c in ("blur", "sharp"))
            pairs.append(Pair(blurred, sharp, columns))
    if not pairs:
        selection = " and ".join(f"{c}={v}" for c, v in where)
        raise ManifestError(f"{path} has no rows" + (f" with {selection}" if selection else ""))
    return pairs[:limit]


def rddm_method(model: RDDM, settings: DeblurSettings) -> Method:
    """Rows "pre-deblurred" (I_p alone) and "final"; of several samples their mean."""

    def restore(blurred: Tensor) -> dict[str, Tensor]:
        result = deblur(model, blurred[None], settings=settings)
        return {"pre-deblurred": result.pre_deblurred[0], "final": result.image.mean(dim=0)}

    return restore


def evaluate_pair(pair: Pair, method: Method, metrics: Sequence[Metric] = METRICS, enlarge: int = 1) -> PairScores:
    """Score the input and every row of `method`.

    `enlarge`: both pictures are enlarged that many times (bicubic) first, which stands for a photograph of more
    megapixels with as much larger circles of confusion.
    Raises ImageError for a picture that cannot be read and ValueError for pictures of different sizes.
    """
    blurred, sharp = load_image(pair.blurred).pixels, load_image(pair.sharp).pixels
    if blurred.shape != sharp.shape:
        sizes = [f"{p.shape[2]}x{p.shape[1]}" for p in (blurred, sharp)]
        raise ValueError(f"{pair.blurred.name} is {sizes[0]}, but {pair.sharp.name} is {sizes[1]}")
    if enlarge > 1:
        blurred, sharp = (
            F.interpolate(p[None], scale_factor=enlarge, mode="bicubic")[0].clamp(0, 1) for p in (blurred, sharp)
        )
    started = time.perf_counter()
    rows = {BLURRED: blurred, **method(blurred)}
    seconds = time.perf_counter() - started
    scores = {name: {m.name: m.function(picture, sharp) for m in metrics} for name, picture in rows.items()}
    return PairScores(pair, scores, seconds)


def evaluate(
    pairs: Iterable[Pair], method: Method, metrics: Sequence[Metric] = METRICS, enlarge: int = 1
) -> Iterator[PairScores]:
    """Score pair after pair; one that cannot be scored yields its error and the others go on."""
    for pair in pairs:
        try:
            yield evaluate_pair(pair, method, metrics, enlarge)
        except (ImageError, ValueError, OSError, RuntimeError) as error:
            yield PairScores(pair, error=str(error))


def summarise(results: Iterable[PairScores], metrics: Sequence[Metric] = METRICS) -> list[Summary]:
    """Mean, median and worst of every row and metric over the scored pairs, row by row."""
    scored = [r for r in results if r.error is None]
    table = []
    for row in scored[0].rows if scored else ():
        for metric in metrics:
            values = [r.rows[row][metric.name] for r in scored]
            gains = [metric.gain(v, r.rows[BLURRED][metric.name]) for v, r in zip(values, scored, strict=True)]
            worst_gain = min(gains)
            table.append(
                Summary(
                    row,
                    metric.name,
                    statistics.fmean(values),
                    statistics.median(values),
                    metric.worst(values),
                    statistics.fmean(gains),
                    statistics.median(gains),
                    worst_gain,
                    scored[gains.index(worst_gain)].pair.columns["blur"],
                )
            )
    return table


def format_table(summaries: Iterable[Summary], metrics: Sequence[Metric] = METRICS) -> str:
    """The summary as text, one line per row and metric."""
    decimals = {m.name: m.decimals for m in metrics}
    header = ("", "metric", "mean", "median", "worst", "mean gain", "median gain", "worst gain")
    lines: list[tuple[str, ...]] = [header]
    for s in summaries:
        n = decimals[s.metric]
        gains = (s.mean_gain, s.median_gain, s.worst_gain)
        shown_gains = [f"{g:+.{n}f}" if s.row != BLURRED else "" for g in gains]
        lines.append((s.row, s.metric, *(f"{v:.{n}f}" for v in (s.mean, s.median, s.worst)), *shown_gains))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = (
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def write_csv(path: Path, results: Iterable[PairScores], metrics: Sequence[Metric] = METRICS) -> None:
    """One line per pair and row, with scores and gains; a pair that failed has one line with its error."""
    names = [m.name for m in metrics]
    fields = [
        "blur",
        "sharp",
        *CARRIED_COLUMNS,
        "row",
        *names,
        *(f"{n}_gain" for n in names),
        "seconds",
        "error",
    ]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for line in _flat_rows(result, metrics):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    write_text(path, buffer.getvalue())


def write_json(
    path: Path, results: Sequence[PairScores], about: Mapping[str, Any], metrics: Sequence[Metric] = METRICS
) -> None:
    """`about` (what was run), counts, the summary as row -> metric -> figures, and every pair."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for s in summarise(results, metrics):
        figures = {k: v for k, v in vars(s).items() if k not in ("row", "metric")}
        summary.setdefault(s.row, {})[s.metric] = figures
    failed = sum(r.error is not None for r in results)
    document = {
        **about,
        "pairs": len(results),
        "failed": failed,
        "summary": summary,
        "results": [line for result in results for line in _flat_rows(result, metrics)],
    }
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _flat_rows(result: PairScores, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    columns = result.pair.columns
    head = {c: columns[c] for c in ("blur", "sharp", *CARRIED_COLUMNS) if c in columns}
    if result.error is not None:
        return [{**head, "error": result.error}]
    before = result.rows[BLURRED]
    return [
        {
            **head,
            "row": row,
            **scores,
            **{f"{m.name}_gain": m.gain(scores[m.name], before[m.name]) for m in metrics},
            "seconds": result.seconds,
        }
        for row, scores in result.rows.items()
    ]
