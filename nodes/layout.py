"""Between ComfyUI's tensors (IMAGE [B, H, W, C], MASK [B, H, W]) and those of `rddm_core` ([B, C, H, W]).

Everything that enters is checked here, with messages that speak of the node's inputs by name.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

NOTICES = {
    "emptyMap": "the map is 0 everywhere, which means in focus, so next to nothing is changed: paint what is out of "
    "focus, or connect RDDM Defocus Map",
    "emptyMask": "the mask is 0 everywhere, so nothing is changed: paint what should be, or disconnect it",
}
"""For the log, by the key under which `web/texts.js` has them for the browser."""


def picture(image: Tensor, name: str, *, bounded: bool = True) -> tuple[Tensor, Tensor | None]:
    """IMAGE -> colours [B, 3, H, W] float32, and alpha [B, 1, H, W] if it has one.

    `bounded` clips values to 0..1: upscalers and half precision overshoot a little. Raises ValueError for what is no
    RGB or RGBA picture, and for values that are not finite.
    """
    if isinstance(image, Tensor) and image.ndim == 4 and not len(image):
        raise ValueError(f"{name} is an empty batch: the node that it comes from gave no picture")
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4) or image.numel() == 0:
        raise ValueError(f"{name} must be pictures with 3 colour channels, or 4 with alpha, not {_describe(image)}")
    low, high = _finite_range(image, name)
    planes = image.movedim(-1, 1).float()
    colours, alpha = planes[:, :3], planes[:, 3:]
    # A batch may be a whole film: it is copied only where it must be.
    return colours.clamp(0, 1) if bounded and (low < 0 or high > 1) else colours, alpha if alpha.shape[1] else None


def mask(values: Tensor, name: str, batch: int) -> Tensor:
    """MASK -> [B or 1, 1, h, w] float32 in 0..1, for a batch of pictures. Raises ValueError as `picture` does.

    Some nodes send masks with a channel of their own: [B, 1, h, w], or [B, h, w, 1] as pictures have it.
    """
    if not isinstance(values, Tensor) or values.ndim not in (2, 3, 4) or values.numel() == 0:
        raise ValueError(f"{name} must be masks, not {_describe(values)}")
    if values.ndim == 4 and values.shape[1] != 1:
        if values.shape[-1] != 1:
            raise ValueError(f"{name} must be masks of one channel, not {_describe(values)}")
        values = values[..., 0]
    _finite_range(values, name, whole_numbers=True)
    planes = values.float().reshape(-1, 1, *values.shape[-2:]).clamp(0, 1)
    check_batch(planes, name, batch, allow_one=True)
    return planes


def notices(*, map: Tensor | None = None, mask: Tensor | None = None) -> dict[str, list[str]] | None:
    """What the user may not have meant, told in the log and as `ui` for `web/notices.js`; None if there is nothing.

    `map` and `mask` are those that change the result: Load Image gives a mask of zeros where nothing was painted.
    """
    found = [key for key, planes in (("emptyMap", map), ("emptyMask", mask)) if planes is not None and not planes.any()]
    for key in found:
        logger.warning("RDDM: %s", NOTICES[key])
    return {"rddm_notices": found} if found else None


def plane(values: Tensor, name: str, batch: int) -> Tensor:
    """MASK, or IMAGE whose brightness counts -> [B or 1, 1, h, w] float32 in 0..1. Raises ValueError as `mask` does."""
    if isinstance(values, Tensor) and values.ndim == 4 and values.shape[-1] in (3, 4):
        colours, _ = picture(values, name)
        values = colours.mean(dim=1)
    return mask(values, name, batch)


def residual(values: Tensor, name: str) -> Tensor:
    """RDDM_RESIDUAL [B, N, 3, H, W], checked. Raises ValueError for what is none, and for non-finite values."""
    if not isinstance(values, Tensor) or values.ndim != 5 or values.shape[2] != 3 or values.numel() == 0:
        raise ValueError(f"{name} must come from RDDM Sampler, it is {_describe(values)}")
    _finite_range(values, name)
    return values


def seeds(seed: int, batch: int, batch_noise: str) -> tuple[int, ...]:
    """A seed for each picture: seed, seed + 1 and so on for `batch_noise` "own", the same for all for "shared"."""
    return tuple(seed + (b if batch_noise == "own" else 0) for b in range(batch))


def check_batch(x: Tensor, name: str, batch: int, *, allow_one: bool = False) -> None:
    """Raise ValueError unless `x` holds as many items as there are pictures, or one for all where that is allowed."""
    if len(x) != batch and not (allow_one and len(x) == 1):
        cure = "connect one for all of them, or one for each" if allow_one else "connect the same batch everywhere"
        raise ValueError(f"{name} has {len(x)} items, but there are {batch} pictures: {cure}")


def check_size(x: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """Raise ValueError unless both have the same height and width."""
    if x.shape[-2:] != like.shape[-2:]:
        sizes = f"{x.shape[-1]}x{x.shape[-2]}, but {like_name} is {like.shape[-1]}x{like.shape[-2]}"
        raise ValueError(f"{name} is {sizes}: they must come from the same picture, without a resize between")


def fit(planes: Tensor, like: Tensor) -> Tensor:
    """A mask [B, 1, h, w] at the size of a picture, and where that lies."""
    planes, size = planes.to(like.device), (like.shape[-2], like.shape[-1])
    if planes.shape[-2:] == size:
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def image(colours: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Colours [B, 3, H, W] and alpha [A, 1, H, W] -> IMAGE; each alpha serves B / A pictures in a row."""
    if alpha is not None:
        repeated = alpha.repeat_interleave(len(colours) // len(alpha), dim=0)
        colours = torch.cat((colours, repeated.to(colours)), dim=1)
    return colours.movedim(1, -1)


def _finite_range(x: Tensor, name: str, whole_numbers: bool = False) -> tuple[float, float]:
    """The least and the largest value. ValueError for what holds others than finite fractions.

    `whole_numbers`: masks may hold them, of pictures nobody could tell whether they reach to 1 or to 255.
    """
    from ..rddm_core.checks import value_range

    fractional = x.is_floating_point() and x.dtype.itemsize > 1
    whole = whole_numbers and not x.is_floating_point() and not x.is_complex()
    if x.layout != torch.strided or not (fractional or whole):
        kind = x.dtype if x.layout == torch.strided else x.layout
        raise ValueError(f"{name} must hold floating-point values in 0..1, not {kind}: convert it before")
    low, high = value_range(x)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} contains invalid values (NaN or infinity): a node before this one failed, "
            "often a model that ran in half precision; look at its result in a preview"
        )
    return low, high


def _describe(x: object) -> str:
    return f"a tensor of the shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
