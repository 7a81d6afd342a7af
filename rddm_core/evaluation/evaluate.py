"""Scores of restoration methods over the pairs of a manifest.

A manifest is a CSV file with the columns `blur` and `sharp` (paths relative to the file) and any others, of
which `scene`, `split` and `grade` are carried into the results; one with a column `file` instead lists
photographs that are their own target. A method turns the blurred picture into one or more named pictures
("rows"). Every row is scored by every metric, with its gain over the row "blurred".
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.datasets import MANIFEST, read_dataset
from ..data.sources import open_table
from ..files import write_text
from ..images import ImageError, load_image
from ..metrics import (
    colour_shift,
    fsim,
    gmsd,
    gradient_energy_ratio,
    haarpsi,
    mae,
    mdsi,
    psnr_8bit,
    ssim,
)

BLURRED = "blurred"
"""Name of the row every manifest pair has: the input itself."""

CARRIED_COLUMNS = ("scene", "split", "grade")
MAX_VALUES = 8
"""Values of a column that an error message names."""

Method = Callable[[Tensor], Mapping[str, Tensor]]
"""Blurred picture [3, H, W] in 0..1 -> row name -> picture [3, H, W], in the order of the table. A row may also be
samples [N, 3, H, W]: their mean is scored, and their spread against the error of that mean."""


@dataclass(frozen=True)
class Metric:
    """A score of (picture, target), both [3, H, W] in 0..1; with an `ideal`, what is nearer to it is better."""

    name: str
    function: Callable[[Tensor, Tensor], float]
    higher_is_better: bool
    decimals: int
    ideal: float | None = None

    def quality(self, value: float) -> float:
        """`value` turned so that more is better."""
        if self.ideal is not None:
            return -abs(value - self.ideal)
        return value if self.higher_is_better else -value

    def gain(self, value: float, before: float) -> float:
        """Improvement over `before`; positive is better for every metric."""
        return self.quality(value) - self.quality(before)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of `values`."""
        return min(values, key=self.quality)


METRICS = (
    Metric("psnr", psnr_8bit, higher_is_better=True, decimals=2),
    Metric("ssim", ssim, higher_is_better=True, decimals=4),
    Metric("mae", mae, higher_is_better=False, decimals=4),
    Metric("haarpsi", haarpsi, higher_is_better=True, decimals=4),
    Metric("gmsd", gmsd, higher_is_better=False, decimals=4),
    Metric("mdsi", mdsi, higher_is_better=False, decimals=4),
    Metric("fsim", fsim, higher_is_better=True, decimals=4),
    Metric("gradient_energy", gradient_energy_ratio, higher_is_better=True, decimals=3, ideal=1.0),
    Metric("colour_shift", colour_shift, higher_is_better=False, decimals=2),
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
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Row name -> what is known of it beside the scores: of the input what `probe` found, of samples what
    `uncertainty` says."""


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
    improved: float
    """Share of the pairs with a gain above 0."""


def read_manifest(path: Path, where: Sequence[tuple[str, str]] = (), limit: int | None = None) -> list[Pair]:
    """The pairs of a manifest whose columns have all the values of `where`, at most the first `limit`.

    Raises ManifestError for an unreadable file, missing columns and a selection that leaves nothing. The
    pictures are not looked at.
    """
    try:
        reader = open_table(path)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read as a CSV file: {error}") from error
    names = list(reader.fieldnames or [])
    own_target = "file" in names and "blur" not in names
    for column in (*(() if own_target else ("blur", "sharp")), *(column for column, _ in where)):
        if column not in names:
            raise ManifestError(f"{path} has no column {column!r}; it has: {', '.join(names) or 'none'}")
    pairs = []
    for row in reader:
        columns = {k: v or "" for k, v in row.items() if isinstance(k, str)}
        if own_target:
            columns |= {"blur": columns["file"], "sharp": columns["file"]}
        pairs.append(Pair(path.parent / columns["blur"], path.parent / columns["sharp"], columns))
    return _select(pairs, path, where, limit)


def find_pairs(
    path: Path, layout: str = "auto", where: Sequence[tuple[str, str]] = (), limit: int | None = None
) -> list[Pair]:
    """The pairs of a manifest, or of a folder that is a data set of `layout` (see data.datasets) or has a manifest.

    Pairs of a data set have the columns blur, sharp (relative to the folder), scene and split (train, dev or test);
    where `where` names no split, those of `test` are taken if there are any.

    Raises ManifestError and DatasetError.
    """
    if path.is_dir() and layout in ("auto", MANIFEST) and (path / "manifest.csv").is_file():
        path = path / "manifest.csv"
    if layout == MANIFEST or (layout == "auto" and not path.is_dir()):
        return read_manifest(path, where, limit)
    pairs = []
    for split, members in read_dataset(path, layout).items():
        for pair in members:
            relative = {k: p.relative_to(path).as_posix() for k, p in (("blur", pair.blurred), ("sharp", pair.sharp))}
            pairs.append(Pair(pair.blurred, pair.sharp, relative | {"scene": pair.scene, "split": split}))
    if all(column != "split" for column, _ in where) and any(pair.columns["split"] == "test" for pair in pairs):
        where = (*where, ("split", "test"))
    return _select(pairs, path, where, limit)


def own_targets(pairs: Iterable[Pair]) -> list[Pair]:
    """The sharp photographs of `pairs` as inputs that should come back as they are."""
    return [Pair(p.sharp, p.sharp, {**p.columns, "blur": p.columns["sharp"]}) for p in pairs]


def _select(pairs: list[Pair], path: Path, where: Sequence[tuple[str, str]], limit: int | None) -> list[Pair]:
    selected = [pair for pair in pairs if all(pair.columns.get(column) == value for column, value in where)]
    if not selected:
        selection = " and ".join(f"{c}={v}" for c, v in where)
        there = [
            f"{column} is {', '.join(found[:MAX_VALUES])}{', ...' if len(found) > MAX_VALUES else ''}"
            for column, _ in where
            if (found := sorted({pair.columns.get(column) or "empty" for pair in pairs}))
        ]
        cause = f" with {selection}" if selection else ""
        raise ManifestError(f"{path} has no rows{cause}" + (f"; there {' and '.join(there)}" if there else ""))
    return selected[:limit]


Watch = Callable[[Pair, Mapping[str, Tensor], Tensor], None]
"""Sees (pair, row name -> picture [3, H, W], target [3, H, W]) of every scored pair, blurred input included."""
Probe = Callable[[Tensor, Tensor], Mapping[str, float]]
"""(blurred, target), both [3, H, W] -> figures of the pair itself."""


def evaluate_pair(
    pair: Pair,
    method: Method,
    metrics: Sequence[Metric] = METRICS,
    enlarge: int = 1,
    watch: Watch | None = None,
    probe: Probe | None = None,
) -> PairScores:
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
    figures = {name: uncertainty(x, sharp) for name, x in rows.items() if x.ndim == 4 and len(x) > 1}
    if probe is not None:
        figures[BLURRED] = dict(probe(blurred, sharp))
    pictures = {name: x.mean(dim=0) if x.ndim == 4 else x for name, x in rows.items()}
    scores = {name: {m.name: m.function(picture, sharp) for m in metrics} for name, picture in pictures.items()}
    if watch is not None:
        watch(pair, pictures, sharp)
    return PairScores(pair, scores, seconds, figures=figures)


def evaluate(
    pairs: Iterable[Pair],
    method: Method,
    metrics: Sequence[Metric] = METRICS,
    enlarge: int = 1,
    watch: Watch | None = None,
    probe: Probe | None = None,
) -> Iterator[PairScores]:
    """Score pair after pair; one that cannot be scored yields its error and the others go on."""
    for pair in pairs:
        try:
            yield evaluate_pair(pair, method, metrics, enlarge, watch, probe)
        except MemoryError:
            yield PairScores(pair, error="not enough memory: measure it with a smaller --tile, or without --enlarge")
        except (ImageError, ValueError, OSError, RuntimeError) as error:
            yield PairScores(pair, error=str(error))


def uncertainty(samples: Tensor, target: Tensor) -> dict[str, float]:
    """Does the spread of samples [N, 3, H, W] say where their mean is wrong?

    `spread`: Spearman correlation over the pixels of the standard deviation over the samples with the error of the
    mean, both averaged over the channels. `spread_noise`: the same for samples made of the mean and independent
    Gaussian noise of the same overall deviation, which knows nothing of the picture. `deviation`: that, in 0..1.
    A spread or an error that is the same everywhere says nothing: 0.
    """
    mean = samples.mean(dim=0)
    error = (mean - target).abs().mean(dim=0)
    deviation = float((samples - mean).square().mean().sqrt())
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)) * deviation
    return {
        "spread": spearman(samples.std(dim=0).mean(dim=0), error),
        "spread_noise": spearman(noise.std(dim=0).mean(dim=0), error),
        "deviation": deviation,
    }


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one size, -1..1; 0 where one of them is constant."""
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(import_module("scipy.stats").spearmanr(a.flatten().cpu().numpy(), b.flatten().cpu().numpy()).statistic)


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
                    sum(g > 0 for g in gains) / len(gains),
                )
            )
    return table


def format_table(summaries: Sequence[Summary], metrics: Sequence[Metric] = METRICS) -> str:
    """The summary as text: a line per row with the mean of every metric, then the gain in the first metric."""
    first = metrics[0]
    header = ("", *(m.name for m in metrics), f"{first.name} gain", "median", "worst")
    lines: list[tuple[str, ...]] = [header]
    for row in dict.fromkeys(s.row for s in summaries):
        of = {s.metric: s for s in summaries if s.row == row}
        gains = (of[first.name].mean_gain, of[first.name].median_gain, of[first.name].worst_gain)
        shown_gains = [f"{g:+.{first.decimals}f}" if row != BLURRED else "" for g in gains]
        lines.append((row, *(f"{of[m.name].mean:.{m.decimals}f}" for m in metrics), *shown_gains))
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Cells as text in columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def write_csv(path: Path, results: Sequence[PairScores], metrics: Sequence[Metric] = METRICS) -> None:
    """One line per pair and row, with scores and gains; a pair that failed has one line with its error."""
    names = [m.name for m in metrics]
    fields = [
        "blur",
        "sharp",
        *CARRIED_COLUMNS,
        "row",
        *names,
        *(f"{n}_gain" for n in names),
        *dict.fromkeys(name for r in results for figures in r.figures.values() for name in figures),
        "seconds",
        "error",
    ]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for line in _flat_rows(result, metrics):
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    # A file's name may hold bytes that are no text.
    write_text(path, buffer.getvalue().encode(errors="backslashreplace").decode())


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
            **result.figures.get(row, {}),
            "seconds": result.seconds,
        }
        for row, scores in result.rows.items()
    ]
