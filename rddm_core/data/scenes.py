"""Procedural scenes: signed circle-of-confusion fields and lens settings drawn from a random generator."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..optics import Aperture


def sample_aperture(rng: np.random.Generator) -> Aperture:
    """A random aperture: mostly discs, then polygons; rims, soft edges and cat-eyes as real lenses show them."""
    blades = 0 if rng.random() < 0.55 else int(rng.integers(5, 10))
    return Aperture(
        blades=blades,
        rotation=float(rng.uniform(0, 2 * math.pi)),
        rim=float(rng.normal(0.0, 0.35)) if rng.random() < 0.6 else 0.0,
        vignette=float(rng.uniform(0.1, 0.7)) if rng.random() < 0.25 else 0.0,
        vignette_angle=float(rng.uniform(0, 2 * math.pi)),
        softness=float(rng.beta(1.0, 1.5)) if rng.random() < 0.6 else 0.0,
    )


def sample_radius_field(
    rng: np.random.Generator, size: int, max_radius: float, labels: np.ndarray | None = None
) -> Tensor:
    """Signed radii [size, size] in pixels, positive behind the focus plane, |r| <= max_radius.

    `labels`: segment labels [size, size]; where given, objects get a layer each.
    """
    strength = _sample_strength(rng, max_radius)
    kind = rng.choice(["uniform", "plane", "layers", "smooth", "step"], p=[0.18, 0.2, 0.3, 0.17, 0.15])
    if labels is not None and rng.random() < 0.7:
        kind = "segments"
    if kind == "uniform":
        field = torch.full((size, size), strength * float(rng.choice([-1.0, 1.0])))
    elif kind == "plane":
        field = _plane(rng, size) * strength + strength * float(rng.uniform(-0.9, 0.9))
    elif kind == "smooth":
        field = _smooth_noise(rng, size, int(rng.integers(2, 6))) * strength + strength * float(rng.uniform(-0.8, 0.8))
    else:
        regions = _segment_regions(labels) if kind == "segments" and labels is not None else _regions(rng, size, kind)
        field = _layered(rng, regions, strength, size)
    return field.clamp(-max_radius, max_radius)


def radius_field_from_depth(rng: np.random.Generator, depth: Tensor, max_radius: float) -> Tensor:
    """Signed radii [S, S] in pixels for a relative depth [S, S] in 0..1 (0 = near), focused on some point of the scene.

    Relative depths, of focal stacks and disparities, are close to linear in the radius: both follow 1 / distance.
    """
    strength = _sample_strength(rng, max_radius)
    focus = float(depth[tuple(rng.integers(n) for n in depth.shape)]) if rng.random() < 0.7 else float(rng.uniform())
    difference = depth - focus
    return (difference / difference.abs().max().clamp_min(0.15) * strength).clamp(-max_radius, max_radius)


def _sample_strength(rng: np.random.Generator, max_radius: float) -> float:
    """The scene's largest radius: log-uniform, with more weight on what photographs show most (2 to 8 px)."""
    if rng.random() < 0.6:
        return float(min(rng.lognormal(math.log(4.0), 0.5), max_radius))
    return float(math.exp(rng.uniform(math.log(0.6), math.log(max_radius))))


def _plane(rng: np.random.Generator, size: int) -> Tensor:
    angle = rng.uniform(0, 2 * math.pi)
    axis = torch.linspace(-1, 1, size)
    return axis[:, None] * math.sin(angle) + axis[None, :] * math.cos(angle)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Tensor:
    coarse = torch.from_numpy(rng.standard_normal((1, 1, cells + 2, cells + 2)).astype(np.float32))
    noise = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0, 0]
    return noise / noise.abs().max().clamp_min(1e-6)


def _regions(rng: np.random.Generator, size: int, kind: str) -> list[Tensor]:
    """Boolean masks from far to near, each a random blob, half-plane or ellipse."""
    masks = []
    for _ in range(1 if kind == "step" else int(rng.integers(1, 5))):
        shape = rng.random()
        if shape < 0.4:
            masks.append(_smooth_noise(rng, size, int(rng.integers(2, 9))) > float(rng.uniform(-0.1, 0.5)))
        elif shape < 0.7:
            ripple = 0.15 * _smooth_noise(rng, size, int(rng.integers(3, 16)))
            masks.append(_plane(rng, size) + ripple > float(rng.uniform(-0.7, 0.7)))
        else:
            y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
            cy, cx = rng.uniform(-0.8, 0.8, 2)
            ay, ax = rng.uniform(0.08, 0.8, 2)
            masks.append(((y - cy) / ay) ** 2 + ((x - cx) / ax) ** 2 < 1)
    return masks


def _segment_regions(labels: np.ndarray) -> list[Tensor]:
    values, counts = np.unique(labels, return_counts=True)
    return [torch.from_numpy(labels == v) for v in values[np.argsort(-counts)][:12]]


def _layered(rng: np.random.Generator, regions: list[Tensor], strength: float, size: int) -> Tensor:
    """Layers of constant radius, one of them in focus in most scenes, some with a slope of their own."""
    radii = rng.uniform(-strength, strength, len(regions) + 1)
    radii[rng.integers(len(radii))] = strength * float(rng.choice([-1.0, 1.0]))
    if rng.random() < 0.65:
        radii[rng.integers(len(radii))] = 0.0
    field = torch.full((size, size), float(radii[0]))
    for mask, radius in zip(regions, radii[1:], strict=True):
        field = torch.where(mask, torch.tensor(float(radius)), field)
    if rng.random() < 0.4:
        field = field + _plane(rng, size) * float(rng.uniform(0, 0.3)) * strength
    return field
