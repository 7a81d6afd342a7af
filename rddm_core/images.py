"""Reading and writing photographs by Pillow: pixels, alpha, EXIF and colour profile."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from .files import atomic_target

logger = logging.getLogger(__name__)

DEFAULT_MAX_PIXELS = 150_000_000
"""Larger than medium-format cameras take, and below the size at which Pillow itself refuses."""

FORMAT_OF_EXTENSION = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""What is read and written. Content decides when reading, the extension when writing."""

# Named formats only: some of Pillow's other readers start external programs.
_READ_FORMATS = tuple(sorted(set(FORMAT_OF_EXTENSION.values())))
_MAX_SIDE = {"JPEG": 65535, "WEBP": 16383}
_WITHOUT_ALPHA = ("JPEG", "BMP")
_WITHOUT_METADATA = ("BMP",)
_MAX_JPEG_EXIF = 65533
_ORIENTATION = 0x0112
_EXIF_POINTERS = (0x8769, 0x8825)  # Exif and GPS folders
# Of a TIFF's tags only these describe the photograph; the others describe how that file is laid out.
_TIFF_PHOTO_TAGS = (0x010E, 0x010F, 0x0110, _ORIENTATION, 0x0131, 0x0132, 0x013B, 0x8298, *_EXIF_POINTERS)


class ImageError(ValueError):
    """A picture that cannot be read or written; the message names the file and the cure."""


@dataclass(frozen=True)
class LoadedImage:
    """A photograph, upright.

    Attributes:
        pixels: float32 [3, H, W] in 0..1, in the colour space of `icc` (sRGB without one).
        alpha: float32 [1, H, W] in 0..1, or None.
        grey: the file had one colour channel (all of `pixels` are then equal), and `save_image` writes one.
        icc: colour profile that fits the pixels, or None.
        exif: EXIF block with orientation 1, or None.
        format: Pillow's name of the file format read, e.g. "JPEG".
    """

    pixels: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = ""


def load_image(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> LoadedImage:
    """Read a still photograph: JPEG, PNG, WebP, TIFF or BMP, of any colour mode.

    EXIF orientation is applied. CMYK is converted to sRGB, by its profile where there is one. Grey pictures
    are read with up to 16 bits, coloured ones with 8. Of a TIFF with several pages the first is read.

    Raises ImageError for a missing, empty, damaged, animated or foreign file, for more than `max_pixels`
    (checked before decoding) and for floating-point pixels.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a picture" if path.is_dir() else "does not exist: check the name"
        raise ImageError(f"{path} {what}")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): copy or download it again")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Pillow's own limit for a warning is replaced by `max_pixels`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_READ_FORMATS) as image:
                _check_header(image, path, max_pixels)
                image.load()
                loaded = _decode(image, path)
        for message in dict.fromkeys(str(w.message).strip() for w in caught):
            logger.warning("%s: %s", path, message)
        return loaded
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a JPEG, PNG, WebP, TIFF or BMP picture: convert it to one of these") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is larger than {max_pixels / 1e6:.0f} megapixels: reduce it first") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory: reduce it first") from error
    except Exception as error:  # damaged files raise whatever the decoder stumbles over
        raise ImageError(f"{path} is damaged or incomplete ({error}): copy or export it again") from error


def save_image(path: Path | str, pixels: Tensor, like: LoadedImage | None = None, quality: int = 95) -> None:
    """Write pixels [3, H, W] in 0..1 (others are clipped) as JPEG, PNG, WebP, TIFF or BMP with 8 bits.

    The extension of `path` decides the format. `like` gives alpha, EXIF, colour profile and whether the
    picture is grey. JPEG is written at `quality` without chroma subsampling, WebP at `quality` and lossless
    at 100; the others are lossless (TIFF uncompressed: Pillow's compressed writer cannot hold EXIF folders).
    What a format cannot hold is left out with a logged warning. The file appears whole or not at all.

    Raises ImageError for an unknown extension, pixels that are no picture, or a file that cannot be written.
    """
    path = Path(path)
    format = format_for(path)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.numel() == 0:
        raise ImageError(f"{path}: pixels must be [3, H, W], not {list(pixels.shape)}")
    if not bool(torch.isfinite(pixels).all()):
        raise ImageError(f"{path}: the picture holds NaN or infinite values; if it was computed in fp16, use fp32")
    if max(pixels.shape[1:]) > _MAX_SIDE.get(format, 2**31):
        raise ImageError(f"{path}: {format} holds at most {_MAX_SIDE[format]} pixels a side: save it as PNG")
    image = _encode(path, format, pixels, like)
    options = _save_options(path, format, quality, like)
    try:
        with atomic_target(path) as partial, partial.open("wb") as handle:
            image.save(handle, format=format, **options)
    except Exception as error:  # a full disk, missing rights, or metadata that an encoder rejects
        raise ImageError(f"{path} could not be written: {error}") from error


def format_for(path: Path) -> str:
    """The format that the extension of `path` stands for; ImageError names those that are written."""
    format = FORMAT_OF_EXTENSION.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"{path}: pictures are written as {', '.join(FORMAT_OF_EXTENSION)}; choose one of these")
    return format


def comparison_sheet(panels: Mapping[str, Tensor], max_side: int = 1200) -> Tensor:
    """Labelled pictures side by side, and below each the same detail, enlarged.

    The detail is taken where the first and the last picture differ most. panels: label -> [3, H, W] in 0..1,
    all of one size, from left to right. Returns [3, h, w]; a panel's long side is at most `max_side`.
    """
    pictures = [p.detach().float().clamp(0, 1) for p in panels.values()]
    height, width = pictures[0].shape[1:]
    scale = min(1.0, max_side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    detail_size = (max(1, size[0] // 4), max(1, size[1] // 4))
    top, left = _largest_change(pictures[0], pictures[-1], detail_size)
    details = [p[:, top : top + detail_size[0], left : left + detail_size[1]] for p in pictures]
    rows = []
    for row, suffix in ((pictures, ""), (details, ", detail")):
        resized = [_resize(p, size) for p in row]
        labelled = [_label(p, label + suffix) for p, label in zip(resized, panels, strict=True)]
        rows.append(torch.cat(labelled, dim=2))
    return torch.cat(rows, dim=1)


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    """What is known before decoding."""
    width, height = image.size
    if width * height > max_pixels:
        size, limit = f"{width}x{height} pixels", f"{max_pixels / 1e6:.0f} megapixels"
        raise ImageError(f"{path} has {size}, more than {limit}: reduce it first")
    # The further pages of a TIFF and the depth map or second view of a phone's JPEG are no animation.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ImageError(f"{path} is animated: export the frame that you want as a still picture")


def _decode(image: Image.Image, path: Path) -> LoadedImage:
    icc, format = image.info.get("icc_profile"), image.format or ""
    image, exif = _turn_upright(image, path)
    grey = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
    if image.mode == "CMYK":
        image, icc = _cmyk_to_srgb(image, icc, path), None
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        logger.warning("%s: its colour profile does not fit its pixels and is left out", path)
        icc = None
    array = _to_array(image, grey, path)
    planes = torch.from_numpy(array).permute(2, 0, 1)
    colours = 1 if grey else 3
    alpha = planes[colours:].contiguous() if len(planes) > colours else None
    pixels = planes[:colours].expand(3, -1, -1).contiguous()
    return LoadedImage(pixels, alpha, grey, icc or None, exif, format)


def _to_array(image: Image.Image, grey: bool, path: Path) -> np.ndarray:
    """float32 [H, W, C] in 0..1; C is 1 or 3, one more with alpha."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError(f"{path} has more than 16 bits per channel: convert it to 8 or 16 bits")
        return wide[:, :, None].astype(np.float32) / np.float32(65535)
    if image.mode in ("F", "LAB"):
        kind = "floating-point" if image.mode == "F" else "Lab"
        raise ImageError(f"{path} has {kind} pixels: convert it to 8-bit RGB")
    mode = "L" if grey else "RGB"
    if image.has_transparency_data:
        mode = "LA" if grey else "RGBA"
    array = np.asarray(image.convert(mode)).astype(np.float32) / np.float32(255)
    return array.reshape(*array.shape[:2], -1)


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None, path: Path) -> Image.Image:
    if icc:
        try:
            profiles = io.BytesIO(icc), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError) as error:
            logger.warning("%s: its CMYK profile is unusable (%s); colours are approximate", path, error)
    return image.convert("RGB")


def _turn_upright(image: Image.Image, path: Path) -> tuple[Image.Image, bytes | None]:
    """Apply the EXIF orientation; with it the EXIF block, which then says 1.

    The embedded thumbnail, which shows the old picture, is left out.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        exif = image.getexif()
        if image.format == "TIFF":
            exif = _photo_tags(exif)
        if not exif:
            return upright, None
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return upright, exif.tobytes()
    except Exception as error:  # other programs damage EXIF in many ways; the picture is not affected
        logger.warning("%s: its EXIF data are damaged (%s) and are left out", path, error)
        return image, None


def _photo_tags(exif: Image.Exif) -> Image.Exif:
    kept = Image.Exif()
    for tag in _TIFF_PHOTO_TAGS:
        value: Any = dict(exif.get_ifd(tag)) if tag in _EXIF_POINTERS else exif.get(tag)
        if value:
            kept[tag] = value
    return kept


def _encode(path: Path, format: str, pixels: Tensor, like: LoadedImage | None) -> Image.Image:
    planes = [pixels.mean(dim=0, keepdim=True) if like is not None and like.grey else pixels]
    alpha = like.alpha if like is not None else None
    if alpha is not None and bool((alpha < 1).any()):
        if alpha.shape[1:] != pixels.shape[1:]:
            raise ImageError(f"{path}: alpha is {list(alpha.shape)}, but the pixels are {list(pixels.shape)}")
        if format in _WITHOUT_ALPHA:
            logger.warning("%s: %s holds no transparency, it is left out; save as PNG or WebP to keep it", path, format)
        else:
            planes.append(alpha.to(pixels))
    values = torch.cat(planes).detach().float().cpu().clamp(0, 1)
    array = (values * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[2]]
    return Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())


def _save_options(path: Path, format: str, quality: int, like: LoadedImage | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if format == "JPEG":
        options = {"quality": quality, "subsampling": 0}
    elif format == "WEBP":
        options = {"quality": quality, "lossless": quality >= 100, "exact": True}
    if like is None:
        return options
    if format in _WITHOUT_METADATA:
        if like.icc or like.exif:
            logger.warning("%s: %s holds no EXIF data and no colour profile, they are left out", path, format)
        return options
    if like.icc:
        options["icc_profile"] = like.icc
    if like.exif and format == "JPEG" and len(like.exif) > _MAX_JPEG_EXIF:
        logger.warning("%s: its EXIF data are too long for JPEG and are left out", path)
    elif like.exif:
        options["exif"] = like.exif
    return options


def _largest_change(a: Tensor, b: Tensor, window: tuple[int, int]) -> tuple[int, int]:
    """Top left corner of the window around the cell of a 16x16 grid in which a and b differ most."""
    cells = F.adaptive_avg_pool2d((a - b).abs().mean(dim=0, keepdim=True), 16)[0]
    row, column = divmod(int(cells.argmax()), 16)
    corner = []
    for index, length, extent in zip((row, column), a.shape[1:], window, strict=True):
        centre = (index + 0.5) * length / 16
        corner.append(min(max(0, round(centre - extent / 2)), length - extent))
    return corner[0], corner[1]


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def _label(picture: Tensor, text: str) -> Tensor:
    array = (picture.cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, min(image.size) // 28))
    margin = font.size // 2 if isinstance(font, ImageFont.FreeTypeFont) else 5
    left, top, right, bottom = draw.textbbox((2 * margin, 2 * margin), text, font=font)
    draw.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill=(0, 0, 0))
    draw.text((2 * margin, 2 * margin), text, font=font, fill=(255, 255, 255))
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)
