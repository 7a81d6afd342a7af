"""One self-contained HTML file with everything that was measured: tables, plots and crops."""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..files import write_text
from ..metrics import psnr_8bit
from .evaluate import BLURRED, METRICS, Metric, Pair, PairScores, Summary, summarise
from .maps import MapScore, RadiusOrder

CROP = 160
"""Side of the crops, in pixels; they are shown at 200 %."""
SHOWN_PAIRS = 5
MAIN_ROW = "final"
TARGET = "target"
"""Caption of the sharp photograph among the crops."""


@dataclass
class CropCollector:
    """Keeps one crop of every row of the pairs that a report shows, where `main` changed the squared error most, for
    better or worse.

    Called with each scored pair (see `evaluate.Watch`). Crops are uint8 [CROP, CROP, 3], or smaller where the
    picture is; those of the SHOWN_PAIRS best and worst pairs so far, by the PSNR gain of `main`, stay.
    """

    main: str = MAIN_ROW
    crops: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)

    def __call__(self, pair: Pair, pictures: Mapping[str, Tensor], target: Tensor) -> None:
        if self.main not in pictures:
            self.main = list(pictures)[-1]
        change = (pictures[self.main] - target).square() - (pictures[BLURRED] - target).square()
        top, left = strongest_window(change.mean(dim=0).abs(), CROP)
        name = pair.columns["blur"]
        self.gains[name] = psnr_8bit(pictures[self.main], target) - psnr_8bit(pictures[BLURRED], target)
        self.crops[name] = {
            row: _to_bytes(picture[:, top : top + CROP, left : left + CROP])
            for row, picture in {**pictures, TARGET: target}.items()
        }
        for between in sorted(self.gains, key=lambda n: self.gains[n], reverse=True)[SHOWN_PAIRS:-SHOWN_PAIRS]:
            del self.gains[between], self.crops[between]


def strongest_window(x: Tensor, size: int) -> tuple[int, int]:
    """Top left corner of the window of `size` in which x [H, W] has the largest sum, on a grid of 8 pixels."""
    height, width = (min(size, n) for n in x.shape)
    sums = F.avg_pool2d(x[None], (height, width), stride=8)[0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * 8, column * 8


@dataclass(frozen=True)
class Report:
    """What a report shows.

    `about`: what was run, name -> value or further names and values. `totals`: row -> figures over all pairs, as FID.
    `sharp`: scores of sharp photographs that are their own target. `peers`: rows that are other models.
    """

    title: str
    about: Mapping[str, Any]
    results: Sequence[PairScores]
    crops: Mapping[str, Mapping[str, Tensor]]
    metrics: Sequence[Metric] = METRICS
    main: str = MAIN_ROW
    totals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sharp: Sequence[PairScores] = ()
    maps: Mapping[str, MapScore] = field(default_factory=dict)
    order: RadiusOrder | None = None
    peers: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, atomically; pictures lie within it."""
    scored = [r for r in report.results if r.error is None]
    rows = list(scored[0].rows) if scored else []
    main = report.main if report.main in rows else rows[-1] if rows else BLURRED
    parts = [_about(report, len(scored))]
    if scored:
        summaries = summarise(scored, report.metrics)
        parts += [
            _section("Scores", _score_table(summaries, report.metrics, report.totals), _SCORES_NOTE),
            _section("Gain over the blurred input", _gain_table(summaries, report.metrics)),
            _section(
                "Plots",
                _figure(_gain_plots(scored, main, report.peers), "PSNR gain per pair, against input and blur"),
                _figure(_spread_plot(scored), "Spread of the PSNR gain of every row"),
                _curve(summaries),
            ),
            _uncertainty(scored),
        ]
    if report.sharp:
        parts.append(_sharp_section(report.sharp))
    if report.maps or report.order:
        parts.append(_map_section(report.maps, report.order))
    if scored:
        ordered = sorted(scored, key=lambda r: _gain(r, main), reverse=True)
        parts.append(_crop_section("Best pairs", ordered[:SHOWN_PAIRS], report.crops, main))
        parts.append(_crop_section("Worst pairs", ordered[::-1][:SHOWN_PAIRS], report.crops, main))
    if failed := [r for r in report.results if r.error is not None]:
        parts.append(_section("Failed", _list(f"{r.pair.columns['blur']}: {r.error}" for r in failed)))
    title = html.escape(report.title)
    body = "\n".join(part for part in parts if part)
    write_text(path, _PAGE.format(title=title, style=_STYLE, body=body))


# ---------------------------------------------------------------- sections

_SCORES_NOTE = (
    "Means over the pairs; the best of each column in bold. Of gradient_energy, the squared gradients over the "
    "target's, the best is nearest to 1; mae, gmsd, mdsi, colour_shift, lpips and fid are better when lower."
)


def _about(report: Report, scored: int) -> str:
    lines = {**report.about, "pairs": f"{scored} scored, {len(report.results) - scored} failed"}
    shown = {
        key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        for key, value in lines.items()
    }
    return _table([(key, _text(value)) for key, value in shown.items() if value], heading=False)


def _score_table(
    summaries: Sequence[Summary], metrics: Sequence[Metric], totals: Mapping[str, Mapping[str, float]]
) -> str:
    rows = list(dict.fromkeys(s.row for s in summaries))
    means = {(s.row, s.metric): s.mean for s in summaries}
    extra = list(dict.fromkeys(name for figures in totals.values() for name in figures))
    best = {m.name: max(rows, key=lambda row, m=m: m.quality(means[row, m.name])) for m in metrics}  # type: ignore[misc]
    lines: list[Sequence[str]] = [("row", *(m.name for m in metrics), *extra)]
    for row in rows:
        cells = []
        for m in metrics:
            shown = f"{means[row, m.name]:.{m.decimals}f}"
            cells.append(f"<b>{shown}</b>" if best[m.name] == row else shown)
        figures = totals.get(row, {})
        lines.append((_text(row), *cells, *(f"{figures[name]:.2f}" if name in figures else "" for name in extra)))
    return _table(lines)


def _gain_table(summaries: Sequence[Summary], metrics: Sequence[Metric]) -> str:
    """Per row: mean, median and worst PSNR gain, and for every metric the mean gain and the share of better pairs."""
    first = metrics[0]
    of = {(s.row, s.metric): s for s in summaries}
    lines: list[Sequence[str]] = [
        ("row", f"{first.name} mean", "median", "worst", "worst pair", *(f"{m.name} (better)" for m in metrics))
    ]
    for row in dict.fromkeys(s.row for s in summaries if s.row != BLURRED):
        s = of[row, first.name]
        gains = [f"{value:+.{first.decimals}f}" for value in (s.mean_gain, s.median_gain, s.worst_gain)]
        shares = [f"{of[row, m.name].mean_gain:+.{m.decimals}f} ({of[row, m.name].improved:.0%})" for m in metrics]
        lines.append((_text(row), *gains, _text(s.worst_pair), *shares))
    note = "Positive is better for every metric. In brackets: the share of pairs that got better."
    return _table(lines) + f"<p>{note}</p>"


def _uncertainty(scored: Sequence[PairScores]) -> str:
    lines: list[Sequence[str]] = [("row", "spread against error", "independent noise", "deviation, 1/255")]
    for row in scored[0].rows:
        figures = [r.figures[row] for r in scored if "spread" in r.figures.get(row, {})]
        if figures:
            means = [statistics.fmean(f[key] for f in figures) for key in ("spread", "spread_noise", "deviation")]
            lines.append((_text(row), f"{means[0]:.3f}", f"{means[1]:.3f}", f"{255 * means[2]:.2f}"))
    if len(lines) == 1:
        return ""
    note = (
        "Spearman's correlation, over the pixels, of the standard deviation over the samples with the error of their "
        "mean; beside it what independent noise of the same strength would reach. Means over the pairs."
    )
    return _section("Do the samples differ where they are wrong?", _table(lines), note)


def _sharp_section(results: Sequence[PairScores]) -> str:
    scored = [r for r in results if r.error is None]
    if not scored:
        return ""
    lines: list[Sequence[str]] = [
        ("row", "median dB", "worst dB", "at 44 dB or more", "colour shift, mean", "worst photograph")
    ]
    for row in scored[0].rows:
        if row != BLURRED:
            values = [r.rows[row]["psnr"] for r in scored]
            worst = scored[values.index(min(values))].pair.columns["blur"]
            shift = statistics.fmean(r.rows[row]["colour_shift"] for r in scored)
            shown = (
                f"{statistics.median(values):.2f}",
                f"{min(values):.2f}",
                f"{sum(v >= 44 for v in values)}/{len(values)}",
            )
            lines.append((_text(row), *shown, f"{shift:.2f}", _text(worst)))
    return _section("Sharp photographs, which should stay as they are", _table(lines), "PSNR between input and result.")


def _map_section(maps: Mapping[str, MapScore], order: RadiusOrder | None) -> str:
    parts = []
    if maps:
        lines: list[Sequence[str]] = [("map", "mean IoU", "IoU blurred", "IoU sharp", "F-beta", "MAE")]
        for row, s in maps.items():
            values = (s.mean_iou, s.iou_blurred, s.iou_sharp, s.f_beta, s.mae)
            lines.append((_text(row), *(f"{v:.3f}" for v in values)))
        parts.append(_table(lines))
    if order is not None:
        parts.append(
            f"<p>Order of the true radii on rendered photographs, Spearman: {order.pooled:.3f} over the pixels of all "
            f"scenes, {order.mean:.3f} on average within a scene ({len(order.scenes)} scenes).</p>"
        )
    return _section("Defocus maps", *parts)


def _crop_section(
    title: str, results: Sequence[PairScores], crops: Mapping[str, Mapping[str, Tensor]], main: str
) -> str:
    blocks = []
    for r in results:
        name = r.pair.columns["blur"]
        before = r.rows[BLURRED]["psnr"]
        caption = f"{_text(name)}: input {before:.2f} dB, {_text(main)} {_gain(r, main):+.2f} dB"
        figures = []
        shown = crops.get(name, {})
        # What is judged stands first, in view; the strip scrolls to the other rows.
        first = [row for row in (BLURRED, main, TARGET) if row in shown]
        for row in dict.fromkeys((*first, *shown)):
            crop = shown[row]
            gain = f" {r.rows[row]['psnr'] - before:+.2f} dB" if row in r.rows and row != BLURRED else ""
            size = f'width="{2 * crop.shape[1]}" height="{2 * crop.shape[0]}"'
            figures.append(
                f'<figure><img alt="{_text(row)}" {size} src="{_jpeg(crop)}"><figcaption>{_text(row)}{gain}'
                "</figcaption></figure>"
            )
        blocks.append(f"<h3>{caption}</h3>\n<div class=crops>{''.join(figures)}</div>")
    note = f"By the gain of {_text(main)}, where it changed the error most; 200 %. Strips scroll to the other rows."
    return _section(title, *blocks, f"<p>{note}</p>")


# ---------------------------------------------------------------- plots


def _gain_plots(scored: Sequence[PairScores], main: str, peers: Sequence[str]) -> Any:
    """Gain per pair, of peers too, against the input's PSNR and, where it was measured, against the blur radius."""
    from matplotlib.figure import Figure

    radii = [r.figures.get(BLURRED, {}).get("radius") for r in scored]
    known = all(radius is not None for radius in radii)
    gains = [_gain(r, main) for r in scored]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, 3 if known else 2)
    ordered = sorted(scored, key=lambda r: _gain(r, main))
    heights = [_gain(r, main) for r in ordered]
    axes[0].bar(range(len(heights)), heights, color=["#b44" if g < 0 else "#468" for g in heights])
    for number, peer in enumerate(peers, 1):
        dots = [_gain(r, peer) for r in ordered]
        axes[0].plot(range(len(dots)), dots, "o", color=f"C{number}", markersize=4, label=peer)
    if peers:
        axes[0].legend(fontsize="small")
    axes[0].set(title=f"{main}: PSNR gain per pair", xlabel="pair, by gain", ylabel="dB")
    colours = _collections(scored)
    places = [("PSNR of the input, dB", [r.rows[BLURRED]["psnr"] for r in scored])]
    if known:
        places.append(("fitted blur radius, pixels", [float(r or 0) for r in radii]))
    for axis, (label, values) in zip(axes[1:], places, strict=True):
        for collection, members in colours.items():
            axis.scatter([values[i] for i in members], [gains[i] for i in members], s=22, label=collection)
        axis.set(xlabel=label, ylabel="gain, dB")
        if len(colours) > 1:
            axis.legend(fontsize="small")
    for axis in axes:
        axis.axhline(0, color="black", linewidth=0.8)
        axis.grid(alpha=0.3)
    return figure


def _spread_plot(scored: Sequence[PairScores]) -> Any:
    """Box plots of the PSNR gain over the pairs, one for every row."""
    from matplotlib.figure import Figure

    rows = [row for row in scored[0].rows if row != BLURRED]
    figure = Figure(figsize=(13, 4), layout="constrained")
    axis = figure.subplots()
    axis.boxplot([[_gain(r, row) for r in scored] for row in rows], showmeans=True)
    axis.set_xticks(range(1, len(rows) + 1), rows, rotation=30, ha="right")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title="PSNR gain over the pairs: quartiles, median (line), mean (triangle)", ylabel="dB")
    axis.grid(alpha=0.3)
    return figure


def _curve(summaries: Sequence[Summary]) -> str:
    """Perception against distortion over steps and number of samples, and every other row as a point beside; "" where
    there is but one such row."""
    from matplotlib.figure import Figure

    means = {(s.row, s.metric): s.mean for s in summaries}
    rows = list(dict.fromkeys(s.row for s in summaries))
    families = {name: [row for row in rows if row.startswith(f"{name}-")] for name in ("steps", "mean")}
    shown = {name: members for name, members in families.items() if len(members) > 1}
    if not shown or (rows[0], "haarpsi") not in means:
        return ""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axis = figure.subplots()
    for name, members in shown.items():
        x, y = ([means[row, metric] for row in members] for metric in ("psnr", "haarpsi"))
        axis.plot(
            x, [1 - v for v in y], marker="o", label={"steps": "steps of one sample", "mean": "mean of samples"}[name]
        )
        for row, px, py in zip(members, x, y, strict=True):
            axis.annotate(row, (px, 1 - py), textcoords="offset points", xytext=(5, 4), fontsize="small")
    for row in rows:
        if not any(row in members for members in shown.values()):
            place = (means[row, "psnr"], 1 - means[row, "haarpsi"])
            axis.plot(*place, "x", color="#777")
            axis.annotate(
                row, place, color="#555", fontsize="small", ha="right", textcoords="offset points", xytext=(-5, -3)
            )
    axis.set(
        title="Perception against distortion",
        xlabel="PSNR, dB (better to the right)",
        ylabel="1 - HaarPSI (better below)",
    )
    axis.margins(0.12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return _figure(figure, "Perception against distortion")


def _collections(scored: Sequence[PairScores]) -> dict[str, list[int]]:
    """Indices by what stands before the slash of a pair's scene."""
    found: dict[str, list[int]] = {}
    for i, r in enumerate(scored):
        scene = r.pair.columns.get("scene", "")
        found.setdefault(scene.split("/")[0] if "/" in scene else "pairs", []).append(i)
    return found


# ---------------------------------------------------------------- HTML


def _gain(r: PairScores, row: str) -> float:
    return r.rows[row]["psnr"] - r.rows[BLURRED]["psnr"]


def _text(text: str) -> str:
    return html.escape(text)


def _section(title: str, *parts: str) -> str:
    wrapped = (part if part.startswith("<") or not part else f"<p>{part}</p>" for part in parts)
    return f"<h2>{title}</h2>\n" + "\n".join(wrapped)


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _table(lines: Sequence[Sequence[str]], heading: bool = True) -> str:
    """A table of cells that are HTML already; the first line is the heading."""
    first = "th" if heading else "td"
    rows = [
        "<tr>"
        + "".join(f"<{first if i == 0 else 'td'}>{cell}</{first if i == 0 else 'td'}>" for cell in line)
        + "</tr>"
        for i, line in enumerate(lines)
    ]
    return f"<div class=scroll><table{'' if heading else ' class=plain'}>{''.join(rows)}</table></div>"


def _figure(figure: Any, alt: str) -> str:
    """The figure as an image of its own: the identifiers of two drawings in one page would clash."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "rddm"}):  # the same report twice is the same file
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class=plot alt="{_text(alt)}" src="data:image/svg+xml;base64,{data}">'


def _jpeg(crop: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(crop.numpy()).save(buffer, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _to_bytes(picture: Tensor) -> Tensor:
    """[3, h, w] in 0..1 -> uint8 [h, w, 3]."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child, .plain td { text-align: left; }
.scroll, .crops { overflow-x: auto; } .crops { display: flex; gap: 6px; padding-bottom: 6px; }
figure { margin: 0; } figure img { image-rendering: pixelated; display: block; } figcaption { font-size: 13px; }
.plot { max-width: 100%; height: auto; display: block; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
