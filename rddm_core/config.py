"""Configurations of the networks and of the diffusion, the presets `lite` and `paper`, and `nafnet`, a yardstick."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mixer = Literal["depthwise", "deformable"]

MIN_ATTENTION_CELL = 64
"""Width of the zone in which tiles blend (`tiling.FEATHER`): tiles are padded to a multiple of the cell that holds it,
their guidance to any multiple of the cell."""


@dataclass(frozen=True)
class EstimatorConfig:
    """Defocus-map estimator: a SegFormer (Xie et al. 2021) with one logit; MiT-B0 with a slimmer head."""

    hidden_sizes: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    decoder_width: int = 128
    working_size: int = 512
    """Long side, in pixels, to which a photograph is reduced before its map is estimated."""


@dataclass(frozen=True)
class GuidanceConfig:
    """Semantic guidance: a frozen timm backbone and two trained 1x1 convolutions per stage (Eq. 13)."""

    backbone: Literal["efficientnet_lite0", "resnet50"] = "efficientnet_lite0"
    stages: tuple[int, ...] = (1, 2, 3)
    width: int = 48
    reduction: int = 1
    """The backbone sees I_p reduced by this factor: semantics need no pixel detail."""


@dataclass(frozen=True)
class PreDeblurConfig:
    """Pre-deblur module p: a light U-Net of pre-deblur blocks at 1/unshuffle of the resolution."""

    unshuffle: int = 8
    widths: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 1)
    """Blocks per level; the last level is the middle, the others have as many in the encoder as in the decoder."""
    mixers: tuple[Mixer, ...] = ("depthwise", "deformable")
    deformable_group_width: int = 64


@dataclass(frozen=True)
class DenoiserConfig:
    """Denoising network f: a U-Net with four encoder and four decoder scales, RDD blocks in every decoder scale."""

    unshuffle: int = 4
    widths: tuple[int, ...] = (64, 96, 160, 224)
    encoder_blocks: tuple[int, ...] = (2, 2, 3, 3)
    middle_width: int = 256
    middle_blocks: int = 2
    decoder_blocks: tuple[int, ...] = (1, 1, 1, 1)
    encoder_mixers: tuple[Mixer, ...] = ("depthwise",) * 4
    middle_mixer: Mixer = "depthwise"
    decoder_mixers: tuple[Mixer, ...] = ("depthwise", "depthwise", "deformable", "deformable")
    """From the finest scale to the coarsest, like `widths`."""
    deformable_group_width: int = 64
    time_width: int = 128
    state_entry: Literal["encoder", "decoder"] = "decoder"
    """Where x_t enters. `encoder`: concatenated with (I_p, map) at the input, so that the whole network runs at every
    step. `decoder`: through a light pyramid joined to the skips, so that the encoder depends on the condition alone
    and runs once per image."""
    deconvolution_radii: tuple[float, ...] = ()
    """Radii in pixels of the Wiener deconvolutions of I_p that join the condition; none in the paper."""
    overlap: bool = False
    """Adds to the final pixel shuffle a transposed convolution whose blocks overlap: without it, edges can show a
    serration with the period of the shuffle."""


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion length T and noise schedule; `beta_*` are read by the linear schedule alone.

    Raises ValueError unless 0 < beta < 1 at both ends: without noise, or without signal, no step can be computed.
    """

    timesteps: int = 1300
    schedule: Literal["cosine", "linear"] = "cosine"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        for name, beta in (("beta_start", self.beta_start), ("beta_end", self.beta_end)):
            if not 0 < beta < 1:
                raise ValueError(f"diffusion.{name} must be greater than 0 and less than 1, not {beta}")


@dataclass(frozen=True)
class RDDMConfig:
    """Everything needed to build the networks of one checkpoint."""

    name: str
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    pre_deblur: PreDeblurConfig = field(default_factory=PreDeblurConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    attention_cell: int = 64
    """Channel attention pools over cells of this many image pixels instead of the whole input: blur varies over a
    photograph, and a tile then sees the same statistics as the whole picture. A multiple of every network stride,
    and not below MIN_ATTENTION_CELL."""


def lite() -> RDDMConfig:
    """The shipped size: every part of the method, small enough to be trained on two CPU cores."""
    return RDDMConfig(
        name="lite",
        guidance=GuidanceConfig(reduction=2),
        denoiser=DenoiserConfig(
            encoder_blocks=(14, 16, 4, 3),
            decoder_blocks=(3, 3, 1, 1),
            deconvolution_radii=(1.0, 1.8, 3.0, 4.5, 6.5, 9.0),
            overlap=True,
        ),
    )


def paper() -> RDDMConfig:
    """The paper's shape: ResNet-50 guidance, DCNv4 at every level, full resolution.

    The paper states no widths. These follow NAFNet-w32 (32 doubled per level); the middle has 512 channels.
    """
    deformable: tuple[Mixer, ...] = ("deformable",) * 4
    return RDDMConfig(
        name="paper",
        estimator=EstimatorConfig(decoder_width=256),
        guidance=GuidanceConfig(backbone="resnet50", width=64),
        pre_deblur=PreDeblurConfig(widths=(64, 128, 256), blocks=(1, 1, 2), mixers=deformable[:3]),
        denoiser=DenoiserConfig(
            unshuffle=1,
            widths=(32, 64, 128, 256),
            encoder_blocks=(1, 1, 1, 4),
            middle_width=512,
            middle_blocks=4,
            decoder_blocks=(1, 1, 1, 1),
            encoder_mixers=deformable,
            middle_mixer="deformable",
            decoder_mixers=deformable,
            state_entry="encoder",
        ),
    )


def nafnet() -> RDDMConfig:
    """A plain NAFNet U-Net (Chen et al. 2022) in p's place, about two thirds as large as `lite`'s denoiser, to compare
    with: regression from picture to picture (`regression.py`). The other networks are small, and of no use."""
    depthwise: tuple[Mixer, ...] = ("depthwise",) * 5
    return RDDMConfig(
        name="nafnet",
        estimator=EstimatorConfig(hidden_sizes=(8, 16, 16, 16), heads=(1, 2, 2, 2), depths=(1,) * 4, decoder_width=16),
        guidance=GuidanceConfig(width=8, reduction=2),
        pre_deblur=PreDeblurConfig(
            unshuffle=4, widths=(64, 96, 160, 224, 256), blocks=(1, 2, 2, 2, 2), mixers=depthwise
        ),
        denoiser=DenoiserConfig(
            widths=(16,) * 4,
            encoder_blocks=(1,) * 4,
            middle_width=16,
            middle_blocks=1,
            decoder_mixers=depthwise[:4],
            time_width=16,
        ),
    )


def preset(name: str) -> RDDMConfig:
    """`lite`, `paper` or `nafnet` by name; ValueError for any other."""
    presets = {"lite": lite, "paper": paper, "nafnet": nafnet}
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}: choose {', '.join(map(repr, presets))}")
    return presets[name]()


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain dictionaries, lists, numbers and strings (JSON-ready)."""
    return dataclasses.asdict(config)


def config_from_dict(values: dict[str, Any], complete: bool = True) -> RDDMConfig:
    """The inverse of `config_to_dict`; ValueError names unknown keys, missing keys and values of a wrong type.

    Without `complete`, as for checkpoints of an earlier format, missing fields keep their defaults.
    """
    return dataclass_from_dict(RDDMConfig, values, "config", complete)


def override(config: RDDMConfig, changes: Mapping[str, Any]) -> RDDMConfig:
    """`config` with what `changes` names, nested as in `config_to_dict`, e.g. {"denoiser": {"overlap": False}}.

    Raises ValueError as `config_from_dict` does.
    """
    return config_from_dict(merge(config_to_dict(config), changes))


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` laid over it; mappings within mappings are merged, anything else is replaced."""
    return {**values, **changes} | {
        key: merge(values[key], change)
        for key, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
    }


def dataclass_from_dict(kind: type, values: Any, where: str, complete: bool) -> Any:
    """Build the dataclass `kind` from plain values, strictly.

    `complete` demands every field (a stored checkpoint); otherwise missing fields keep their defaults (a recipe), where
    they have any.
    Raises ValueError that names the place, e.g. ``config.denoiser.widths``.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping, not {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{where} has unknown keys: {', '.join(map(str, unknown))}")
    absent = [name for name in sorted(fields) if name not in values]
    if missing := [name for name in absent if complete or not _has_default(fields[name])]:
        raise ValueError(f"{where} lacks: {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _typed(hints[key], value, f"{where}.{key}", complete) for key, value in values.items()})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _typed(hint: Any, value: Any, where: str, complete: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return dataclass_from_dict(typing.cast(type, hint), value, where, complete)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {type(value).__name__}")
        return tuple(_typed(arguments[0], item, f"{where}[{i}]", complete) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, not {type(value).__name__}")
        return value
    if type(None) in arguments:
        return None if value is None else _typed(arguments[0], value, where, complete)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
