"""Checkpoints: one safetensors file that holds all networks and what is needed to rebuild them.

Format version 2 (version 1 lacks the configuration's later fields, whose defaults are what it meant):

- Metadata: ``rddm.format_version``, ``rddm.config`` (JSON of RDDMConfig), ``rddm.residual_scale``,
  ``rddm.recommended_steps``, ``rddm.provenance`` (JSON, how the weights came about), ``rddm.licence``.
- Tensors: the state of `RDDM` under key names of our own. transformers and timm rename their layers from
  time to time (SegFormer's changed between 5.6 and 5.14), so theirs are translated by the tables at the end
  of this module and nowhere else. BatchNorm's `num_batches_tracked` is not stored: no output depends on it.
- Matrices and kernels are stored in half precision, vectors (biases, norm weights, running statistics) in
  fp32: running variances span more orders of magnitude than fp16 does, and all vectors together are 2 % of
  the file.

A checkpoint may come from anywhere. Nothing in it is executed, and no memory is taken for a network before
the sizes in the file's header have been found equal to those that its (bounded) configuration asks for.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.overrides import TorchFunctionMode

from .config import RDDMConfig, config_from_dict, config_to_dict
from .files import atomic_target
from .networks.model import RDDM
from .networks.precision import is_vector

FORMAT_VERSION = 2
MAX_HEADER_BYTES = 8 << 20
MAX_METADATA_CHARACTERS = 1 << 20
LIMITS: Mapping[str, tuple[float, float]] = {
    "blocks": (0, 64),
    "depths": (0, 64),
    "stages": (0, 8),
    "timesteps": (1, 100_000),
    "attention_cell": (1, 1024),  # pictures are padded to a multiple of it
    "unshuffle": (1, 32),
    "radii": (0.1, 64.0),  # the deconvolution's kernels are twice as wide
    "beta_start": (0.0, 1.0),
    "beta_end": (0.0, 1.0),
}
"""What a configuration may hold, by the end of a field's name; any other number must be 1 to 8192."""
MAX_SHOWN = 200
"""Characters of a file's own words in an error message."""
STORED_DTYPES = {"F16", "BF16", "F32"}
FETCH_AGAIN = "fetch the file again, or choose another checkpoint"


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message names the file, the cause and the cure."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself. `parameters` counts them per part, as stored in the file."""

    format_version: int
    config: RDDMConfig
    residual_scale: float
    recommended_steps: int
    provenance: dict[str, Any]
    licence: str
    parameters: dict[str, int]


def default_checkpoint_path() -> Path:
    """Where the shipped weights lie."""
    return Path(__file__).parent / "weights" / "rddm-lite.safetensors"


def save_checkpoint(
    path: str | Path,
    model: RDDM,
    *,
    provenance: dict[str, Any],
    licence: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write `model` to `path`, atomically.

    Args:
        provenance: how the weights came about, as JSON can hold it (other values are stored as text).
        licence: one line, under which terms the weights may be used.
        dtype: of matrices and kernels; vectors are always fp32.

    Raises CheckpointError where a value is not finite (or not in `dtype`) or the model's numbers make no
    sense, and OSError where the file cannot be written.
    """
    path = Path(path)
    state = model.state_dict()
    tensors = {}
    for key, name in own_names(state).items():
        tensor = state[key].detach().to("cpu", torch.float32 if is_vector(state[key]) else dtype).contiguous()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: not written, {name} is not finite everywhere in {tensor.dtype}")
        tensors[name] = tensor
    metadata = {
        "format": "pt",
        "rddm.format_version": str(FORMAT_VERSION),
        "rddm.config": json.dumps(config_to_dict(model.config)),
        "rddm.residual_scale": repr(float(model.residual_scale)),
        "rddm.recommended_steps": str(int(model.recommended_steps)),
        "rddm.provenance": json.dumps(_plain(provenance), allow_nan=False),
        "rddm.licence": licence,
    }
    try:
        _parse_metadata(metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: not written, {error}") from error
    with atomic_target(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, metadata))


def read_info(path: str | Path) -> CheckpointInfo:
    """What a checkpoint says about itself, from its header alone. Raises CheckpointError."""
    path = Path(path)
    with _opened(path) as file:
        values = _read_metadata(path, file.metadata())
        shapes = _stored_shapes(path, file)
    parts = ("estimator", "pre_deblur", "guidance.backbone", "guidance.projections", "denoiser")
    parameters = dict.fromkeys(parts, 0)
    for name, shape in shapes.items():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        if part is not None and not name.endswith((".running_mean", ".running_var")):
            parameters[part] += math.prod(shape)
    return CheckpointInfo(*values, parameters)


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> RDDM:
    """Build the model that a checkpoint describes and fill it: eval mode, no gradients.

    Args:
        dtype: of all parameters; None for fp32, whatever the file holds.
        device: where the model ends up.

    Raises CheckpointError, one for each: no such file, no right to read it, another kind of file (a pickle is never
    opened), truncated or damaged, no checkpoint of ours, a newer format, a configuration out of bounds, tensors that
    are missing, left over, or of a wrong shape or type, values that are not finite, too little memory.
    """
    path, dtype = Path(path), dtype or torch.float32
    with _opened(path) as file:
        _, config, residual_scale, recommended_steps, _, _ = _read_metadata(path, file.metadata())
        shapes = _stored_shapes(path, file)
        _check_extent(path, config, shapes)
        model = _build(path, config)
        wanted = model.state_dict()
        names = own_names(wanted)
        _compare(path, shapes, {name: tuple(wanted[key].shape) for key, name in names.items()})
        state = {}
        for key, tensor in wanted.items():
            if key not in names:
                state[key] = torch.zeros_like(tensor, device="cpu")
                continue
            try:
                # A copy: the model must not keep the file mapped, on Windows it could not be replaced then.
                stored = file.get_tensor(names[key])
                state[key] = stored.to(dtype, copy=True)
                finite = bool(torch.isfinite(state[key]).all())
                sound = finite or bool(torch.isfinite(stored).all())
            except (MemoryError, RuntimeError) as error:
                cause, cure = f"{names[key]} could not be read ({_shown(error)})", "close other programs"
                raise CheckpointError(f"{path}: {cause}; {cure}, or choose a smaller checkpoint") from error
            if not finite:
                cause = f"{names[key]} is not finite everywhere in {dtype}"
                raise CheckpointError(f"{path}: {cause}; {'choose fp32 or bf16' if sound else FETCH_AGAIN}")
    model.load_state_dict(state, assign=True)
    model.residual_scale, model.recommended_steps = residual_scale, recommended_steps
    return model.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)


# ---------------------------------------------------------------- reading what cannot be trusted

Shapes = Mapping[str, tuple[int, ...]]
Metadata = tuple[int, RDDMConfig, float, int, dict[str, Any], str]
"""Format version, configuration, residual scale, recommended steps, provenance and licence."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The safetensors file at `path`; every way in which it is not one is a CheckpointError."""
    try:
        if not path.is_file():
            cause = "is a folder" if path.is_dir() else "no such file"
            cure = "give the path of a .safetensors checkpoint"
            if path == default_checkpoint_path():
                cure = "the shipped weights are missing: install the package again"
            raise CheckpointError(f"{path}: {cause}; {cure}")
        with path.open("rb") as handle:
            head = handle.read(9)
    except OSError as error:
        cure = "change its permissions" if isinstance(error, PermissionError) else "give the path of another file"
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    # Eight bytes of header length, then JSON. Any bytes may make a length, so what looks right comes first.
    if len(head) < 9 or head[8:] != b"{" or struct.unpack("<Q", head[:8])[0] > MAX_HEADER_BYTES:
        if head.startswith((b"PK\x03\x04", b"\x80")):
            raise CheckpointError(
                f"{path}: a PyTorch pickle (.pth, .pt, .ckpt), which can run code and is never opened here; "
                "choose a .safetensors checkpoint"
            )
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one; {FETCH_AGAIN}")
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except (OSError, MemoryError, RuntimeError) as error:  # torch's own error for too little memory is the last
        cure = "close other programs, or choose a smaller checkpoint"
        raise CheckpointError(f"{path}: could not be mapped into memory ({_shown(error)}); {cure}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({_shown(error)}); {FETCH_AGAIN}") from error
    try:
        with opened as file:
            yield file
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({_shown(error)}); {FETCH_AGAIN}") from error


def _stored_shapes(path: Path, file: Any) -> Shapes:
    shapes = {}
    for name in file.keys():
        stored = file.get_slice(name)
        if (kind := stored.get_dtype()) not in STORED_DTYPES:
            raise CheckpointError(f"{path}: {_shown(name)} is of type {kind}, not floating point; {FETCH_AGAIN}")
        shapes[name] = tuple(stored.get_shape())
    return shapes


def _read_metadata(path: Path, metadata: Mapping[str, str] | None) -> Metadata:
    version = (metadata or {}).get("rddm.format_version")
    if metadata is None or version is None:
        raise CheckpointError(f"{path}: a safetensors file, but no RDDM checkpoint; choose another file")
    if re.fullmatch("[0-9]{1,9}", version) and int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format {version}, this version reads up to {FORMAT_VERSION}; update the package"
        )
    try:
        return _parse_metadata(metadata)
    except (ValueError, OverflowError) as error:  # the latter: integers beyond what a float can be
        raise CheckpointError(f"{path}: damaged metadata, {_shown(error)}; {FETCH_AGAIN}") from error


def _parse_metadata(values: Mapping[str, str]) -> Metadata:
    """The metadata of the present or an earlier format; ValueError says what is wrong with it."""
    version = values["rddm.format_version"]
    if version not in [str(known) for known in range(1, FORMAT_VERSION + 1)]:
        raise ValueError(f"the format version is {version[:20]!r}")
    keys = ("config", "residual_scale", "recommended_steps", "provenance", "licence")
    if missing := [key for key in keys if f"rddm.{key}" not in values]:
        raise ValueError(f"there is no {', '.join(missing)}")
    if sum(map(len, values.values())) > MAX_METADATA_CHARACTERS:
        raise ValueError("there is far too much of it")
    try:
        raw_config, provenance = (
            json.loads(values[f"rddm.{key}"], object_pairs_hook=_without_duplicates) for key in ("config", "provenance")
        )
    except RecursionError as error:
        raise ValueError("JSON nested far too deep") from error
    config = config_from_dict(raw_config, complete=int(version) == FORMAT_VERSION)
    _check_bounds(raw_config)
    scale, steps = float(values["rddm.residual_scale"]), int(values["rddm.recommended_steps"])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"residual_scale must be a positive number, not {scale}")
    if not 1 <= steps <= config.diffusion.timesteps:
        raise ValueError(f"recommended_steps must be 1 to {config.diffusion.timesteps}, not {steps}")
    if not isinstance(provenance, dict):
        raise ValueError("the provenance is no mapping")
    return int(version), config, scale, steps, provenance, values["rddm.licence"]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key stands in it twice, for readers may take either."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key of its JSON stands there twice")
    return values


def _check_bounds(value: Any, where: str = "config") -> None:
    """Bound every number and list of a configuration: building its layers then takes next to no memory, and so does
    what inference needs beside the picture's own size.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _check_bounds(item, f"{where}.{key}")
    elif isinstance(value, list):
        if len(value) > 8:
            raise ValueError(f"{where} has {len(value)} entries, at most 8 make sense")
        for item in value:
            _check_bounds(item, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where} is not finite")
        low, high = next((limits for name, limits in LIMITS.items() if where.endswith(name)), (1, 8192))
        if not low <= value <= high:
            raise ValueError(f"{where} must be {low} to {high}, not {value}")


def _check_extent(path: Path, config: RDDMConfig, shapes: Shapes) -> None:
    """Refuse a configuration whose layers outnumber the values in the file: every block has a vector of its width."""
    g, p, f = config.estimator, config.pre_deblur, config.denoiser
    levels = [(g.depths, g.hidden_sizes), (p.blocks, p.widths), (f.encoder_blocks, f.widths)]
    levels += [(f.decoder_blocks, f.widths), ((f.middle_blocks,), (f.middle_width,))]
    wanted = sum(math.prod(pair) for blocks, widths in levels for pair in zip(blocks, widths, strict=False))
    if wanted > (held := sum(math.prod(shape) for shape in shapes.values())):
        cause = f"its configuration asks for more than {wanted:,} values, but it holds {held:,}"
        raise CheckpointError(f"{path}: {cause}; {FETCH_AGAIN}")


def _compare(path: Path, stored: Shapes, wanted: Shapes) -> None:
    def refuse(what: str, names: list[str]) -> CheckpointError:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return CheckpointError(f"{path}: {what} {', '.join(map(_shown, names[:3]))}{more}; {FETCH_AGAIN}")

    if missing := [name for name in wanted if name not in stored]:
        raise refuse("its configuration asks for tensors that are missing:", missing)
    if unexpected := [name for name in stored if name not in wanted]:
        raise refuse("its configuration has no place for", unexpected)
    if wrong := [name for name, shape in wanted.items() if stored[name] != shape]:
        first = f"{stored[wrong[0]]} instead of {wanted[wrong[0]]}"
        raise refuse(f"its configuration asks for other shapes ({first}) of", wrong)


class _WithoutMemory(TorchFunctionMode):
    """Inside, `torch.empty` allocates nothing (meta device): layers come without memory or initialisation.

    The meta device as such would also catch tensors whose values are read while a model is built, as
    transformers 4.40 does.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))


def _build(path: Path, config: RDDMConfig) -> RDDM:
    """The networks of `config`, without memory for their parameters."""
    try:
        with _WithoutMemory():
            return RDDM(config)
    except ImportError:
        raise
    except Exception as error:  # torch, timm and transformers raise many kinds for numbers that do not fit
        cause = f"its configuration describes no model ({type(error).__name__}: {_shown(error)})"
        raise CheckpointError(f"{path}: {cause}; {FETCH_AGAIN}") from error


def _shown(words: object) -> str:
    """A file's own words in an error message: one line, not too long, no control characters."""
    text = str(words)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


# ---------------------------------------------------------------- key names

_PATCH = {"proj": "projection", "layer_norm": "norm"}
_SEGFORMER_BLOCK = {
    # transformers 4.40 to 5.6
    "layer_norm_1": "norm1",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.self.sr": "attention.reduction",
    "attention.self.layer_norm": "attention.reduction_norm",
    "attention.output.dense": "attention.output",
    "layer_norm_2": "norm2",
    "mlp.dense1": "mlp.expand",
    "mlp.dwconv.dwconv": "mlp.depthwise",
    "mlp.dense2": "mlp.project",
    # transformers 5.14 to 5.23
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.sequence_reduction.sequence_reduction": "attention.reduction",
    "attention.sequence_reduction.layer_norm": "attention.reduction_norm",
    "attention.o_proj": "attention.output",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.expand",
    "mlp.fc2": "mlp.project",
}
_SEGFORMER_HEAD = {"linear_fuse": "fuse", "batch_norm": "norm", "classifier": "classifier"}
_STEM = {"conv_stem": "conv", "conv1": "conv", "bn1": "norm"}
_SEPARABLE = {"conv_dw": "depthwise", "bn1": "depthwise_norm", "conv_pw": "project", "bn2": "project_norm"}
_INVERTED = {
    "conv_pw": "expand",
    "bn1": "expand_norm",
    "conv_dw": "depthwise",
    "bn2": "depthwise_norm",
    "conv_pwl": "project",
    "bn3": "project_norm",
}
_BOTTLENECK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"bn{i}": f"norm{i}" for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut_norm",
}

Rule = tuple[str, str, Mapping[str, str] | None]
"""A library's path of a layer, our name for it, and the table that translates the last part, if any."""

_ESTIMATOR_RULES: tuple[Rule, ...] = (
    # transformers 4.40 to 5.6
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.(.+)", "stages.{}.patch.{}", _PATCH),
    (r"segformer\.encoder\.block\.(\d+)\.(\d+)\.(.+)", "stages.{}.blocks.{}.{}", _SEGFORMER_BLOCK),
    (r"segformer\.encoder\.layer_norm\.(\d+)", "stages.{}.norm", None),
    (r"decode_head\.linear_c\.(\d+)\.proj", "head.projections.{}", None),
    # transformers 5.14 to 5.23
    (r"segformer\.stages\.(\d+)\.patch_embeddings\.(.+)", "stages.{}.patch.{}", _PATCH),
    (r"segformer\.stages\.(\d+)\.blocks\.(\d+)\.(.+)", "stages.{}.blocks.{}.{}", _SEGFORMER_BLOCK),
    (r"segformer\.stages\.(\d+)\.layer_norm", "stages.{}.norm", None),
    (r"decode_head\.linear_projections\.(\d+)\.proj", "head.projections.{}", None),
    # all of them
    (r"decode_head\.(\w+)", "head.{}", _SEGFORMER_HEAD),
)
_BACKBONE_RULES: tuple[Rule, ...] = (
    # EfficientNet-Lite: the first stage has blocks without expansion.
    (r"blocks\.0\.(\d+)\.(.+)", "stages.0.{}.{}", _SEPARABLE),
    (r"blocks\.(\d+)\.(\d+)\.(.+)", "stages.{}.{}.{}", _INVERTED),
    # ResNet-50
    (r"layer(\d+)\.(\d+)\.(.+)", "stages.{}.{}.{}", _BOTTLENECK),
    # both
    (r"(\w+)", "stem.{}", _STEM),
)


def own_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of `RDDM.state_dict()` -> name in a checkpoint, for every entry that is stored.

    The names do not depend on the versions of transformers and timm. CheckpointError for a layer that they
    have renamed since.
    """
    names = {}
    for key in keys:
        if key.endswith(".num_batches_tracked"):
            continue
        if key.startswith(prefix := "estimator.segformer."):
            names[key] = "estimator." + _translate(key.removeprefix(prefix), _ESTIMATOR_RULES, "transformers")
        elif key.startswith(prefix := "guidance.backbone."):
            names[key] = prefix + _translate(key.removeprefix(prefix), _BACKBONE_RULES, "timm")
        else:
            names[key] = key
    return names


def _translate(key: str, rules: tuple[Rule, ...], library: str) -> str:
    layer, _, tensor = key.rpartition(".")
    for pattern, name, table in rules:
        if match := re.fullmatch(pattern, layer):
            *numbers, last = match.groups()
            if table is None or last in table:
                return f"{name.format(*numbers, last if table is None else table[last])}.{tensor}"
    raise CheckpointError(
        f"this version of {library} has a layer named {key}, which this package does not know; "
        f"update the package, or install the version of {library} that its requirements name"
    )
