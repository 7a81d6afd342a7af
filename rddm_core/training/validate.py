"""Validation during training, on real `split=dev` photographs alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.datasets import dataset_masks, dataset_pairs
from ..data.sources import read_grey, read_rgb
from ..data.stream import Sources
from ..files import atomic_target
from ..metrics import psnr_8bit
from ..networks.model import RDDM
from ..pipeline import estimate_defocus_map, pre_deblur, sample_residual
from ..regression import regress
from .recipe import Recipe

MASK_THRESHOLD = 0.5


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W] in 0..1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def validate_joint(
    model: RDDM, recipe: Recipe, sheet: Path, steps: tuple[int, ...] = (1, 3)
) -> tuple[float, dict[str, float]]:
    """PSNR gains over the blurred input on dev pairs, for I_p alone and after 1 and 3 steps; a sample sheet.

    Returns (mean gain with one step, all figures).
    """

    def restore(image: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        defocus_map = estimate_defocus_map(model, image)
        guess = pre_deblur(model, image, defocus_map)
        results = {"pre": guess}
        for n in steps:
            results[f"steps{n}"] = guess + sample_residual(model, guess, defocus_map, seed=0, steps=n)[:, 0]
        return results, (defocus_map.expand_as(image), guess, results[f"steps{steps[-1]}"])

    figures = validate_pairs(recipe, sheet, restore)
    return figures["steps1_mean"], figures


def validate_regression(model: RDDM, recipe: Recipe, sheet: Path) -> tuple[float, dict[str, float]]:
    """PSNR gain over the blurred input on dev pairs by the network in p's place; a sample sheet.

    Returns (mean gain, all figures).
    """

    def restore(image: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        restored = regress(model, image)
        return {"regression": restored}, (restored,)

    figures = validate_pairs(recipe, sheet, restore)
    return figures["regression_mean"], figures


def validate_pairs(
    recipe: Recipe, sheet: Path, restore: Callable[[Tensor], tuple[dict[str, Tensor], tuple[Tensor, ...]]]
) -> dict[str, float]:
    """Mean and worst PSNR gain of every named picture that `restore` makes of [1, 3, H, W], over the dev pairs.

    `restore` also returns what the sample sheet shows between input and target.
    """
    pairs = dataset_pairs(recipe.data.resolved_root() / recipe.data.pairs, "dev", recipe.data.layout)
    gains: dict[str, list[float]] = {}
    strips = []
    for i, pair in enumerate(pairs):
        image, target = to_tensor(read_rgb(pair.blurred)), to_tensor(read_rgb(pair.sharp))
        before = psnr_8bit(image[0], target[0])
        results, shown = restore(image)
        for name, result in results.items():
            gains.setdefault(name, []).append(psnr_8bit(result[0], target[0]) - before)
        if i % max(1, len(pairs) // 5) == 0:
            strips.append(torch.cat([centre(x.clamp(0, 1)) for x in (image, *shown, target)], dim=3))
    grid = (torch.cat(strips, dim=2)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with atomic_target(sheet) as partial:
        Image.fromarray(grid).save(partial, format="JPEG", quality=92)
    figures = {f"{key}_mean": float(np.mean(values)) for key, values in gains.items()}
    return figures | {f"{key}_worst": float(np.min(values)) for key, values in gains.items()}


def centre(x: Tensor, size: int = 320) -> Tensor:
    """The middle [.., size, size] of a picture, replicated at the border where it is smaller."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, max(0, size - width), 0, max(0, size - height)), mode="replicate")
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def validate_estimator(model: RDDM, recipe: Recipe, sources: Sources) -> tuple[float, dict[str, float]]:
    """Mean IoU of both classes on dev masks at MASK_THRESHOLD, and the mean absolute error.

    Returns (mean IoU, all figures).
    """
    masked = dataset_masks(recipe.data.resolved_root() / recipe.data.masks, "dev")
    intersection, union, errors = torch.zeros(2), torch.zeros(2), []
    for photo in masked:
        truth = torch.from_numpy(read_grey(photo.mask)) > 127
        estimate = estimate_defocus_map(model, to_tensor(read_rgb(photo.image)))[0, 0]
        errors.append(float((estimate - truth.float()).abs().mean()))
        blurred = estimate > MASK_THRESHOLD
        for k, (a, b) in enumerate(((blurred, truth), (~blurred, ~truth))):
            intersection[k] += (a & b).sum()
            union[k] += (a | b).sum()
    iou = intersection / union
    figures = {"iou_blurred": float(iou[0]), "iou_sharp": float(iou[1]), "mae": float(np.mean(errors))}
    return float(iou.mean()), figures
