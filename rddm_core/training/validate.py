"""Validation during training, on real `split=dev` photographs alone.

Every validation also draws a sample sheet: a column of photographs from the dev part, each beside what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.datasets import dataset_masks, dataset_pairs
from ..data.sources import MaskedPhoto, PhotoPair, check_sizes, read_mask, read_rgb
from ..files import atomic_target
from ..memory import tile_size
from ..metrics import psnr_8bit
from ..networks.model import RDDM
from ..pipeline import estimate_defocus_map, pre_deblur, sample_residual
from ..regression import regress
from .recipe import Recipe

MASK_THRESHOLD = 0.5
SHEET_ROWS = 5
"""About as many photographs are shown on a sample sheet."""
Validation = Callable[[RDDM, Path | None], tuple[float, dict[str, float]]]
"""(model, sample sheet to write, or None) -> (score, all figures)."""


def open_validation(recipe: Recipe) -> Validation:
    """The validation of the recipe's stage. Its photographs are looked up now: before the hours of training, not after.

    Raises ValueError where the data has nothing of `split=dev` or partners of unequal size, FileNotFoundError where
    files of it are missing.
    """
    root, data = recipe.data.resolved_root(), recipe.data
    if recipe.stage == "estimator":
        masks = dataset_masks(root / data.masks, "dev")
        _require(root / data.masks, [(photo.image, photo.mask) for photo in masks])
        return lambda model, sheet: validate_estimator(model, masks, sheet)
    pairs = dataset_pairs(root / data.pairs, "dev", data.layout)
    _require(root / data.pairs, [(pair.blurred, pair.sharp) for pair in pairs])
    validators: dict[str, Callable[[RDDM, Sequence[PhotoPair], Path | None], tuple[float, dict[str, float]]]] = {
        "joint": validate_joint,
        "pre_deblur": validate_pre_deblur,
        "regression": validate_regression,
    }
    validate = validators[recipe.stage]
    return lambda model, sheet: validate(model, pairs, sheet)


def _require(folder: Path, partners: Sequence[tuple[Path, Path]]) -> None:
    if not partners:
        raise ValueError(
            f"{folder} has nothing of split=dev, on which a run is validated: give some rows of its manifest that split"
        )
    if missing := [path for paths in partners for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} of split=dev in {folder} does not exist ({len(missing)} in all)")
    check_sizes(partners)


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W] in 0..1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def validate_joint(model: RDDM, pairs: Sequence[PhotoPair], sheet: Path | None) -> tuple[float, dict[str, float]]:
    """PSNR gains over the blurred input on dev pairs, for I_p alone and after 1, 3 and the recommended steps; a sample
    sheet.

    Returns (mean gain with the recommended steps, all figures).
    """
    steps = sorted({1, min(3, model.config.diffusion.timesteps), model.recommended_steps})

    def restore(image: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        defocus_map = estimate_defocus_map(model, image)
        tile = tile_size("auto", image.shape[-2], image.shape[-1], model.config)
        guess = pre_deblur(model, image, defocus_map, tile=tile)
        results = {"pre": guess}
        for n in steps:
            residual = sample_residual(model, guess, defocus_map, seed=0, steps=n, tile=tile)
            results[f"steps{n}"] = guess + residual[:, 0]
        return results, (defocus_map.expand_as(image), guess, results[f"steps{steps[-1]}"])

    figures = validate_pairs(pairs, sheet, restore)
    return figures[f"steps{model.recommended_steps}_mean"], figures


def validate_pre_deblur(model: RDDM, pairs: Sequence[PhotoPair], sheet: Path | None) -> tuple[float, dict[str, float]]:
    """PSNR gain of I_p over the blurred input on dev pairs; a sample sheet. Returns (mean gain, all figures)."""

    def restore(image: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        defocus_map = estimate_defocus_map(model, image)
        tile = tile_size("auto", image.shape[-2], image.shape[-1], model.config)
        guess = pre_deblur(model, image, defocus_map, tile=tile)
        return {"pre": guess}, (defocus_map.expand_as(image), guess)

    figures = validate_pairs(pairs, sheet, restore)
    return figures["pre_mean"], figures


def validate_regression(model: RDDM, pairs: Sequence[PhotoPair], sheet: Path | None) -> tuple[float, dict[str, float]]:
    """PSNR gain over the blurred input on dev pairs by the network in p's place; a sample sheet.

    Returns (mean gain, all figures).
    """

    def restore(image: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        restored = regress(model, image)
        return {"regression": restored}, (restored,)

    figures = validate_pairs(pairs, sheet, restore)
    return figures["regression_mean"], figures


def validate_pairs(
    pairs: Sequence[PhotoPair],
    sheet: Path | None,
    restore: Callable[[Tensor], tuple[dict[str, Tensor], tuple[Tensor, ...]]],
) -> dict[str, float]:
    """Mean and worst PSNR gain of every named picture that `restore` makes of [1, 3, H, W], over the pairs.

    `restore` also returns what the sample sheet shows between input and target.
    """
    gains: dict[str, list[float]] = {}
    rows: list[tuple[Tensor, ...]] = []
    for i, pair in enumerate(pairs):
        image, target = to_tensor(read_rgb(pair.blurred)), to_tensor(read_rgb(pair.sharp))
        before = psnr_8bit(image[0], target[0])
        results, shown = restore(image)
        for name, result in results.items():
            gains.setdefault(name, []).append(psnr_8bit(result[0], target[0]) - before)
        if is_shown(i, len(pairs)):
            rows.append((image, *shown, target))
    save_sheet(sheet, rows)
    figures = {f"{key}_mean": float(np.mean(values)) for key, values in gains.items()}
    return figures | {f"{key}_worst": float(np.min(values)) for key, values in gains.items()}


def is_shown(i: int, count: int) -> bool:
    """Whether photograph i of `count` is one of those on the sheet."""
    return i % max(1, count // SHEET_ROWS) == 0


def save_sheet(path: Path | None, rows: Sequence[Sequence[Tensor]]) -> None:
    """Write rows of pictures [1, 3, H, W] as one JPEG, the middle of each; no file without a path."""
    if path is None:
        return
    strips = [torch.cat([centre(x.clamp(0, 1)) for x in row], dim=3) for row in rows]
    grid = (torch.cat(strips, dim=2)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with atomic_target(path) as partial:
        Image.fromarray(grid).save(partial, "JPEG", quality=92)


def centre(x: Tensor, size: int = 320) -> Tensor:
    """The middle [.., size, size] of a picture, replicated at the border where it is smaller."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, max(0, size - width), 0, max(0, size - height)), mode="replicate")
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def validate_estimator(
    model: RDDM, masked: Sequence[MaskedPhoto], sheet: Path | None
) -> tuple[float, dict[str, float]]:
    """Mean IoU of both classes on dev masks at MASK_THRESHOLD, and the mean absolute error; a sample sheet.

    Returns (mean IoU, all figures).
    """
    intersection, union, errors, rows = torch.zeros(2), torch.zeros(2), [], []
    for i, photo in enumerate(masked):
        truth, image = torch.from_numpy(read_mask(photo.mask)) > 127, to_tensor(read_rgb(photo.image))
        estimate = estimate_defocus_map(model, image)[0, 0]
        if is_shown(i, len(masked)):
            rows.append((image, estimate.expand_as(image), truth.float().expand_as(image)))
        errors.append(float((estimate - truth.float()).abs().mean()))
        blurred = estimate > MASK_THRESHOLD
        for k, (a, b) in enumerate(((blurred, truth), (~blurred, ~truth))):
            intersection[k] += (a & b).sum()
            union[k] += (a | b).sum()
    save_sheet(sheet, rows)
    iou = intersection / union.clamp_min(1)  # a class that neither knows
    figures = {"iou_blurred": float(iou[0]), "iou_sharp": float(iou[1]), "mae": float(np.mean(errors))}
    return float(iou.mean()), figures
