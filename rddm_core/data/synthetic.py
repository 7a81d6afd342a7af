"""Rendered training samples: one sharp photograph, one procedural scene, one lens, determined by (seed, index)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from ..files import atomic_target, write_text
from ..optics import render_defocus
from .scenes import radius_field_from_depth, sample_aperture, sample_radius_field
from .sources import DepthPhoto, SharpPhoto, opened_upright, read_labels, read_rgb

RADIUS_STEP = 1 / 16
"""Resolution, in pixels, of the radii stored in a pack."""
LEAST_FREE = 64 << 20
"""Bytes of its disk that a pack leaves free: more than the samples that processes render at the same time."""


@dataclass(frozen=True)
class RenderConfig:
    """How training defocus is drawn. Radii are in pixels of the rendered crop."""

    size: int = 288
    max_radius: float = 12.0
    seed: int = 0
    levels: int = 7
    sharp_share: float = 0.08
    """Share of samples without any blur."""
    depth_share: float = 0.0
    """Share of samples from photographs with a depth of their own."""


def render_sample(
    photos: list[SharpPhoto], config: RenderConfig, index: int, depths: Sequence[DepthPhoto] = ()
) -> np.ndarray:
    """Sample `index` as uint8 [7, S, S]: blurred RGB, sharp RGB, |radius| in steps of RADIUS_STEP pixels."""
    rng = np.random.default_rng((config.seed, index))
    depth: Tensor | None = None
    labels: np.ndarray | None = None
    if depths and rng.random() < config.depth_share:
        image, depth = _crop_with_depth(depths[int(rng.integers(len(depths)))], config.size, rng)
    else:
        image, labels = _sharp_crop(photos, config.size, rng)
    sharp = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    if rng.random() < config.sharp_share:
        radius = torch.zeros(config.size, config.size)
        blurred = sharp
    else:
        if depth is None:
            radius = sample_radius_field(rng, config.size, config.max_radius, labels)
        else:
            radius = radius_field_from_depth(rng, depth, config.max_radius)
        blurred = render_defocus(
            sharp,
            radius,
            sample_aperture(rng),
            levels=config.levels,
            highlight_gain=float(math.exp(rng.uniform(0, 1.8))) if rng.random() < 0.3 else 1.0,
            colour_fringe=float(rng.normal(0, 0.03)) if rng.random() < 0.3 else 0.0,
        )
    planes = torch.cat((blurred * 255, sharp * 255, radius.abs()[None] / RADIUS_STEP))
    return planes.round().clamp(0, 255).to(torch.uint8).numpy()


def _sharp_crop(photos: list[SharpPhoto], size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """A textured crop [size, size, 3], often reduced first, which makes slightly soft photographs sharp."""
    weights = np.array([0.15 + p.texture for p in photos])
    best: tuple[float, np.ndarray, np.ndarray | None] | None = None
    for _ in range(4):
        photo = photos[rng.choice(len(photos), p=weights / weights.sum())]
        picture = read_rgb(photo.path)
        labels = read_labels(photo.segments) if photo.segments else None
        if labels is not None and labels.shape != picture.shape[:2]:
            labels = None
        smallest = max(0.45, (size + 1) / min(picture.shape[:2]))
        scale = float(rng.uniform(smallest, 1.0)) if smallest < 1 else smallest
        height, width = (max(size, round(n * scale)) for n in picture.shape[:2])
        if (height, width) != picture.shape[:2]:
            picture = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
            if labels is not None:
                labels = np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        window = np.s_[top : top + size, left : left + size]
        crop, crop_labels = picture[window], None if labels is None else labels[window]
        detail = _detail(crop)
        if best is None or detail > best[0]:
            best = (detail, crop, crop_labels)
        if detail > 4.0 + 6.0 * rng.random():
            break
    assert best is not None
    _, crop, crop_labels = best
    if rng.random() < 0.5:
        crop, crop_labels = crop[:, ::-1], None if crop_labels is None else crop_labels[:, ::-1]
    return np.ascontiguousarray(crop), None if crop_labels is None else np.ascontiguousarray(crop_labels)


def _crop_with_depth(photo: DepthPhoto, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    """A crop [size, size, 3] and its depth [size, size], 0 the nearest and 1 the farthest point of the photograph."""
    picture = Image.fromarray(read_rgb(photo.image))
    with opened_upright(photo.depth) as opened:
        values = np.asarray(opened, dtype=np.float32)
    low, high = np.percentile(values, (1, 99))
    relative = ((values - low) / max(high - low, 1e-6)).clip(0, 1)
    if photo.near_is_bright:
        relative = 1 - relative
    # The index of the sharpest slice is noise where there is no texture.
    plane = Image.fromarray((relative * 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(15))
    smallest = (size + 1) / min(picture.size)
    scale = float(rng.uniform(smallest, 1.0)) if smallest < 1 else smallest
    new = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    picture, plane = picture.resize(new, Image.Resampling.LANCZOS), plane.resize(new, Image.Resampling.BILINEAR)
    left, top = int(rng.integers(new[0] - size + 1)), int(rng.integers(new[1] - size + 1))
    box = (left, top, left + size, top + size)
    depth = torch.from_numpy(np.array(plane.crop(box), dtype=np.float32) / 255)
    return np.array(picture.crop(box)), depth


def _detail(crop: np.ndarray) -> float:
    """Mean absolute luma gradient, in 8-bit steps: flat sky teaches nothing about focus."""
    luma = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean())


def _described(source: SharpPhoto | DepthPhoto) -> dict[str, Any]:
    """What of a source decides on its samples, its files by name and length: the folder may lie elsewhere."""
    values = vars(source).items()
    return {key: [x.name, x.stat().st_size] if isinstance(x, Path) else x for key, x in values}


class RenderedPack:
    """Rendered samples kept in one memory-mapped file, so that later epochs cost a read.

    `folder` gets `samples.npy` (uint8 [count, 7, S, S]), `done.npy` (bool [count]) and `render.json` with what made
    them; a folder made by another configuration, or of other photographs, is refused, and so is rendering on a full
    disk (OSError). Processes share it, whether they are forked or get it pickled.
    """

    def __init__(
        self,
        folder: Path,
        photos: list[SharpPhoto],
        config: RenderConfig,
        count: int,
        depths: Sequence[DepthPhoto] = (),
    ) -> None:
        self.folder, self.photos, self.config, self.count, self.depths = folder, photos, config, count, depths
        folder.mkdir(parents=True, exist_ok=True)
        sources: list[SharpPhoto | DepthPhoto] = [*photos, *depths]
        described = {"render": asdict(config), "count": count, "photos": [_described(x) for x in sources]}
        description = folder / "render.json"
        if not description.exists():
            # Several processes may begin at once: all go on with the files of the first.
            write_text(description, json.dumps(described, indent=1), keep=True)
        if json.loads(description.read_text(encoding="utf-8")) != described:
            raise ValueError(
                f"{folder} holds samples of another configuration, or of other photographs: remove it, or name another "
                "folder"
            )
        self._open_all()

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a mapped array is a copy of all of it; a process that gets the pack maps the files itself.
        return {name: value for name, value in vars(self).items() if name not in ("samples", "done")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_all()

    def _open_all(self) -> None:
        self.samples = self._open("samples.npy", (self.count, 7, self.config.size, self.config.size), np.uint8)
        self.done = self._open("done.npy", (self.count,), np.bool_)

    def _open(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        path = self.folder / name
        if not path.exists():
            # A sparse file: disk is used only as samples are rendered.
            with atomic_target(path, keep=True) as partial:
                np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        return np.lib.format.open_memmap(path, mode="r+")

    def sample(self, index: int) -> np.ndarray:
        """Sample `index % count`, rendered on first use."""
        index %= self.count
        if not self.done[index]:
            self._require_room()
            self.samples[index] = render_sample(self.photos, self.config, index, self.depths)
            self.done[index] = True
        return self.samples[index]

    def _require_room(self) -> None:
        """OSError while writing is still possible: a store into a mapped file that the disk has no room for kills."""
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE:
            missing = int((~self.done).sum()) * self.samples[0].nbytes
            raise OSError(
                f"the disk of {self.folder} has {free / 1e6:.0f} MB left, and samples still to be rendered take up to "
                f"{missing / 1e6:.0f} MB: make room, or begin anew with a smaller data.pack_count"
            )
