"""Algorithm 1 of the paper: five stages that can be called one by one, and `deblur`, which chains them.

    map = estimate_defocus_map(model, image)              # g
    I_p = pre_deblur(model, image, map)                   # p
    H   = encode_guidance(model, I_p)                     # H(Backbone(I_p)); optional
    r   = sample_residual(model, I_p, map, guidance=H)    # f, 1 to T steps
    I   = merge_residual(image, I_p, r[:, 0])             # Eq. 15

Pictures are [B, 3, H, W], maps and masks [B, 1, h, w], floating point in 0..1, of any size from one pixel and
on any device; results are float32 on the picture's device. The networks run where the model lives. Batch
items are processed one by one: a batch equals its single pictures, and the networks' memory does not grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .callbacks import Callbacks
from .checks import check_map, check_picture
from .diffusion import Schedule, ddim_step, make_alpha_bars, sampling_timesteps
from .memory import AUTO_TILE, GUIDANCE_CONTEXT, guidance_window, held_bytes, tile_size
from .networks.deconvolution import CONTEXT
from .networks.defocus_estimator import enlarge_to, reduce_to
from .networks.model import RDDM
from .optics import radius_from_map, scale_map
from .orientation import orientation_of_sample, turned, turned_back
from .tiling import (
    Tile,
    add_tile,
    cut,
    cut_features,
    join_features,
    noise_tile,
    pad_to_multiple,
    plan_tiles,
    plan_windows,
    round_up,
)

MAX_TRAINED_RADIUS = 10.0
"""Radius of the circle of confusion, in pixels, to which `auto` reduces larger ones. Chosen, not a bound of training:
that rendered up to 12, at times enlarged to 21.6, most of 2 to 8."""
MIN_AUTO_SIZE = 1024
"""working_size="auto" never reduces the long side below this."""
PREVIEW_SIZE = 512
MERGED_ROWS = 256
"""An enlarged change is merged in strips of so many rows."""


@dataclass(frozen=True)
class DeblurSettings:
    """Settings of `deblur`. Raises ValueError for values out of range.

    Attributes:
        steps: sampling steps, 0 for the checkpoint's recommendation.
        seed: noise seed; item b of a batch uses seed + b. Or one seed per item.
        strength: share of the change that is applied, >= 0.
        samples: number of residuals drawn per picture (`sample_residual`).
        eta: 0 (DDIM, the paper's choice) to 1 (DDPM's posterior).
        tile: longest side of a tile in pixels, None for the whole picture at once, "auto" by area and `memory`.
        memory: bytes that `tile="auto"` may use for one picture, its results and the networks' work; None: no limit
            but that of a tile of `memory.AUTO_TILE`. The other pictures of a batch, and their results, come on top.
        working_size: long side in pixels at which the networks run; their enlarged change is added to the
            picture. "full" for no reduction, "auto" to let the map decide (`choose_working_size`).
        same_working_size: the whole batch gets the smallest of the sizes that "auto" chooses, as the frames of a video
            should; otherwise each picture gets what it would get alone.
        map_order: "text": one map, from I_b. "two_pass": f gets a second one, from I_p (Figure 2).
    """

    steps: int = 0
    seed: int | tuple[int, ...] = 0
    strength: float = 1.0
    samples: int = 1
    eta: float = 0.0
    tile: int | Literal["auto"] | None = "auto"
    memory: int | None = None
    working_size: int | Literal["auto", "full"] = "auto"
    same_working_size: bool = False
    map_order: Literal["text", "two_pass"] = "text"

    def __post_init__(self) -> None:
        _check_sampling(self.steps, self.samples, self.eta)
        _check_strength(self.strength)
        if self.tile is not None and self.tile != "auto" and not _is_positive(self.tile):
            raise ValueError(f"tile must be a positive number of pixels, None or 'auto', not {self.tile!r}")
        if self.memory is not None and not _is_positive(self.memory):
            raise ValueError(f"memory must be a positive number of bytes or None, not {self.memory!r}")
        if self.working_size not in ("auto", "full") and not _is_positive(self.working_size):
            size = self.working_size
            raise ValueError(f"working_size must be a number of pixels > 0, 'auto' or 'full', not {size!r}")
        if self.map_order not in ("text", "two_pass"):
            raise ValueError(f"map_order must be 'text' or 'two_pass', not {self.map_order!r}")


@dataclass(frozen=True)
class DeblurResult:
    """What `deblur` returns, at the size of the input.

    Attributes:
        image: [B * N, 3, H, W] in 0..1; sample n of item b stands at b * N + n. [B, 3, H, W] if their mean was asked
            for.
        defocus_map: [B, 1, H, W], the map that was used; its radii count pixels of the estimator's working size.
        pre_deblurred: I_p [B, 3, H, W], not clamped; at a reduced working size the picture plus p's enlarged
            change. None if the stages were not kept.
        residual: [B, N, 3, H, W] in image units. None if the stages were not kept.
    """

    image: Tensor
    defocus_map: Tensor
    pre_deblurred: Tensor | None
    residual: Tensor | None


@torch.inference_mode()
def estimate_defocus_map(model: RDDM, image: Tensor, *, callbacks: Callbacks = Callbacks()) -> Tensor:
    """g: image [B, 3, H, W] -> defocus map [B, 1, H, W] in 0..1, 1 = out of focus."""
    check_picture(image, "image")
    maps, batch = image.new_empty(0), len(image)
    for b in range(batch):
        callbacks.check()
        # Reduced and enlarged where the picture lies: MPS has no antialiasing before torch 2.7, and no device but the
        # picture's need hold a map of its size.
        reduced = reduce_to(image[b : b + 1].float(), model.config.estimator.working_size)
        logits = model.estimator(reduced.to(_device(model)))
        _check_outcome(logits, model, "defocus map")
        estimated = torch.sigmoid(enlarge_to(logits.to(image.device), (image.shape[-2], image.shape[-1])))
        maps = _placed(estimated, maps, b, batch)
        callbacks.report(b + 1, batch)
    return maps


@torch.inference_mode()
def pre_deblur(
    model: RDDM,
    image: Tensor,
    defocus_map: Tensor,
    *,
    tile: int | None = None,
    callbacks: Callbacks = Callbacks(),
) -> Tensor:
    """p: image [B, 3, H, W] and defocus map [B or 1, 1, h, w] -> I_p [B, 3, H, W], not clamped.

    The map is resized to the image, and its radii grow with it (`map_scale`). `tile`: longest side of a tile in
    pixels, rounded up to a multiple of `model.stride`; None for the whole picture.
    """
    check_picture(image, "image")
    image, defocus_map = image.float(), _fit_map(defocus_map, image, "defocus_map")
    tiles = plan_tiles(image.shape[-2], image.shape[-1], tile, model.stride)
    scale = map_scale(model.config.estimator.working_size, *image.shape[-2:])
    result = torch.zeros_like(image)
    done, total = 0, len(image) * len(tiles)
    for b in range(len(image)):
        for area in tiles:
            callbacks.check()
            blurred = cut(image[b : b + 1], area).to(_device(model))
            area_map = scale_map(cut(defocus_map[b : b + 1], area), scale).to(_device(model))
            guess = model.pre_deblur(blurred, area_map)
            _check_outcome(guess, model, "first guess")
            add_tile(result[b : b + 1], guess, area)
            callbacks.report(done := done + 1, total)
    return result


@torch.inference_mode()
def encode_guidance(
    model: RDDM, pre_deblurred: Tensor, *, tile: int | None = None, callbacks: Callbacks = Callbacks()
) -> tuple[Tensor, ...]:
    """H(Backbone(I_p)) of Eq. 13: I_p [B, 3, H, W] -> features [B, C, h, w] per stage, on the model's device.

    The features cover I_p padded by replication to a multiple of `model.stride`. Large pictures are seen through
    windows with context of their own: a backbone looks further around than the tiles of f overlap, and a tile with
    features of its own would not agree with its neighbours. `tile`: the size of the tiles that must fit into memory,
    by which windows are made smaller too.
    """
    check_picture(pre_deblurred, "pre_deblurred", bounded=False)
    height, width = pre_deblurred.shape[-2:]
    windows = plan_windows(height, width, guidance_window(tile), GUIDANCE_CONTEXT, model.stride)

    def parts(item: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for window in windows:
            callbacks.check()
            yield model.guidance(cut(item, window).float().to(_device(model)))

    items = [join_features(parts(pre_deblurred[b : b + 1]), windows) for b in range(len(pre_deblurred))]
    return tuple(_stack(stage) for stage in zip(*items, strict=True))


@torch.inference_mode()
def sample_residual(
    model: RDDM,
    pre_deblurred: Tensor,
    defocus_map: Tensor,
    *,
    guidance: Sequence[Tensor] | None = None,
    seed: int | Sequence[int] = 0,
    samples: int = 1,
    steps: int = 0,
    eta: float = 0.0,
    schedule: Schedule = "uniform",
    noise: Tensor | None = None,
    tile: int | None = None,
    callbacks: Callbacks = Callbacks(),
) -> Tensor:
    """Algorithm 1, lines 3 to 8: draw N residuals I - I_p per picture.

    Sample 0 sees the picture as it is, those after it see it mirrored and turned (`orientation.py`), each with noise
    of its own: f weighs its noise so little that samples of one orientation hardly differ, and their mean is no better
    than one. Every further sample therefore costs the guidance and f's encoder as well.

    Args:
        pre_deblurred: I_p [B, 3, H, W].
        defocus_map: [B or 1, 1, h, w] in 0..1, resized to I_p; its radii grow with it, as in `pre_deblur`.
        guidance: from `encode_guidance` for the same I_p, for sample 0; None makes it here.
        seed: an int gives item b the seed `seed + b`; or one seed per item. Sample 0 is the same for every N.
        samples: N.
        steps: 1..T, 0 for the checkpoint's recommendation.
        eta: 0 (DDIM, the paper's choice) to 1 (DDPM's posterior).
        schedule: how the steps are spaced (`sampling_timesteps`).
        noise: x_T [B, N, 3, H, W], standard normal, instead of the seeded one; eta > 0 still uses seed. Like the
            residual it lies as the picture does, however a sample is turned.
        tile: longest side of a tile in pixels, rounded up to a multiple of `model.stride`; None for no tiles.

    Returns the residual [B, N, 3, H, W] in image units. Raises ValueError for inputs that do not fit.
    """
    check_picture(pre_deblurred, "pre_deblurred", bounded=False)
    _check_sampling(steps, samples, eta)
    timesteps = _timesteps(model, steps, schedule)
    pre_deblurred = pre_deblurred.float()
    defocus_map = _fit_map(defocus_map, pre_deblurred, "defocus_map")
    batch, _, height, width = pre_deblurred.shape
    shape = (batch, samples, 3, height, width)
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise must be [B, N, 3, H, W] = {list(shape)}, not {list(noise.shape)}")
    if guidance is not None:
        _check_guidance(model, guidance, pre_deblurred)
    seeds = _seeds(seed, batch)
    evaluations = len(plan_tiles(height, width, tile, model.stride)) * samples * len(timesteps)
    residual = pre_deblurred.new_empty(shape)
    for b in range(batch):
        watch = callbacks if b == 0 else replace(callbacks, preview=None)
        bands = _residual_bands(
            model,
            pre_deblurred[b : b + 1],
            defocus_map[b : b + 1],
            guidance=None if guidance is None else [stage[b : b + 1] for stage in guidance],
            seed=seeds[b],
            samples=samples,
            timesteps=timesteps,
            eta=eta,
            noise=None if noise is None else noise[b],
            tile=tile,
            callbacks=watch.part(b * evaluations, batch * evaluations),
        )
        for rows, band in bands:
            residual[b, :, :, rows] = band
    return residual


def _residual_bands(
    model: RDDM,
    guess: Tensor,
    defocus_map: Tensor,
    *,
    seed: int,
    samples: int,
    timesteps: Sequence[tuple[int, int]],
    eta: float,
    tile: int | None,
    callbacks: Callbacks,
    guidance: Sequence[Tensor] | None = None,
    noise: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """The work of `sample_residual` for one picture: yields rows and their residual [N, 3, h, W], from top to bottom.

    Rows are yielded as soon as they are final, and are not read again: whoever merges them at once may write the
    result over `guess`, and the whole residual need not be held.
    """
    height, width = guess.shape[-2:]
    alpha_bars = make_alpha_bars(model.config.diffusion).tolist()
    tiles = plan_tiles(height, width, tile, model.stride)
    padded = tiles[-1].rows.stop, tiles[-1].columns.stop
    scale = map_scale(model.config.estimator.working_size, height, width)
    turns = [orientation_of_sample(n) for n in range(samples)]
    seen = {k: _guidance_turned(model, guess, k, tile, callbacks) for k in set(turns) if k or guidance is None}
    if guidance is not None:
        seen[0] = tuple(guidance)
    preview = _Preview(callbacks.preview, guess) if callbacks.preview else None
    done, total = 0, len(tiles) * samples * len(timesteps)
    tile_rows = [list(row) for _, row in groupby(tiles, key=lambda area: area.rows)]
    # A row of tiles is final down to where the next one starts to read.
    ends = [row[0].rows.start - CONTEXT for row in tile_rows[1:]] + [height]
    top, unfinished = 0, guess.new_zeros(samples, 3, 0, width)
    for row, end in zip(tile_rows, ends, strict=True):
        band = guess.new_zeros(samples, 3, row[0].rows.last - top, width)
        band[:, :, : unfinished.shape[2]] = unfinished
        for area in row:
            surroundings = cut(guess, area, CONTEXT).to(_device(model))
            tile_map = scale_map(cut(defocus_map, area), scale).to(_device(model))
            for n, k in enumerate(turns):
                callbacks.check()
                # c = (I_p, map, H(Backbone(I_p))), Eq. 13: once per tile and sample, never per step.
                around = turned(surroundings, k)
                tile_guess = around[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
                semantic = tuple(turned(cut_features(x, area, *padded), k) for x in seen[k])
                condition = model.denoiser.encode_condition(tile_guess, turned(tile_map, k), semantic, around)
                del semantic
                noise_at = partial(noise_tile, area, model.stride, seed, n)
                x = noise_at(0)  # line 3: x_T
                if noise is not None:  # a padded border keeps the seeded noise
                    given = noise[n][area.outer]
                    x[..., : given.shape[-2], : given.shape[-1]] = given.to(x)
                x = turned(x.to(tile_guess.device), k)
                for i, (t, s) in enumerate(timesteps):  # line 4: from t to s
                    callbacks.check()
                    x_0 = model.denoiser(x, torch.full((1,), t, device=x.device), condition).float()
                    z = turned(noise_at(i + 1).to(x.device), k) if eta > 0 and s > 0 else None  # line 5
                    x = ddim_step(x, x_0, alpha_bars[t], alpha_bars[s], eta, z)  # line 6
                    callbacks.report(done := done + 1, total)
                    if preview is not None and n == 0:
                        preview.show(tile_guess + x_0 / model.residual_scale, area)
                _check_outcome(x, model, "residual")
                add_tile(band[n : n + 1], turned_back(x / model.residual_scale, k), area, top)
                del condition, around, tile_guess, x, x_0  # before the next sample's are made
            del surroundings, tile_map
        yield slice(top, end), band[:, :, : end - top]
        top, unfinished = end, band[:, :, end - top :].clone()
        del band  # of all rows


def _guidance_turned(model: RDDM, guess: Tensor, k: int, tile: int | None, callbacks: Callbacks) -> tuple[Tensor, ...]:
    """Guidance of I_p [1, 3, H, W] as it is seen in orientation k, laid as the picture lies."""
    whole = turned(pad_to_multiple(guess, model.stride), k) if k else guess
    return tuple(turned_back(stage, k) for stage in encode_guidance(model, whole, tile=tile, callbacks=callbacks))


@torch.inference_mode()
def merge_residual(
    original: Tensor,
    pre_deblurred: Tensor,
    residual: Tensor,
    *,
    strength: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Line 9 and Eq. 15: original + strength * mask * (I_p + residual - original), clamped to 0..1.

    original, pre_deblurred, residual [B, 3, H, W]; mask [B or 1, 1, h, w] in 0..1, resized to the picture.
    Where strength * mask is 0 the original comes back bit for bit.
    """
    check_picture(original, "original")
    for name, value in (("pre_deblurred", pre_deblurred), ("residual", residual)):
        check_picture(value, name, bounded=False)
        if value.shape != original.shape:
            raise ValueError(f"{name} is {list(value.shape)}, but the original is {list(original.shape)}")
    _check_strength(strength)
    original = original.float()
    weight = None if mask is None else _fit_map(mask, original, "mask")
    merged = torch.empty_like(original)
    for b in range(len(original)):  # a batch may be a whole film
        one = original[b]
        guess, change = pre_deblurred[b].to(one), residual[b].to(one)
        merged[b] = _apply(one, guess + change, strength, None if weight is None else weight[b])
    return merged


def _apply(original: Tensor, deblurred: Tensor, strength: float, mask: Tensor | None) -> Tensor:
    weight = strength * (original.new_ones(1) if mask is None else mask)
    return torch.where(weight == 0, original, (original + weight * (deblurred - original)).clamp(0, 1))


@torch.inference_mode()
def deblur(
    model: RDDM,
    image: Tensor,
    *,
    settings: DeblurSettings | None = None,
    defocus_map: Tensor | None = None,
    mask: Tensor | None = None,
    keep_stages: bool = True,
    mean: bool = False,
    callbacks: Callbacks = Callbacks(),
) -> DeblurResult:
    """Deblur pictures [B, 3, H, W] by the whole of Algorithm 1.

    A `defocus_map` [B or 1, 1, h, w] replaces every estimated one; `mask` [B or 1, 1, h, w] says where the
    result is applied. Without `keep_stages` the result holds neither I_p nor the residuals, and a large picture
    takes less than half the memory. With `mean` its image is the mean of the samples, which are not held.

    Raises ValueError for inputs that do not fit, more steps than the checkpoint's T, and where `settings.memory` is too
    little.
    """
    settings = settings or DeblurSettings()
    timesteps = _timesteps(model, settings.steps)  # too many are refused before any work
    check_picture(image, "image")
    image = image.float()
    batch, _, height, width = image.shape
    seeds = _seeds(settings.seed, batch)
    mask = None if mask is None else _fit_map(mask, image, "mask")
    evaluations = settings.samples * len(timesteps)
    second_map = defocus_map is None and settings.map_order == "two_pass"
    if defocus_map is None:
        # The number of tiles hangs on the maps; until they are known, as if no picture were reduced.
        tile = AUTO_TILE if settings.tile == "auto" else settings.tile
        count = len(plan_tiles(height, width, tile, model.stride))
        watch = callbacks.part(0, batch * (1 + count * (1 + evaluations) + second_map))
        maps, done = estimate_defocus_map(model, image, callbacks=watch), batch
    else:
        maps, done = _fit_map(defocus_map, image, "defocus_map"), 0

    sizes = [_working_size(settings.working_size, model, maps[b], height, width) for b in range(batch)]
    if settings.same_working_size:
        sizes = [min(sizes)] * batch
    tiles = [
        tile_size(
            settings.tile,
            *size,
            model.config,
            _memory_for(settings, size, (height, width), keep_stages, mean),
            settings.samples,
            keep_stages,
            mean and size == (height, width),  # at a reduced size every change is held
        )
        for size in sizes
    ]
    counts = [len(plan_tiles(*size, tile, model.stride)) for size, tile in zip(sizes, tiles, strict=True)]
    total = done + sum(count * (1 + evaluations) + second_map for count in counts)
    callbacks.report(done, total)

    images = guesses = residuals = image.new_empty(0)
    for b in range(batch):
        watch = callbacks if b == 0 else replace(callbacks, preview=None)
        original, where = image[b : b + 1], None if mask is None else mask[b : b + 1]
        small = _resize(original, sizes[b])
        shrunk = _map_shrinkage(model.config.estimator.working_size, sizes[b], (height, width))
        small_map = scale_map(_resize(maps[b : b + 1], sizes[b]), shrunk)
        guess = pre_deblur(model, small, small_map, tile=tiles[b], callbacks=watch.part(done, total))
        done += counts[b]
        if second_map:
            small_map = estimate_defocus_map(model, guess.clamp(0, 1), callbacks=watch.part(done, total))
            maps[b : b + 1] = _resize(scale_map(small_map, 1 / shrunk), (height, width))
            done += 1
        bands = _residual_bands(
            model,
            guess,
            small_map,
            seed=seeds[b],
            samples=settings.samples,
            timesteps=timesteps,
            eta=settings.eta,
            tile=tiles[b],
            callbacks=watch.part(done, total),
        )
        done += counts[b] * evaluations
        finished, kept, drawn = _merge_bands(original, small, guess, bands, settings, where, keep_stages, mean)
        images = _placed(finished, images, b, batch)
        if kept is not None and drawn is not None:
            guesses, residuals = _placed(kept, guesses, b, batch), _placed(drawn, residuals, b, batch)
    return DeblurResult(images, maps, guesses if keep_stages else None, residuals if keep_stages else None)


def _merge_bands(
    original: Tensor,
    small: Tensor,
    guess: Tensor,
    bands: Iterator[tuple[slice, Tensor]],
    settings: DeblurSettings,
    mask: Tensor | None,
    keep_stages: bool,
    mean: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Merge residuals as they come: (images [N, 3, H, W], I_p and residuals [1, N, 3, H, W] at the picture's size).

    `small` and `guess` are the picture and I_p at the working size. Only the change is enlarged: the original keeps
    its detail. With `mean` there is one image, the mean of all. `guess` and the residuals that come may be overwritten,
    `guess` only without `keep_stages`.
    """
    samples, size = settings.samples, (original.shape[-2], original.shape[-1])
    reduced = small.shape != original.shape
    drawn = guess.new_empty(1, samples, *guess.shape[1:]) if keep_stages else None
    results = 1 if mean and not reduced else samples
    # A single one may replace the guess that it was drawn for.
    finished = guess if results == 1 and not keep_stages else guess.new_empty(results, *guess.shape[1:])

    def merge(rows: slice, deblurred: Tensor) -> Tensor:
        where = None if mask is None else mask[:, :, rows]
        return _apply(original[:, :, rows], deblurred, settings.strength, where)

    for rows, band in bands:
        if drawn is not None:
            drawn[0, :, :, rows] = band
        for n in range(samples):
            deblurred = guess[:, :, rows] + band[n]
            band[n] = deblurred - small[:, :, rows] if reduced else merge(rows, deblurred)
        finished[:, :, rows] = band.mean(dim=0, keepdim=True) if results < samples else band
        del band, deblurred  # before the next is made

    def enlarged(changes: Tensor) -> Tensor:
        whole = _enlarge(changes, size)
        for top in range(0, size[0], MERGED_ROWS):
            rows = slice(top, top + MERGED_ROWS)
            for n in range(len(whole)):
                whole[n : n + 1, :, rows] = merge(rows, original[:, :, rows] + whole[n : n + 1, :, rows])
        return whole

    if reduced:
        first, *others = finished.split(1 if mean else samples)
        finished = enlarged(first)
        for changes in others:
            finished += enlarged(changes)
        if mean:
            finished /= samples
        if drawn is not None:
            guess, drawn = original + _enlarge(guess - small, size), _enlarge(drawn[0], size)[None]
    return finished, guess if keep_stages else None, drawn


def choose_working_size(defocus_map: Tensor, height: int, width: int, estimator_size: int) -> int | None:
    """The long side to which a picture of `height` x `width` should be reduced, or None for its full size.

    Reduces until the 90th percentile of the blur radii is one that the weights were trained for. The map
    [.., h, w] gives radii in pixels of the estimator's working size (`optics.map_from_radius`).
    """
    long_side = max(height, width)
    whole = defocus_map.reshape(1, 1, *defocus_map.shape[-2:]).float()
    cells = F.adaptive_avg_pool2d(whole.cpu(), 64)  # MPS pools only what the cells divide evenly
    radius = float(torch.quantile(radius_from_map(cells), 0.9)) * map_scale(estimator_size, height, width)
    if radius <= MAX_TRAINED_RADIUS:
        return None
    size = max(MIN_AUTO_SIZE, round(long_side * MAX_TRAINED_RADIUS / radius / 64) * 64)
    return size if size < 0.9 * long_side else None


def map_scale(estimator_size: int, height: int, width: int) -> float:
    """What the radii of a map are multiplied by for a picture of that size.

    A map's radii count pixels of a picture reduced to the estimator's working size; p and f learned with those of the
    picture that they see.
    """
    return max(1.0, max(height, width) / estimator_size)


def _map_shrinkage(estimator_size: int, size: tuple[int, int], full: tuple[int, int]) -> float:
    """What the radii of a picture's map are multiplied by for a copy of `size`, which the estimator would see whole."""
    return min(1.0, max(size) / min(max(full), estimator_size))


class _Preview:
    """A small copy of I_p into which the current estimates of the tiles are pasted."""

    def __init__(self, callback: Callable[[Tensor], None], pre_deblurred: Tensor) -> None:
        height, width = pre_deblurred.shape[-2:]
        self.callback = callback
        self.scale = min(1.0, PREVIEW_SIZE / max(height, width))
        self.canvas = _resize(pre_deblurred.clamp(0, 1), _scaled((height, width), self.scale)).clone()

    def show(self, estimate: Tensor, tile: Tile) -> None:
        top, bottom = (round(y * self.scale) for y in (tile.rows.first, tile.rows.last))
        left, right = (round(x * self.scale) for x in (tile.columns.first, tile.columns.last))
        area = self.canvas[..., top : max(bottom, top + 1), left : max(right, left + 1)]
        # Where the canvas lies: the model's device may lack antialiasing, as MPS does before torch 2.7.
        shown = estimate[tile.kept].clamp(0, 1).to(area.device)
        area.copy_(_resize(shown, (area.shape[-2], area.shape[-1])))
        self.callback(self.canvas.clone())


def _memory_for(
    settings: DeblurSettings, size: tuple[int, int], full: tuple[int, int], keep_stages: bool, mean: bool
) -> int | None:
    """What the budget leaves for a picture of that working size."""
    if settings.memory is None or size == full:
        return settings.memory
    added = 12 * full[0] * full[1] if mean and settings.samples > 1 else 0  # an enlarged sample, beside the sum
    return settings.memory - held_bytes(*full, settings.samples, keep_stages, mean) - added


def _placed(part: Tensor, whole: Tensor, b: int, batch: int) -> Tensor:
    """`whole` with what belongs to item `b` at its place; item 0 makes it, and of a batch of one it is the part itself.

    Unlike a list that is joined at the end, this holds a long batch only once.
    """
    if batch == 1:
        return part
    count = len(part)
    if b == 0:
        whole = part.new_empty(batch * count, *part.shape[1:])
    whole[b * count : (b + 1) * count] = part
    return whole


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Along the batch; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    if not isinstance(seed, Sequence):
        return [int(seed) + b for b in range(batch)]
    if len(seed) != batch:
        raise ValueError(f"{len(seed)} seeds for a batch of {batch}: give one per picture, or a single number")
    return [int(s) for s in seed]


def _working_size(
    choice: int | Literal["auto", "full"], model: RDDM, defocus_map: Tensor, height: int, width: int
) -> tuple[int, int]:
    size: int | None
    if choice == "full":
        size = None
    elif choice == "auto":
        size = choose_working_size(defocus_map, height, width, model.config.estimator.working_size)
    else:
        size = choice
    return (height, width) if size is None else _scaled((height, width), min(1.0, size / max(height, width)))


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing; clamped to 0..1, which rounding may leave."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _enlarge(change: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(change, size=size, mode="bicubic", align_corners=False)


def _timesteps(model: RDDM, steps: int, schedule: Schedule = "uniform") -> list[tuple[int, int]]:
    """Of the checkpoint's schedule; 0 steps for its recommendation. Raises ValueError for more than it has."""
    return sampling_timesteps(model.config.diffusion.timesteps, steps or model.recommended_steps, schedule)


def _device(model: RDDM) -> torch.device:
    return next(model.denoiser.parameters()).device


def _fit_map(x: Tensor, image: Tensor, name: str) -> Tensor:
    """A map or mask, checked and resized to the picture: [B, 1, H, W] float32 on the picture's device."""
    check_map(x, len(image), name)
    fitted = _resize(x.to(image.device, torch.float32), (image.shape[-2], image.shape[-1]))
    return fitted.expand(len(image), -1, -1, -1)


def _check_guidance(model: RDDM, guidance: Sequence[Tensor], pre_deblurred: Tensor) -> None:
    """Features of another picture's size would be stretched over this one."""
    batch, _, *size = pre_deblurred.shape
    height, width = (round_up(length, model.stride) for length in size)
    wanted = [(batch, height // stride, width // stride) for stride in model.guidance.strides]
    given = [(stage.shape[0], *stage.shape[-2:]) for stage in guidance]
    if given != wanted:
        raise ValueError(
            "guidance must be that of encode_guidance for the same pre_deblurred: "
            f"B, h and w of its stages must be {wanted}, not {given}"
        )


def _check_outcome(x: Tensor, model: RDDM, what: str) -> None:
    if not bool(torch.isfinite(x).all()):
        dtype = next(model.denoiser.parameters()).dtype
        cure = "load the model as fp32"
        if dtype == torch.float32:
            cure = "take other weights, these are damaged"
            if what == "residual":  # the one made of a picture that has no bounds
                cure += ", unless pre_deblurred was far from 0..1"
        raise ValueError(f"the networks gave a {what} with NaN or infinite values in {dtype}: {cure}")


def _check_sampling(steps: int, samples: int, eta: float) -> None:
    if steps < 0:
        raise ValueError(f"steps must be 0 (recommended) or more, not {steps}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0..1, not {eta}")


def _check_strength(strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be a finite number >= 0, not {strength}")


def _is_positive(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0
