"""What is measured side by side: classical methods, this method in its variants, other checkpoints and peers."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_checkpoint, read_info
from ..networks.model import RDDM
from ..pipeline import MAX_TRAINED_RADIUS, DeblurResult, DeblurSettings, deblur, estimate_defocus_map
from ..regression import is_regression, regress
from .evaluate import Method

DEFAULT_ROWS = ("pre-deblurred", "final")
ALL_ROWS = (
    "unsharp",
    "wiener",
    "richardson-lucy",
    "pre-deblurred",
    "final",
    *(f"steps-{n}" for n in (1, 2, 3, 4)),
    *(f"mean-{n}" for n in (2, 4, 8)),
    "map-zeroed",
    "map-inverted",
    "guidance-zeroed",
)
"""What the row name "all" stands for. steps-N and mean-N (of N samples) exist for every N."""


class RowError(ValueError):
    """A row or a peer that cannot be measured; the message names the cause and the cure."""


def select_rows(names: Sequence[str]) -> list[str]:
    """Row names with "all" and "default" replaced by what they stand for, each once. RowError for an unknown one."""
    groups = {"all": ALL_ROWS, "default": DEFAULT_ROWS}
    rows = list(dict.fromkeys(row for name in names for row in groups.get(name, (name,))))
    for row in rows:
        if row not in _PLAIN_ROWS and not _NUMBERED.fullmatch(row):
            raise RowError(f"unknown row {row!r}: choose all, default, {', '.join(_PLAIN_ROWS)}, steps-N or mean-N")
    return rows


def rddm_method(model: RDDM, settings: DeblurSettings, rows: Sequence[str] = DEFAULT_ROWS) -> Method:
    """The rows of `select_rows`. Rows of this method are what `deblur` would write with the same settings; beside
    `pre-deblurred`, which is kept, a `memory` budget leaves less for the tiles of `final`.

    - unsharp, wiener, richardson-lucy: `classical.py` with its defaults; the last two by the map of edges.
    - pre-deblurred: I_p alone. final: by `settings`, of several samples their mean. steps-N: in N steps.
    - mean-N: N samples. map-zeroed, map-inverted, guidance-zeroed: what these inputs are worth at test time.
    """
    rows = select_rows(rows)
    drawn = max(
        (int(match[2]) for row in rows if (match := _NUMBERED.fullmatch(row)) and match[1] == "mean"), default=0
    )

    def restore(blurred: Tensor) -> dict[str, Tensor]:
        work = _Work(model, settings, blurred[None], drawn, "pre-deblurred" in rows)
        with _sharing(model):
            return {row: work.row(row) for row in rows}

    return restore


def peer_method(
    name: str,
    path: Path,
    device: torch.device | str = "cpu",
    settings: DeblurSettings = DeblurSettings(),
    dtype: torch.dtype = torch.float32,
) -> Method:
    """One row, called `name`: a checkpoint of this package with `settings`, but at its own recommended steps (of the
    stage `regression`, its pre-deblur network alone and without a map), or any restoration model that spandrel loads.

    Raises RowError for a file that neither can use.
    """
    try:
        regression = is_regression(read_info(path).provenance)
    except CheckpointError as error:
        if not path.is_file():
            raise RowError(str(error)) from error
        return _spandrel_method(name, path, torch.device(device))
    model = load_checkpoint(path, dtype=dtype, device=device)
    own = replace(settings, steps=0)

    def restore(blurred: Tensor) -> dict[str, Tensor]:
        image = blurred[None]
        if regression:
            return {name: regress(model, image)[0]}
        return {name: deblur(model, image, settings=own, keep_stages=False, mean=True).image[0]}

    return restore


def combine(methods: Sequence[Method]) -> Method:
    """The rows of all methods, one after the other."""
    return lambda blurred: {row: picture for method in methods for row, picture in method(blurred).items()}


class _Work:
    """One picture [1, 3, H, W] and what several rows share."""

    def __init__(self, model: RDDM, settings: DeblurSettings, image: Tensor, drawn: int, keep_stages: bool) -> None:
        self.model, self.settings, self.image = model, settings, image
        self.drawn, self.keep_stages = drawn, keep_stages

    def row(self, name: str) -> Tensor:
        """The picture [3, H, W] of a row, or samples [N, 3, H, W]."""
        if match := _NUMBERED.fullmatch(name):
            count = int(match[2])
            if match[1] == "mean":
                return self.samples[:count]
            return self.mean(replace(self.settings, steps=count))
        return _PLAIN_ROWS[name](self)

    @cached_property
    def result(self) -> DeblurResult:
        return deblur(self.model, self.image, settings=self.settings, keep_stages=self.keep_stages, mean=True)

    def mean(self, settings: DeblurSettings, defocus_map: Tensor | None = None) -> Tensor:
        """What the command `deblur` writes with these settings, [3, H, W]."""
        result = deblur(
            self.model, self.image, settings=settings, defocus_map=defocus_map, keep_stages=False, mean=True
        )
        return result.image[0]

    def pre_deblurred(self) -> Tensor:
        guess = self.result.pre_deblurred
        assert guess is not None  # kept where this row is asked for
        return guess[0]

    @cached_property
    def samples(self) -> Tensor:
        settings = replace(self.settings, samples=self.drawn)
        return deblur(self.model, self.image, settings=settings, keep_stages=False).image

    @cached_property
    def edge_map(self) -> Tensor:
        from ..classical import edge_defocus_map

        return edge_defocus_map(self.image)

    def unsharp(self) -> Tensor:
        from ..classical import unsharp_mask

        return unsharp_mask(self.image)[0]

    def deconvolved(self, method: Any) -> Tensor:
        from ..classical import deconvolve

        return deconvolve(self.image, self.edge_map, method=method, max_radius=MAX_TRAINED_RADIUS)[0]

    def with_map(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        return self.mean(self.settings, change(estimate_defocus_map(self.model, self.image)))

    def without_guidance(self) -> Tensor:
        with _zeroed(self.model.guidance):
            return self.mean(self.settings)


_PLAIN_ROWS: Mapping[str, Callable[[_Work], Tensor]] = {
    "unsharp": _Work.unsharp,
    "wiener": lambda work: work.deconvolved("wiener"),
    "richardson-lucy": lambda work: work.deconvolved("richardson_lucy"),
    "pre-deblurred": _Work.pre_deblurred,
    "final": lambda work: work.result.image[0],
    "map-zeroed": lambda work: work.with_map(torch.zeros_like),
    "map-inverted": lambda work: work.with_map(lambda defocus_map: 1 - defocus_map),
    "guidance-zeroed": _Work.without_guidance,
}
_NUMBERED = re.compile(r"(steps|mean)-([1-9][0-9]{0,3})")


REMEMBERED = 16
"""Calls of each network that are kept for the rows to come: all of a picture that is processed whole."""


@contextmanager
def _sharing(model: RDDM) -> Iterator[None]:
    """Inside, a network that is asked the same again answers from memory.

    Rows have most of their work in common: map, first guess, guidance, condition, and every step that starts from the
    same noise. Hooks, as of `_zeroed`, still see every call.
    """
    methods = [(part, "forward") for part in (model.estimator, model.pre_deblur, model.guidance, model.denoiser)]
    methods.append((model.denoiser, "encode_condition"))
    for part, name in methods:
        setattr(part, name, _remembering(getattr(part, name)))
    try:
        yield
    finally:
        for part, name in methods:
            delattr(part, name)  # the class's own is seen again


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    calls: deque[tuple[tuple[Any, ...], Any]] = deque(maxlen=REMEMBERED)

    def call(*arguments: Any) -> Any:
        for before, result in calls:
            if _same(before, arguments):
                return result
        # Pictures are copied: the caller may write its result over them. Features are passed on as they are.
        kept = tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments)
        calls.append((kept, result := function(*arguments)))
        return result

    return call


def _same(a: Any, b: Any) -> bool:
    """Whether two tensors, or tuples of them, hold the same values."""
    if a is b:
        return True
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@contextmanager
def _zeroed(network: torch.nn.Module) -> Iterator[None]:
    """Inside, every output of `network` is zero."""
    hook = network.register_forward_hook(lambda _, __, outputs: tuple(torch.zeros_like(x) for x in outputs))
    try:
        yield
    finally:
        hook.remove()


def _spandrel_method(name: str, path: Path, device: torch.device) -> Method:
    try:
        import spandrel
    except ImportError as error:
        raise RowError(
            f"{path} is no checkpoint of this package, and other models need: pip install spandrel"
        ) from error
    try:  # further architectures, where they are installed
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    except ImportError:
        pass
    try:
        peer = spandrel.ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # spandrel raises many kinds for a file that it does not know
        raise RowError(f"{path}: neither this package nor spandrel can load it ({str(error)[:200]})") from error
    if not isinstance(peer, spandrel.ImageModelDescriptor) or peer.scale != 1 or peer.input_channels != 3:
        raise RowError(f"{path} ({peer.architecture.name}) does not restore RGB pictures at their own size")
    peer.eval()

    def restore(blurred: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {name: peer(blurred[None].to(device))[0].float().cpu().clamp(0, 1)}

    return restore
