"""The endless, indexed stream of training samples: sample i depends on (seed, i) alone, so a run resumes anywhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from ..optics import map_from_radius, scale_map
from ..orientation import turned
from .sources import MaskedPhoto, PhotoPair, SharpPhoto, read_mask, read_rgb
from .synthetic import RADIUS_STEP, RenderedPack

Sample = dict[str, Tensor]


@dataclass(frozen=True)
class MixtureConfig:
    """Shares of the sources and the degradations that follow the lens. Shares need not sum to one."""

    crop: int = 256
    synthetic: float = 0.5
    real: float = 0.4
    identity: float = 0.1
    """Sharp photographs as their own target, so that what is in focus stays as it is."""
    masks: float = 0.0
    """Photographs out of focus with a mask of where, for the estimator alone; 0 in every other stage."""
    noise: float = 0.5
    """Share of samples with sensor noise added to the blurred picture."""
    jpeg: float = 0.5
    sharpening: float = 0.0
    """Share of samples whose pictures, both, are sharpened as cameras do."""
    rescale: float = 0.65
    """Share of the photographs that are resized by a random factor before the crop is cut."""
    enlarge: float = 1.0
    """Up to which factor the same share of rendered samples is enlarged; 1 leaves them. Photographs as cameras take
    them are softer at the pixel than the reduced ones that are rendered."""
    tone: float = 0.5
    """Share of samples with another exposure, tone curve and white balance, the same for both pictures."""
    channels: float = 0.3
    """Share of samples whose colour channels are permuted."""
    known_map: float = 0.25
    """Share of the samples with a true map that ask for it instead of an estimate, so that painted maps have effect."""
    seed: int = 0


class DecodedPhotos:
    """Photographs as uint8 [3, H, W]. Those asked for last stay decoded, in `limit` bytes of memory at most."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit, self.size = limit, 0
        self.kept: dict[Path, np.ndarray] = {}  # the one not asked for longest comes first

    def __getitem__(self, path: Path) -> np.ndarray:
        planes = self.kept.pop(path, None)
        if planes is None:
            planes = np.ascontiguousarray(read_rgb(path).transpose(2, 0, 1))
            self.size += planes.nbytes
        self.kept[path] = planes
        while self.size > self.limit:
            self.size -= self.kept.pop(next(iter(self.kept))).nbytes
        return planes


@dataclass(frozen=True)
class Sources:
    """The decoded-on-demand material of a mixture."""

    pack: RenderedPack | None
    pairs: list[PhotoPair]
    sharp: list[SharpPhoto]
    masked: list[MaskedPhoto]
    pair_maps: dict[Path, np.ndarray] = field(default_factory=dict)
    """Defocus maps (uint8 [1, h, w] of any size) of blurred photographs of pairs, estimated once from the whole
    photograph; their radii count its pixels."""
    photos: DecodedPhotos = field(default_factory=DecodedPhotos)
    """Every loader worker gets a copy, and so decodes and keeps its own."""

    @cached_property
    def pair_shares(self) -> np.ndarray:
        """Probability of each pair: by collection (what stands before the slash of its scene), with the square root of
        the collection's size, so that the cameras with few pairs are not drowned by the one with most."""
        collections = [pair.scene.split("/")[0] for pair in self.pairs]
        weights = np.array([collections.count(name) ** -0.5 for name in collections])
        return weights / weights.sum()


class TrainingStream(IterableDataset[Sample]):
    """Batches of a mixture for one of several training processes, from `start_step` on.

    Step k, process r, position j is sample (k processes + r) batch + j, whatever the number of loader workers. Each
    batch is a dict of float32 tensors: blurred and sharp [B, 3, S, S] in 0..1, map [B, 1, S, S] in 0..1, map_known
    [B, 1] (1 where the true map is to be used) and index [B] (int64).
    """

    def __init__(
        self,
        sources: Sources,
        config: MixtureConfig,
        batch: int,
        start_step: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.sources, self.config, self.batch = sources, config, batch
        self.start_step, self.process, self.processes = start_step, process, processes

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        offset, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start_step + offset
        while True:
            first = (step * self.processes + self.process) * self.batch
            yield default_collate([draw_sample(self.sources, self.config, first + j) for j in range(self.batch)])
            step += workers


def draw_sample(sources: Sources, config: MixtureConfig, index: int) -> Sample:
    """Sample `index` of the mixture."""
    rng = np.random.default_rng((config.seed, 1, index))
    shares = np.array([config.synthetic, config.real, config.identity, config.masks])
    kind = rng.choice(4, p=shares / shares.sum())
    at_hand = False  # an estimate is there already, none has to be made
    if kind == 0:
        if sources.pack is None:
            raise ValueError("the mixture has a synthetic share but the recipe names no sharp photographs")
        planes, scale = sources.pack.sample(int(rng.integers(sources.pack.count))), 1.0
        if config.enlarge > 1:
            planes, scale = _random_scale(planes, config, rng, 1.0, config.enlarge)
        planes = _random_window(planes, config.crop, rng)
        blurred, sharp = planes[:3].astype(np.float32), planes[3:6].astype(np.float32)
        radius = torch.from_numpy(planes[6:].astype(np.float32) * RADIUS_STEP * scale)
        defocus, known = map_from_radius(radius), 1.0
    elif kind == 1:
        pair = sources.pairs[rng.choice(len(sources.pairs), p=sources.pair_shares)]
        estimate = sources.pair_maps.get(pair.blurred)
        planes = np.concatenate((sources.photos[pair.blurred], sources.photos[pair.sharp]))
        if estimate is not None:
            size = (planes.shape[2], planes.shape[1])
            enlarged = np.array(Image.fromarray(estimate[0]).resize(size, Image.Resampling.BILINEAR))
            planes = np.concatenate((planes, enlarged[None]))
        planes, scale = _random_scale(planes, config, rng, 0.6, 1.3)
        planes = _random_window(planes, config.crop, rng)
        blurred, sharp = planes[:3].astype(np.float32), planes[3:6].astype(np.float32)
        if estimate is None:
            defocus, known = torch.zeros(1, config.crop, config.crop), 0.0
        else:
            defocus = scale_map(torch.from_numpy(planes[6:].astype(np.float32) / 255), scale)
            known, at_hand = 1.0, True
    elif kind == 2:
        photo = sources.sharp[rng.integers(len(sources.sharp))]
        planes = _random_scale(sources.photos[photo.path], config, rng, 0.5, 1.0)[0]
        planes = _random_window(planes, config.crop, rng)
        blurred = sharp = planes.astype(np.float32)
        defocus, known = torch.zeros(1, config.crop, config.crop), 1.0
    else:
        masked = sources.masked[rng.integers(len(sources.masked))]
        planes = np.concatenate((sources.photos[masked.image], read_mask(masked.mask)[None]))
        planes = _random_window(_random_scale(planes, config, rng, 0.6, 1.3)[0], config.crop, rng)
        blurred = sharp = planes[:3].astype(np.float32)
        defocus, known = torch.from_numpy(planes[3:].astype(np.float32) / 255).round(), 1.0
    if config.sharpening and rng.random() < config.sharpening:
        blurred, sharp = _sharpen(blurred, sharp, rng)
    blurred, sharp = _tone(blurred / 255, sharp / 255, config, rng)
    blurred = _sensor(blurred, config, rng)
    stacked = torch.cat((torch.from_numpy(blurred), torch.from_numpy(sharp), defocus))
    stacked = turned(stacked, int(rng.integers(8)))
    return {
        "blurred": stacked[:3].contiguous(),
        "sharp": stacked[3:6].contiguous(),
        "map": stacked[6:].contiguous(),
        "map_known": torch.tensor([known if rng.random() < config.known_map or at_hand else 0.0]),
        "index": torch.tensor(index),
    }


def _random_scale(
    planes: np.ndarray, config: MixtureConfig, rng: np.random.Generator, low: float, high: float
) -> tuple[np.ndarray, float]:
    """Resize [C, H, W] by a random factor, never below what a crop needs; returns the factor as well."""
    crop = config.crop
    smallest = (crop + 1) / min(planes.shape[1:])
    scale = 1.0 if rng.random() < 1 - config.rescale else float(rng.uniform(low, high))
    scale = max(scale, smallest)
    if scale == 1.0:
        return planes, 1.0
    # Only the window that will be cut is resized.
    window = min(int(np.ceil(crop / scale)) + 2, *planes.shape[1:])
    part = _random_window(planes, window, rng)
    size = max(crop, round(window * scale))
    return np.stack([np.array(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in part]), scale


def _random_window(planes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top = int(rng.integers(planes.shape[1] - size + 1))
    left = int(rng.integers(planes.shape[2] - size + 1))
    return planes[:, top : top + size, left : left + size]


def _tone(
    blurred: np.ndarray, sharp: np.ndarray, config: MixtureConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One random exposure, tone curve and white balance for both pictures."""
    if rng.random() < config.tone:
        gamma = float(np.exp(rng.normal(0, 0.2)))
        gain = (rng.uniform(0.75, 1.1) * np.exp(rng.normal(0, 0.06, 3))).astype(np.float32)[:, None, None]
        blurred, sharp = (np.clip(gain * np.power(x, gamma, dtype=np.float32), 0, 1) for x in (blurred, sharp))
    if rng.random() < config.channels:
        order = rng.permutation(3)
        blurred, sharp = blurred[order], sharp[order]
    return blurred, sharp


def _sharpen(blurred: np.ndarray, sharp: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same unsharp mask on both pictures [3, S, S] in 0..255."""
    mask = ImageFilter.UnsharpMask(radius=rng.uniform(0.6, 1.6), percent=int(rng.integers(15, 90)), threshold=0)
    pictures = (Image.fromarray(x.astype(np.uint8).transpose(1, 2, 0)).filter(mask) for x in (blurred, sharp))
    first, second = (np.asarray(p).transpose(2, 0, 1).astype(np.float32) for p in pictures)
    return first, second


def _sensor(blurred: np.ndarray, config: MixtureConfig, rng: np.random.Generator) -> np.ndarray:
    """Poisson-Gauss noise and JPEG compression of the blurred picture, both mild."""
    if rng.random() < config.noise:
        read, shot = 0.006 * rng.random() ** 2, 0.0004 * rng.random() ** 2
        deviation = np.sqrt(read**2 + shot * blurred)
        blurred = blurred + deviation * rng.standard_normal(blurred.shape, dtype=np.float32)
    blurred = np.clip(blurred, 0, 1)
    if rng.random() < config.jpeg:
        picture = Image.fromarray((blurred * 255).round().astype(np.uint8).transpose(1, 2, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(75, 99)), subsampling=int(rng.choice([0, 2])))
        blurred = np.array(Image.open(buffer)).transpose(2, 0, 1) / 255
    return np.ascontiguousarray(blurred, dtype=np.float32)
