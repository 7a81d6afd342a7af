"""The training loop: one process, or many under `accelerate launch`, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..checkpoint import default_checkpoint_path, load_checkpoint, read_info, save_checkpoint
from ..config import config_from_dict, config_to_dict, override, preset
from ..data.datasets import MANIFEST, dataset_masks, dataset_pairs
from ..data.sources import DepthPhoto, PhotoPair, check_sizes, depth_photos, focal_stack_depths, read_rgb, sharp_photos
from ..data.stream import Sample, Sources, TrainingStream
from ..data.synthetic import RenderedPack
from ..diffusion import make_alpha_bars
from ..files import atomic_target, lock, write_text
from ..networks.guidance import load_backbone_weights
from ..networks.model import RDDM
from ..optics import scale_map
from ..pipeline import estimate_defocus_map, map_scale
from .logs import RunLog
from .losses import (
    estimate_training_map,
    estimator_loss,
    joint_loss,
    pre_deblur_loss,
    sample_timesteps,
    sample_weights,
)
from .optimizers import make_optimizers
from .recipe import Recipe, differences, load_recipe, runs_folder
from .validate import open_validation, to_tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_BAD_STEPS = 20
MAY_CHANGE = ("steps", "workers", "checkpoint_minutes", "validate_minutes", "licence")
"""Fields of a recipe that a run may go on with other values of."""
START = "start.sha256"
"""File of a run: `start_digest` of its recipe when it began."""
ADDED_LAYERS = ("denoiser.deconvolution_intro", "denoiser.overlap")
WAKING = 0.05
"""beta and gamma of blocks that join trained networks. At 0 nothing inside them gets a gradient, and they sleep on."""
MAP_SCALES = (0.5, 0.6, 0.7, 0.85, 1.0)


class Objective(nn.Module):
    """The loss of one batch as a module, so that a data-parallel wrapper sees a forward pass."""

    def __init__(self, model: RDDM, recipe: Recipe, processes: int = 1) -> None:
        super().__init__()
        self.model, self.recipe, self.processes = model, recipe, processes
        self.alpha_bars = make_alpha_bars(model.config.diffusion)  # no buffer: float64, which not every device has

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        blurred = batch["blurred"].contiguous(memory_format=torch.channels_last)
        if self.recipe.stage == "estimator":
            return {"loss": estimator_loss(self.model.estimator(blurred), batch["map"])}
        recipe, sharp = self.recipe, batch["sharp"]
        weights = sample_weights(blurred, sharp, recipe.balance_floor) if recipe.balance_floor else None
        if recipe.stage == "joint":
            t, noise = self._noise(batch)
            maps, bars = self._maps(batch, blurred), self.alpha_bars
            losses = joint_loss(self.model, blurred, sharp, maps, t, noise, bars, weights)
            loss = losses["residual"] + recipe.anchor * losses["anchor"]
        else:
            regression = recipe.stage == "regression"
            defocus_map = torch.zeros_like(blurred[:, :1]) if regression else self._maps(batch, blurred)
            losses = pre_deblur_loss(self.model, blurred, sharp, defocus_map, weights)
            loss = losses["residual"]
        return {"loss": loss + recipe.spectrum * losses["spectrum"], **losses}

    def _maps(self, batch: Sample, blurred: Tensor) -> Tensor:
        """The maps of the batch; the estimator's where the true one is not known."""
        defocus_map, unknown = true_map(batch, self.recipe).clone(), batch["map_known"][:, 0] == 0
        if bool(unknown.any()):
            # One scale per step, however many processes share it.
            step = int(batch["index"][0]) // (self.recipe.batch * self.processes)
            scale = MAP_SCALES[step % len(MAP_SCALES)]
            defocus_map[unknown] = estimate_training_map(self.model, blurred[unknown], scale)
        return defocus_map

    def _noise(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """t and noise per sample index, drawn on the CPU: independent of batching and of the number of processes."""
        steps, noises = [], []
        for index in batch["index"].tolist():
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + index)
            steps.append(sample_timesteps(1, self.model.config.diffusion.timesteps, self.recipe.noise_share, generator))
            noises.append(torch.randn(batch["sharp"].shape[1:], generator=generator))
        device = batch["sharp"].device
        return torch.cat(steps).to(device), torch.stack(noises).to(device)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, a plateau, then a cosine over the last `decay_share` of the run."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    decay_steps = max(1, round(recipe.steps * recipe.decay_share))
    progress = min(1.0, max(0.0, (step - (recipe.steps - decay_steps)) / decay_steps))
    low = recipe.final_learning_rate
    return warm * (low + (recipe.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * progress)))


class MovingAverage:
    """Exponential moving average of the trainable parameters, with a shorter memory during the first steps."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.values = [p.detach().clone() for p in parameters]

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the averages."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)


def agreed(accelerator: Accelerator, *decisions: bool) -> list[bool]:
    """The main process's decisions, for all of them: a process that stopped by its own clock would let others wait."""
    if accelerator.num_processes == 1:
        return list(decisions)
    from accelerate.utils import broadcast

    votes = torch.tensor(decisions, dtype=torch.int32, device=accelerator.device)
    return [bool(vote) for vote in broadcast(votes).tolist()]


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse to train in a folder whose run would be lost, or would go on as another one.

    Raises FileExistsError where there is a run and `resume` is not asked for, or one without the state.pt that going on
    needs; ValueError where the run was begun by another recipe, but for what MAY_CHANGE.
    """
    state, described = folder / "state.pt", folder / "recipe.json"
    weights = [path for path in (folder / "best.safetensors", folder / "model.safetensors") if path.exists()]
    if weights and not state.exists():
        raise FileExistsError(
            f"{folder} holds {weights[0].name} of a run, but no state.pt to go on from: rename the recipe, or remove "
            "the folder to begin anew"
        )
    if (state.exists() or described.exists()) and not resume:
        raise FileExistsError(f"{folder} holds a run already: pass --resume to go on with it, or rename the recipe")
    if state.exists() and described.exists():
        changed = [field for field in differences(load_recipe(described), recipe) if field not in MAY_CHANGE]
        if changed:
            raise ValueError(
                f"{folder} holds a run of another recipe (it differs in {', '.join(changed)}): rename this one, or "
                f"take the change back; only {', '.join(MAY_CHANGE)} may change"
            )


def run(config_path: Path, minutes: float | None = None, resume: bool = False) -> Path:
    """Train the recipe at `config_path`; returns the exported checkpoint.

    Everything lands in runs_folder() / recipe.name: state.pt (to resume), model.safetensors (averaged weights of the
    last validation) and best.safetensors (of the best one on real dev pairs), train.csv, validation.csv, sheets/.
    Raises FileExistsError and ValueError where the folder holds a run that must not be lost or changed, as
    `check_folder` says, ValueError where it was left by another number of processes or is not the same one for all of
    them, ValueError and OSError where the data is of no use (`open_validation`, `open_sources`), FileExistsError where
    another process trains the recipe.
    """
    from accelerate import Accelerator

    recipe = load_recipe(Path(config_path))
    accelerator = Accelerator(mixed_precision=precision_for(recipe))
    if not accelerator.is_main_process:
        return _run(recipe, accelerator, minutes, resume)
    with lock(runs_folder() / f".{recipe.name}.lock") as free:
        if not free:
            raise FileExistsError(
                f"{runs_folder() / recipe.name} is being trained by another process: wait for its end, or end it"
            )
        return _run(recipe, accelerator, minutes, resume)


def _run(recipe: Recipe, accelerator: Accelerator, minutes: float | None, resume: bool) -> Path:
    """`run` as one of its processes."""
    folder = runs_folder() / recipe.name
    state_path = folder / "state.pt"
    check_folder(folder, recipe, resume)
    validation = open_validation(recipe)
    state = load_state(state_path, accelerator.num_processes) if resume and state_path.exists() else None
    model = build_model(recipe) if state is None else restore_model(state, recipe)
    check_crop(recipe, model.stride)
    parameters = select_trainable(model, recipe)
    objective = Objective(model, recipe, accelerator.num_processes).to(memory_format=torch.channels_last)
    # Placed on its device first: averages and restored moments follow the parameters.
    wrapped, *optimizers = accelerator.prepare(objective, *make_optimizers(model, parameters, recipe))
    average = MovingAverage(parameters, recipe.ema)
    step, seconds, cpu_seconds, best = 0, 0.0, 0.0, -math.inf
    if state is not None:
        # A run of an earlier version had one.
        stored = state["optimizers"] if "optimizers" in state else [state["optimizer"]]
        for optimizer, restored in zip(optimizers, stored, strict=True):
            optimizer.load_state_dict(restored)
        average.values = [value.to(p.device) for value, p in zip(state["average"], parameters, strict=True)]
        step, seconds = state["step"], state["seconds"]
        cpu_seconds = state.get("cpu_seconds", math.nan)  # a run of an earlier version did not count them
        # The weights may be newer than the state: after them comes the state, and between the two a kill.
        best = max(state["best"], stored_score(folder / "best.safetensors"))
    check_common_step(accelerator, step)
    sources = open_sources(recipe)
    if recipe.stage in ("joint", "pre_deblur") and recipe.mixture.real > 0:
        sources.pair_maps.update(estimate_pair_maps(model, sources.pairs))
    stream = TrainingStream(
        sources, recipe.mixture, recipe.batch, step, accelerator.process_index, accelerator.num_processes
    )
    loader = DataLoader(
        stream, batch_size=None, num_workers=recipe.workers, prefetch_factor=6 if recipe.workers else None
    )
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder, accelerator.is_main_process, step)
    if state is None:
        write_text(folder / "recipe.json", json.dumps(asdict(recipe), indent=1))
        write_text(folder / START, start_digest(recipe))

    def save() -> None:
        if accelerator.is_main_process:
            processes = accelerator.num_processes
            save_state(state_path, model, optimizers, average, step, seconds, cpu_seconds, best, processes)

    def validate() -> float:
        with average.applied(), accelerator.autocast():
            model.eval()
            sheet = folder / "sheets" / f"{step:07d}.jpg" if accelerator.is_main_process else None
            score, figures = validation(model, sheet)
            provenance = describe(recipe, step, hours(seconds, cpu_seconds), score, figures)
            if accelerator.is_main_process:
                terms = licence_line(recipe)
                save_checkpoint(folder / "model.safetensors", model, provenance=provenance, licence=terms)
                if score > best:
                    save_checkpoint(folder / "best.safetensors", model, provenance=provenance, licence=terms)
            set_training_mode(model, recipe)
        log.validation({"step": step, **hours(seconds, cpu_seconds), "score": score, **figures})
        return max(best, score)

    model.recommended_steps = recipe.recommended_steps
    set_training_mode(model, recipe)
    started = last_save = last_validation = time.monotonic()
    bad = 0
    for batch in loader:
        over = minutes is not None and time.monotonic() - started > minutes * 60
        if step >= recipe.steps or (minutes is not None and agreed(accelerator, over)[0]):
            break
        tick, cpu_tick = time.monotonic(), time.process_time()
        batch = {key: value.to(accelerator.device) for key, value in batch.items()}
        if recipe.stage == "joint" and step in recipe.residual_scale_steps:
            model.residual_scale = measure_residual_scale(model, sources, recipe)
            log.line(f"step {step}: residual_scale {model.residual_scale:.3f}")
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group.get("share", 1.0) * learning_rate(recipe, step)
        with accelerator.autocast():
            losses = wrapped(batch)
        # Always backwards: a process that left it out would let the others wait for its gradients.
        accelerator.backward(losses["loss"])
        norm = float(accelerator.clip_grad_norm_(parameters, recipe.clip_norm))
        if math.isfinite(norm) and bool(torch.isfinite(losses["loss"])):
            for optimizer in optimizers:
                optimizer.step()
            average.update(step)
            bad = 0
        else:
            bad += 1
            log.line(f"step {step}: loss or gradient is not finite, step skipped")
            if bad > MAX_BAD_STEPS:
                raise FloatingPointError(f"{bad} steps in a row without a finite loss: lower the learning rate")
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.monotonic() - tick
        cpu_seconds += time.process_time() - cpu_tick
        shown = {key: float(value.detach()) for key, value in losses.items()}
        log.step(step, shown, norm, learning_rate(recipe, step), hours(seconds, cpu_seconds))
        now = time.monotonic()
        due = (now - last_validation > recipe.validate_minutes * 60, now - last_save > recipe.checkpoint_minutes * 60)
        to_validate, to_save = agreed(accelerator, *due)
        if to_validate:
            best = validate()
            last_validation = time.monotonic()
        # Always after a validation: without its score, a run that goes on would replace the best weights by worse ones.
        if to_validate or to_save:
            save()
            last_save = time.monotonic()
    best = validate()
    save()
    return folder / "best.safetensors"


def precision_for(recipe: Recipe) -> str:
    """The recipe's precision, `auto` resolved for this machine."""
    if recipe.precision != "auto":
        return recipe.precision
    if torch.cuda.is_available():  # NVIDIA's before Ampere imitate it
        fast = torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    else:
        # A CPU without instructions for bf16 imitates it, ten times as slowly as fp32. Older torch cannot tell: fp32.
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return "bf16" if fast else "no"


def build_model(recipe: Recipe) -> RDDM:
    """The recipe's networks: from `start_from`, or fresh with the backbone's own weights."""
    if recipe.start_from:
        start = load_checkpoint(find_checkpoint(recipe.start_from))
        if not recipe.rebuild:
            silence(start, recipe)
            return start
    torch.manual_seed(recipe.seed)
    try:
        model = RDDM(override(preset(recipe.preset), recipe.network))
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"the recipe's network cannot be built ({error}): compare its lists with the preset's"
        ) from error
    if recipe.start_from:
        transfer_weights(start, model, recipe.parts)
    if recipe.backbone_weights:
        load_backbone_weights(model.guidance, recipe.backbone_weights)
    silence(model, recipe)
    return model


def load_state(path: Path, processes: int) -> dict[str, Any]:
    """What `save_state` wrote. Raises ValueError where that was a run of another number of processes."""
    # Our own file, but still read without executing anything from it.
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    before = state.get("processes", processes)  # a run of an earlier version did not store it
    if before != processes:
        raise ValueError(
            f"{path} is of a run in {before} processes, this one has {processes} and would see other samples: go on "
            f"with --num_processes {before}, or rename the recipe"
        )
    return state


def restore_model(state: Mapping[str, Any], recipe: Recipe) -> RDDM:
    """The model of a run that goes on, from its state alone: what `start_from` names may be another one by now."""
    # A run of an earlier version did not store its configuration.
    known = state.get("config")
    model = build_model(recipe) if known is None else RDDM(config_from_dict(known, complete=False))
    model.load_state_dict(state["model"])
    model.residual_scale = state["residual_scale"]
    return model


def check_common_step(accelerator: Accelerator, step: int) -> None:
    """Raises ValueError where the processes would go on from different steps, as those of several machines do that do
    not see one folder."""
    if accelerator.num_processes == 1:
        return
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes would go on from the steps {', '.join(map(str, steps))}: let RDDM_RUNS be a folder that "
            "all machines share"
        )


def stored_score(path: Path) -> float:
    """The score that the weights at `path` had; -inf where there are none, or those of an earlier version."""
    return float(read_info(path).provenance.get("score", -math.inf)) if path.is_file() else -math.inf


def start_digest(recipe: Recipe) -> str:
    """SHA-256 of the file that `start_from` names now; "" where it names none, or one that is gone."""
    path = find_checkpoint(recipe.start_from)
    return hashlib.sha256(path.read_bytes()).hexdigest() if recipe.start_from and path.is_file() else ""


def find_checkpoint(name: str) -> Path:
    """What `start_from` names: the shipped weights, a file, or the best checkpoint of another run."""
    if name == "shipped":
        return default_checkpoint_path()
    path = Path(name)
    return path if path.is_file() else runs_folder() / name / "best.safetensors"


def silence(model: RDDM, recipe: Recipe) -> None:
    """Set the last layers of the parts in `recipe.silent` so that they have no effect, in checkpoints as well.

    Raises ValueError for `state` where x_t enters f's encoder, whose first layer it shares with the condition.
    """
    layers: list[Any]
    with torch.no_grad():
        for part in recipe.silent:
            if part == "estimator":
                layers = [model.estimator.segformer.decode_head.classifier]
            elif part == "pre_deblur":
                layers = [model.pre_deblur.outro]
            elif part == "guidance":
                layers = [projection[2] for projection in cast(Any, model.guidance.projections)]
            elif model.config.denoiser.state_entry == "decoder":
                layers = list(model.denoiser.state_gates)
            else:
                raise ValueError("the state can be silenced only in networks with state_entry 'decoder'")
            for layer in layers:
                layer.weight.zero_()
                # The estimator's logit passes a sigmoid.
                layer.bias.fill_(-30.0 if part == "estimator" else 0.0)


def transfer_weights(source: RDDM, target: RDDM, parts: Sequence[str] = ()) -> list[str]:
    """Copy every tensor of `source` that fits into `target`, or those of `parts` alone; returns the names of those of
    `target` left as built.

    Layers that only `target` has and that add to the sum of others start at zero, so that it begins as `source` ends;
    blocks that only `target` has change little at first.
    """
    given, wanted = source.state_dict(), target.state_dict()
    taken = tuple(f"{part}." for part in parts) or ("",)
    fitting = {
        name: value
        for name, value in given.items()
        if name.startswith(taken) and name in wanted and value.shape == wanted[name].shape
    }
    target.load_state_dict(fitting, strict=False)
    left = sorted(set(wanted) - set(fitting))
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name not in left or not name.startswith(taken):
                continue
            if name.startswith(ADDED_LAYERS):
                parameter.zero_()
            elif name.endswith((".beta", ".gamma")):
                parameter.fill_(WAKING)
    target.residual_scale, target.recommended_steps = source.residual_scale, source.recommended_steps
    return left


def estimate_pair_maps(model: RDDM, pairs: list[PhotoPair]) -> dict[Path, np.ndarray]:
    """The estimator's map (uint8 [1, h, w], no larger than the estimator sees) of every blurred photograph of `pairs`,
    with the radii that p and f get in use."""
    model.eval()
    maps = {}
    for pair in pairs:
        blurred = to_tensor(read_rgb(pair.blurred))
        factor = map_scale(model.config.estimator.working_size, blurred.shape[-2], blurred.shape[-1])
        estimate = scale_map(estimate_defocus_map(model, blurred), factor)
        if factor > 1:  # enlarged for the picture: a larger collection's would not fit into memory
            size = [max(1, round(n / factor)) for n in estimate.shape[-2:]]
            estimate = F.interpolate(estimate, size=size, mode="area")
        maps[pair.blurred] = (estimate[0] * 255).round().to("cpu", torch.uint8).numpy()
    return maps


def select_trainable(model: RDDM, recipe: Recipe) -> list[nn.Parameter]:
    """Freeze what the stage does not train; returns the trainable parameters."""
    model.requires_grad_(False)
    parts: list[nn.Module] = [model.denoiser]
    if "guidance" not in recipe.silent:
        parts.append(model.guidance.projections)
    if not recipe.freeze_pre_deblur and "pre_deblur" not in recipe.silent:
        parts.append(model.pre_deblur)
    if recipe.stage == "estimator":
        parts = [model.estimator]
    elif recipe.stage in ("pre_deblur", "regression"):
        parts = [model.pre_deblur]
    for part in parts:
        part.requires_grad_(True)
    if "state" in recipe.silent:
        for part in (model.denoiser.state_intro, model.denoiser.state_downs, model.denoiser.state_gates):
            part.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def set_training_mode(model: RDDM, recipe: Recipe) -> None:
    """Training mode, but for an estimator that is not trained: its BatchNorm statistics must not drift."""
    model.train()
    model.estimator.train(recipe.stage == "estimator")


def open_sources(recipe: Recipe) -> Sources:
    """The material of the mixture, from the recipe's data folders; `split=train` alone.

    Raises ValueError and OSError as `check_material` does, and where a folder is not what the recipe says.
    """
    data, root = recipe.data, recipe.data.resolved_root()
    segments = root / data.segments if data.segments else None
    sharp = sharp_photos(root / data.sharp, "train", segments) if data.sharp else []
    depths: list[DepthPhoto] = []
    if data.depth:
        depths = depth_photos(root / data.depth)
        if data.pairs and data.layout == MANIFEST:  # which alone says what a focal stack is
            depths += focal_stack_depths(root / data.pairs, "train")
    pairs = dataset_pairs(root / data.pairs, "train", data.layout) if data.pairs else []
    folder = runs_folder() / data.pack
    if data.leave_out:
        kept = leave_out(pairs, data.leave_out)
        # The sharp photographs of the collection must not come back as scenes with depth.
        gone = {pair.sharp for pair in pairs} - {pair.sharp for pair in kept}
        if any(depth.image in gone for depth in depths):
            depths = [depth for depth in depths if depth.image not in gone]
            folder = runs_folder() / f"{data.pack}-without-{data.leave_out}"
        pairs = kept
    pack = RenderedPack(folder, sharp, data.render, data.pack_count, depths) if sharp else None
    sources = Sources(
        pack=pack,
        pairs=pairs,
        sharp=[p for p in sharp if p.texture > 0.5],
        masked=dataset_masks(root / data.masks, "train") if data.masks else [],
    )
    check_material(recipe, sources)
    return sources


def check_crop(recipe: Recipe, stride: int) -> None:
    """ValueError for crops that p and f cannot take, or that are larger than the rendered samples they are cut from."""
    crop, size = recipe.mixture.crop, recipe.data.render.size
    if recipe.stage != "estimator" and crop % stride:
        raise ValueError(f"mixture.crop must be a multiple of {stride} pixels for these networks, not {crop}")
    if recipe.mixture.synthetic > 0 and recipe.mixture.enlarge <= 1 and crop > size:
        raise ValueError(
            f"mixture.crop is {crop}, but data.render.size {size}: render samples at least as large as the crops, or "
            "let mixture.enlarge be above 1"
        )


def check_material(recipe: Recipe, sources: Sources) -> None:
    """What a loader worker would stumble over, told before the training.

    Raises ValueError for a share of the mixture that has nothing to be drawn from or nothing that the stage could learn
    by, and for partners of unequal size; OSError for one that cannot be read.
    """
    mixture = recipe.mixture
    if recipe.stage == "estimator" and mixture.real > 0:
        raise ValueError(
            f"mixture.real is {mixture.real}, but the estimator learns from true maps, and real pairs have none: "
            "set it to 0"
        )
    if recipe.stage != "estimator" and mixture.masks > 0:
        raise ValueError(
            f"mixture.masks is {mixture.masks}, but masked photographs have no sharp partner for the stage "
            f"{recipe.stage!r} to learn from: set it to 0"
        )
    for share, folder, found in (
        ("synthetic", "sharp", sources.pack is not None),
        ("real", "pairs", bool(sources.pairs)),
        ("identity", "sharp", bool(sources.sharp)),
        ("masks", "masks", bool(sources.masked)),
    ):
        if (value := getattr(mixture, share)) > 0 and not found:
            raise ValueError(
                f"mixture.{share} is {value}, but data.{folder} ({getattr(recipe.data, folder)!r}) has nothing of "
                "split=train for it: set the share to 0, or name a folder that has"
            )
    check_sizes((pair.blurred, pair.sharp) for pair in sources.pairs if mixture.real)
    check_sizes((photo.image, photo.mask) for photo in sources.masked if mixture.masks)


def leave_out(pairs: list[PhotoPair], collection: str) -> list[PhotoPair]:
    """The pairs of other collections; ValueError where there are none of `collection`."""
    collections = [pair.scene.split("/")[0] for pair in pairs]
    if collection not in collections:
        raise ValueError(f"no training pairs of {collection!r} to leave out; there are {sorted(set(collections))}")
    return [pair for pair, name in zip(pairs, collections, strict=True) if name != collection]


def true_map(batch: Sample, recipe: Recipe) -> Tensor:
    """The maps of a batch [B, 1, S, S]; of zero where the recipe silences the estimator, as they then are in use."""
    return torch.zeros_like(batch["map"]) if "estimator" in recipe.silent else batch["map"]


def measure_residual_scale(model: RDDM, sources: Sources, recipe: Recipe, samples: int = 96) -> float:
    """1 / standard deviation of I - I_p over samples of the mixture, with the true map where there is one."""
    stream = iter(TrainingStream(sources, replace(recipe.mixture, known_map=1.0), 8, start_step=10**6))
    squares, device = [], next(model.parameters()).device
    with torch.no_grad():
        for _ in range(samples // 8):
            batch = {key: value.to(device) for key, value in next(stream).items()}
            pre_deblurred = model.pre_deblur(batch["blurred"], true_map(batch, recipe))
            squares.append((batch["sharp"] - pre_deblurred).square().mean())
    return float(1 / torch.stack(squares).mean().sqrt())


def hours(seconds: float, cpu_seconds: float) -> dict[str, float]:
    """Time of the training steps alone. `cpu_hours` are those of all threads of this process: on a busy machine they
    tell more of the work done. Loader workers, which are processes of their own, count in neither."""
    return {"hours": round(seconds / 3600, 5), "cpu_hours": round(cpu_seconds / 3600, 5)}


def licence_line(recipe: Recipe) -> str:
    """The terms of the weights as far as the recipe states them, one line."""
    begun = f"; begun with the weights of {recipe.start_from}, whose terms hold on" if recipe.start_from else ""
    return recipe.licence or f"not stated by the recipe{begun}"


def describe(
    recipe: Recipe, step: int, spent: dict[str, float], score: float, figures: dict[str, float]
) -> dict[str, Any]:
    """Provenance stored in a checkpoint; `spent` from `hours`. Of paths the names alone: it may be published."""
    return {
        "recipe": _without_folders(asdict(recipe)),
        "step": step,
        **spent,
        "score": score,
        "dev": figures,
        "torch": torch.__version__,
    }


def _without_folders(value: Any) -> Any:
    """The value with every absolute path in it, at whatever depth, cut to its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def save_state(
    path: Path,
    model: RDDM,
    optimizers: Sequence[Any],
    average: MovingAverage,
    step: int,
    seconds: float,
    cpu_seconds: float,
    best: float,
    processes: int,
) -> None:
    """Write what resuming needs."""
    state = {
        "config": config_to_dict(model.config),
        "model": model.state_dict(),
        "residual_scale": model.residual_scale,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "average": average.values,
        "step": step,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "best": best,
        "processes": processes,
    }
    with atomic_target(path) as partial:
        torch.save(state, partial)
