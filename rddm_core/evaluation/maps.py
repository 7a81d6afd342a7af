"""Scores of defocus maps: against hand-made masks, and against true radii on rendered photographs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.datasets import cuhk_photos
from ..data.scenes import sample_aperture, sample_radius_field
from ..data.sources import MaskedPhoto, read_mask, read_rows
from ..images import load_image
from ..networks.model import RDDM
from ..optics import render_defocus
from ..pipeline import estimate_defocus_map
from .evaluate import align, spearman

THRESHOLD = 0.5
"""A map above this says "out of focus", for every photograph alike; `sweep_thresholds` chooses another one."""
BETA_SQUARED = 0.3
"""Weight of precision in F-beta, as in the papers on defocus detection."""
RENDERED_SIDE = 512
RENDERED_RADIUS = 10.0
"""Long side of rendered scenes, and their largest radius, in pixels."""

MapMethod = Callable[[Tensor], Tensor]
"""Picture [3, H, W] in 0..1 -> defocus map [H, W] in 0..1, 1 = out of focus."""
Failed = Callable[[Path, str], None]
"""Is told of a photograph that could not be scored, and why; the others go on."""


def find_masks(path: Path, where: Sequence[tuple[str, str]] = (), limit: int | None = None) -> list[MaskedPhoto]:
    """Photographs with masks: of a manifest (columns image and mask, relative to the folder that holds its folder,
    however `path` is spelled) or of a folder with one, or of CUHK (part `test`, or the one that `where` names as
    `split`, its only column).

    Raises ValueError (DatasetError for a folder that is neither) and FileNotFoundError.
    """
    manifest = path / "manifest.csv" if path.is_dir() else path
    if path.is_dir() and not manifest.is_file():
        if others := [column for column, _ in where if column != "split"]:
            raise ValueError(f"{path} has no column {others[0]!r}: CUHK has split alone (train, dev or test)")
        if len(splits := {value for _, value in where}) > 1:
            raise ValueError(f"{path} has no rows of {' and '.join(sorted(splits))} at once: choose one split")
        return cuhk_photos(path, dict(where).get("split", "test"))[:limit]
    rows = read_rows(manifest, ("image", "mask", *(column for column, _ in where)))
    # The parent's parent of `manifest.csv` as spelled inside its folder would be that folder. Links are not followed:
    # where the folder itself is one, the pictures lie beside it.
    root = Path(os.path.abspath(manifest)).parent.parent
    photos = [
        MaskedPhoto(root / row["image"], root / row["mask"])
        for row in rows
        if all(row[column] == value for column, value in where)
    ]
    if not photos:
        selection = " and ".join(f"{c}={v}" for c, v in where)
        raise ValueError(f"{manifest} has no rows" + (f" with {selection}" if selection else ""))
    return photos[:limit]


def map_methods(model: RDDM) -> dict[str, MapMethod]:
    """The estimator's map, and the classical one from edges (Zhuo and Sim 2011)."""
    from ..classical import edge_defocus_map

    return {
        "estimator": lambda image: estimate_defocus_map(model, image[None])[0, 0],
        "edges": lambda image: edge_defocus_map(image[None])[0, 0],
    }


@dataclass(frozen=True)
class MapScore:
    """One row over all masks. Pixels of all photographs count alike in the two IoU; F-beta and MAE are means."""

    iou_blurred: float
    iou_sharp: float
    f_beta: float
    mae: float

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU of both classes, which an all-white map cannot win."""
        return (self.iou_blurred + self.iou_sharp) / 2


def score_maps(
    photos: Iterable[MaskedPhoto],
    methods: Mapping[str, MapMethod],
    threshold: float = THRESHOLD,
    failed: Failed | None = None,
) -> dict[str, MapScore]:
    """Row -> score of every method, and of the map that is white everywhere, over photographs with masks.

    Raises ImageError for a photograph that cannot be read and ValueError for a mask of another size, unless `failed`
    takes note of them; ValueError where no photograph is left.
    """
    methods = {"all white": lambda image: torch.ones(image.shape[-2:]), **methods}
    # Per row: intersection and union of blurred and of sharp, then F-beta and MAE per photograph.
    areas = {row: torch.zeros(2, 2, dtype=torch.float64) for row in methods}
    single: dict[str, list[tuple[float, float]]] = {row: [] for row in methods}
    for photo in photos:
        with _told(failed, photo.image):
            image, truth = _read(photo)
            maps = {row: method(image) for row, method in methods.items()}
            for row, defocus_map in maps.items():
                blurred = defocus_map > threshold
                for k, (a, b) in enumerate(((blurred, truth), (~blurred, ~truth))):
                    areas[row][k] += torch.tensor([int((a & b).sum()), int((a | b).sum())])
                single[row].append((f_beta(blurred, truth), float((defocus_map - truth.float()).abs().mean())))
    if not next(iter(single.values())):
        raise ValueError("no photographs with masks")
    scores = {}
    for row, area in areas.items():
        iou = (area[:, 0] / area[:, 1].clamp_min(1)).tolist()
        f_betas, errors = zip(*single[row], strict=True)
        scores[row] = MapScore(iou[0], iou[1], statistics.fmean(f_betas), statistics.fmean(errors))
    return scores


@dataclass(frozen=True)
class Cut:
    """What one threshold gives: IoU of what it calls out of focus and of what it calls sharp."""

    threshold: float
    iou_blurred: float
    iou_sharp: float

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU of both classes."""
        return (self.iou_blurred + self.iou_sharp) / 2


SWEPT = tuple(k / 20 for k in range(1, 20))
"""Thresholds that a sweep compares."""


def sweep_thresholds(photos: Iterable[MaskedPhoto], method: MapMethod, failed: Failed | None = None) -> list[Cut]:
    """IoU of both classes at every threshold of SWEPT, for choosing one on a dev part; every map is made once.

    Pixels of all photographs count alike, as in `score_maps`, with which the figures agree. Raises as it does.
    """
    edges = torch.tensor(SWEPT)
    # Pixels of each class, by the number of thresholds that their map exceeds.
    counts = torch.zeros(2, len(SWEPT) + 1, dtype=torch.int64)
    for photo in photos:
        with _told(failed, photo.image):
            image, truth = _read(photo)
            exceeded = torch.bucketize(method(image).contiguous(), edges)  # edges[k - 1] < map <= edges[k]
            for k, members in enumerate((exceeded[~truth], exceeded[truth])):
                counts[k] += torch.bincount(members, minlength=len(SWEPT) + 1)
    if not counts.any():
        raise ValueError("no photographs with masks")
    cuts = []
    for i, threshold in enumerate(SWEPT):
        (true_sharp, false_sharp), (false_blurred, true_blurred) = (
            counts[:, part].sum(dim=1).tolist() for part in (slice(None, i + 1), slice(i + 1, None))
        )
        wrong = false_sharp + false_blurred
        iou = (true_blurred / max(1, true_blurred + wrong), true_sharp / max(1, true_sharp + wrong))
        cuts.append(Cut(threshold, *iou))
    return cuts


def format_sweep(cuts: Sequence[Cut]) -> str:
    """The sweep as text, the best mean IoU marked by a star."""
    best = max(cuts, key=lambda cut: cut.mean_iou)
    lines: list[tuple[str, ...]] = [("threshold", "mean IoU", "IoU blurred", "IoU sharp", "")]
    for cut in cuts:
        values = (f"{v:.3f}" for v in (cut.mean_iou, cut.iou_blurred, cut.iou_sharp))
        lines.append((f"{cut.threshold:.2f}", *values, "*" if cut is best else ""))
    return align(lines)


@contextmanager
def _told(failed: Failed | None, path: Path) -> Iterator[None]:
    """What fails inside is told to `failed`, if there is one, and goes no further."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        if failed is None:
            raise
        failed(path, str(error))


def _read(photo: MaskedPhoto) -> tuple[Tensor, Tensor]:
    """Photograph [3, H, W] in 0..1 and mask [H, W], True where out of focus."""
    image, truth = load_image(photo.image).pixels, torch.from_numpy(read_mask(photo.mask)) > 127
    if truth.shape != image.shape[-2:]:
        raise ValueError(f"{photo.mask} is {list(truth.shape)}, but its photograph {list(image.shape[-2:])}")
    return image, truth


def f_beta(found: Tensor, truth: Tensor) -> float:
    """(1 + b2) P R / (b2 P + R) of binary maps [H, W] with b2 = BETA_SQUARED; 1 where both are empty."""
    hits, claimed, wanted = (int(x.sum()) for x in (found & truth, found, truth))
    if claimed == 0 and wanted == 0:
        return 1.0
    # With P = hits / claimed and R = hits / wanted.
    return (1 + BETA_SQUARED) * hits / (BETA_SQUARED * wanted + claimed)


@dataclass(frozen=True)
class RadiusOrder:
    """Spearman's correlation of map and true radius: over the pixels of each scene, and over those of all scenes."""

    scenes: tuple[float, ...]
    pooled: float

    @property
    def mean(self) -> float:
        """Mean over the scenes; 0 where there are none."""
        return statistics.fmean(self.scenes) if self.scenes else 0.0


def radius_order(photos: Iterable[Path], method: MapMethod, seed: int = 0, failed: Failed | None = None) -> RadiusOrder:
    """How well the map orders true radii on photographs made out of focus by the renderer.

    One scene and one lens per photograph, drawn by (seed, number of the photograph), radii up to RENDERED_RADIUS
    pixels at a long side of RENDERED_SIDE. Scenes of one radius everywhere have no order of their own and count in
    `pooled` alone. Raises ImageError for a photograph that cannot be read, unless `failed` takes note of it.
    """
    scenes, maps, radii = [], [], []
    for i, photo in enumerate(photos):
        with _told(failed, photo):
            blurred, radius = _render(photo, np.random.default_rng((seed, i)))
            defocus_map = method(blurred)
            if float(radius.max() - radius.min()) > 0.5:
                scenes.append(spearman(defocus_map, radius))
            maps.append(defocus_map[::8, ::8].flatten())
            radii.append(radius[::8, ::8].flatten())
    return RadiusOrder(tuple(scenes), spearman(torch.cat(maps), torch.cat(radii)) if maps else 0.0)


def _render(photo: Path, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The photograph [3, H, W], reduced to RENDERED_SIDE and made out of focus, and the radii [H, W] of that."""
    sharp = load_image(photo).pixels
    scale = RENDERED_SIDE / max(sharp.shape[-2:])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in sharp.shape[-2:]]
        sharp = F.interpolate(sharp[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    height, width = sharp.shape[-2:]
    field = sample_radius_field(rng, max(height, width), RENDERED_RADIUS)[:height, :width]
    return render_defocus(sharp, field, sample_aperture(rng)), field.abs()


def format_maps(scores: Mapping[str, MapScore]) -> str:
    """The scores as text, one line per row."""
    lines: list[tuple[str, ...]] = [("", "mean IoU", "IoU blurred", "IoU sharp", "F-beta", "MAE")]
    for row, s in scores.items():
        lines.append((row, *(f"{v:.3f}" for v in (s.mean_iou, s.iou_blurred, s.iou_sharp, s.f_beta, s.mae))))
    return align(lines)


def as_dict(scores: Mapping[str, MapScore]) -> dict[str, Any]:
    """The scores as JSON can hold them."""
    return {row: {"mean_iou": s.mean_iou, **vars(s)} for row, s in scores.items()}
