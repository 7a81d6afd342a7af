"""Reading and writing photographs: pixels at full depth, alpha, EXIF, colour profile and resolution.

Pillow does most of it; `bit_depth` does what has more than 8 bits per channel.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont, PngImagePlugin, TiffImagePlugin
from torch import Tensor
from torch.nn import functional as F

from . import bit_depth
from .files import atomic_target
from .planes import Block, NotFiniteError, divide_by_alpha, strips, to_planes, to_strips
from .xmp import XmpError, about_the_photograph

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

_RAW_EXTENSIONS = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srf "
    ".srw .x3f".split()
)
"""Many begin with a preview that reads as a picture, and is a small one."""
# Named formats only: some of Pillow's other readers start external programs.
READ_FORMATS = tuple(sorted(set(FORMAT_OF_EXTENSION.values())))
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}
_MAX_BITS = {"PNG": 16, "TIFF": 32}
_WITHOUT_ALPHA = ("JPEG", "BMP")
_WITHOUT_METADATA = ("BMP",)
_MAX_JPEG_EXIF = 65533
_MAX_JPEG_ICC = 255 * 65519
_MAX_JPEG_XMP = 65504
_MAX_OVERSHOOT = 0.1
"""Floating-point pictures may leave 0..1 by this much, as sharpening makes them do; what does so more is HDR."""
_ORIENTATION = 0x0112
_RESOLUTION = (0x011A, 0x011B, 0x0128)
_TIFF_XMP = 0x02BC
_EXIF_FOLDER, _GPS_FOLDER, _INTEROPERABILITY_FOLDER = 0x8769, 0x8825, 0xA005
# Of a TIFF's tags only these describe the photograph; the others describe how that file is laid out.
_TIFF_PHOTO_TAGS = (
    *(0x010E, 0x010F, 0x0110, _ORIENTATION, 0x0131, 0x0132, 0x013B, 0x8298),
    *(_EXIF_FOLDER, _GPS_FOLDER),
)
_SIDES, _EXIF_SIDES = (0x0100, 0x0101), (0xA002, 0xA003)
"""Width and height in EXIF's first folder and in the one that is its own."""
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_CURES = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder",
    errno.EDQUOT: "your share of the disk is full: free some space, or choose another folder",
    errno.EACCES: "it may not be written there: change the permissions, or choose another folder",
    errno.EPERM: "it may not be written there: change the permissions, or choose another folder",
    errno.EROFS: "that disk is read-only: choose another folder",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
}


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
        bits: per channel: 8, 16, or 32 for floating point; `save_image` writes as many where the format can.
        dpi: resolution in pixels per inch, across and down, or None.
        xmp: packet with what it said about the photograph (`xmp.about_the_photograph`), or None.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = ""
    bits: int = 8
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None


def load_image(path: Path | str, max_pixels: int = DEFAULT_MAX_PIXELS) -> LoadedImage:
    """Read a still photograph: JPEG, PNG, WebP, TIFF or BMP, of any colour mode.

    EXIF orientation is applied. CMYK is converted to sRGB, by its profile where there is one. 16 bits per channel
    (PNG, TIFF) and floating point (TIFF) keep their depth; TIFF other than plain grey needs the extra `depth` for it.
    Floating-point values are taken as they are, not as linear light, and must lie in 0..1; an overshoot of up to 0.1
    is clipped with a logged warning. Of a TIFF with several pages the first is read, and a warning logged.

    Beside the result, memory is taken for the decoded file alone: 4 bytes per pixel, 8 for PNG with 16 bits in colour,
    12 for a TIFF of floating point in one strip, and what the decoder needs (WebP: 8 bytes per pixel more).

    Raises ImageError for a missing, unreadable, empty, damaged, animated or foreign file, for more than `max_pixels`
    (checked before decoding), for floating-point pixels out of range, and where the extra is missing.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ImageError(f"{path} {why_no_file(path)}")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes): copy or download it again")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = _read(path, max_pixels)
        for message in dict.fromkeys(str(w.message).strip() for w in caught):
            logger.warning("%s: %s", path, message)
        return loaded
    except ImageError:
        raise
    except bit_depth.UnsuitableError as error:
        raise ImageError(f"{path} {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a JPEG, PNG, WebP, TIFF or BMP picture: convert it to one of these") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read: change its permissions") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory: reduce it first") from error
    except Exception as error:  # damaged files raise whatever the decoder stumbles over
        raise ImageError(f"{path} is damaged or incomplete ({error}): copy or export it again") from error


def save_image(path: Path | str, pixels: Tensor, like: LoadedImage | None = None, quality: int = 95) -> None:
    """Write pixels [3, H, W] in 0..1 (others are clipped) as JPEG, PNG, WebP, TIFF or BMP.

    The extension of `path` decides the format. `like` gives alpha, EXIF, colour profile, resolution, bits per channel
    and whether the picture is grey; without it 8 bits are written. JPEG is written at `quality` without chroma
    subsampling, WebP at `quality` and lossless at 100; the others are lossless (TIFF uncompressed: Pillow's compressed
    writer cannot hold EXIF folders). 16 bits go into PNG and TIFF, floating point into TIFF. What a format cannot hold
    is left out with a logged warning. The file appears whole or not at all.

    Memory is taken for one copy of the picture with 8 bits per channel; writing more bits takes none.

    Raises ImageError for an unknown extension, pixels that are no picture, or a file that cannot be written.
    """
    path = Path(path)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.numel() == 0:
        raise ImageError(f"{path}: pixels must be [3, H, W], not {list(pixels.shape)}")
    for plane in (pixels, like.alpha if like is not None else None):
        if plane is not None and not (
            plane.is_floating_point() and plane.dtype.itemsize > 1 and plane.layout == torch.strided
        ):
            what = "pixels and alpha must be floating point in 0..1, of 16 bits or more"
            raise ImageError(f"{path}: {what}, not {plane.dtype}: divide 8-bit values by 255")
    format = format_that_holds(path, pixels.shape[1], pixels.shape[2])
    like = like or LoadedImage(pixels)
    write = _writer(path, format, pixels, like, quality)
    try:
        with atomic_target(path) as partial, partial.open("wb") as handle:
            write(handle)
    except NotFiniteError as error:
        cure = "if it was computed in fp16, use fp32"
        raise ImageError(f"{path}: the picture holds NaN or infinite values; {cure}") from error
    except OSError as error:
        raise ImageError(f"{path} could not be written: {_CURES.get(error.errno or 0, error)}") from error
    except Exception as error:  # metadata that an encoder rejects
        raise ImageError(f"{path} could not be written: {error}") from error


def format_for(path: Path) -> str:
    """The format that the extension of `path` stands for; ImageError names those that are written."""
    format = FORMAT_OF_EXTENSION.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"{path}: pictures are written as {', '.join(FORMAT_OF_EXTENSION)}; choose one of these")
    return format


def format_that_holds(path: Path, height: int, width: int) -> str:
    """`format_for`, and ImageError also where that format holds no picture of so many pixels a side."""
    format = format_for(path)
    if max(height, width) > _MAX_SIDE.get(format, 2**31):
        raise ImageError(f"{path}: {format} holds at most {_MAX_SIDE[format]} pixels a side: save it as PNG")
    return format


def comparison_sheet(panels: Mapping[str, Tensor], max_side: int = 1200) -> Tensor:
    """Labelled pictures side by side, and below each the same detail, enlarged.

    The detail is taken where the first and the last picture differ most. panels: label -> [3, H, W], all of one size,
    from left to right; what leaves 0..1 is cut off. Returns [3, h, w]; a panel's long side is at most `max_side`.
    """
    pictures = [p.detach().float() for p in panels.values()]
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


# ---------------------------------------------------------------- reading


def why_no_file(path: Path) -> str:
    """What is wrong with a name under which there is no regular file, and the cure."""
    if path.is_dir():
        return "is a folder, not a picture"
    if path.is_symlink():
        return "is a link that leads nowhere: restore the file that it names"
    return "is no regular file" if path.exists() else "does not exist: check the name"


def _read(path: Path, max_pixels: int) -> LoadedImage:
    with path.open("rb") as handle:
        directory = bit_depth.tiff_directory(handle)
        if path.suffix.lower() in _RAW_EXTENSIONS or (directory is not None and bit_depth.is_raw(directory)):
            raise ImageError(f"{path} is a camera's raw file: develop it first, best to a TIFF or PNG of 16 bits")
        if directory is not None and (more := bit_depth.further_pictures(handle)):
            logger.warning("%s: of its %d pages only the first is read; save the others as files", path, more + 1)
        if directory is not None and bit_depth.is_deep_tiff(directory):
            metadata = _tiff_metadata(handle, directory, path)
            with bit_depth.open_tiff(path, directory, max_pixels) as picture:
                return _from_deep(picture, metadata, path)
    with bit_depth.open_any_size(path, READ_FORMATS) as image:
        bit_depth.check_size(image.width, image.height, max_pixels)
        # The further pages of a TIFF and the depth map or second view of a phone's JPEG are no animation.
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise ImageError(f"{path} is animated: export the frame that you want as a still picture")
        if not bit_depth.is_deep_png(image):
            told = directory.get(_ORIENTATION) if directory is not None else None
            # Pillow turns a TIFF once it loads it.
            return _from_pillow(image, path, told if isinstance(told, int) and 1 <= told <= 8 else 1)
        metadata = _metadata(image, path)
    del image  # to know its EXIF block, Pillow has decoded it
    return _from_deep(bit_depth.read_png(path), metadata, path)


@dataclass(frozen=True)
class _Metadata:
    """What a file says beside its pixels, which lie as `orientation` (1 to 8) says."""

    format: str
    icc: bytes | None
    exif: bytes | None
    orientation: int
    dpi: tuple[float, float] | None
    xmp: bytes | None

    def loaded(self, pixels: Tensor, alpha: Tensor | None, grey: bool, bits: int, path: Path) -> LoadedImage:
        """With the pixels, which are upright."""
        icc = self.icc or None
        if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
            logger.warning("%s: its colour profile does not fit its pixels and is left out", path)
            icc = None
        dpi = self.dpi[::-1] if self.dpi and self.orientation >= 5 else self.dpi
        return LoadedImage(pixels, alpha, grey, icc, self.exif, self.format, bits, dpi, self.xmp)


def _from_pillow(image: Image.Image, path: Path, turned: int) -> LoadedImage:
    image.load()
    metadata = _metadata(image, path, turned)
    wide = image.mode == "I" or image.mode.startswith("I;16")
    grey = wide or image.mode in ("1", "L", "LA", "La")
    if image.mode in ("F", "LAB"):
        kind = "floating-point" if image.mode == "F" else "Lab"
        raise ImageError(f"{path} has {kind} pixels: convert it to 8-bit RGB")
    alpha = image.has_transparency_data and not wide
    pixels, opacity = to_planes(
        _pillow_blocks(image, _conversion(image, grey, alpha, path)),
        (image.height, image.width),
        grey=grey,
        alpha=alpha,
        white=65535.0 if wide else 255.0,
        orientation=metadata.orientation,
    )
    if image.mode == "CMYK":
        metadata = replace(metadata, icc=None)
    return metadata.loaded(pixels, opacity, grey, 16 if wide else 8, path)


def _pillow_blocks(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Iterator[Block]:
    for top, bottom in strips(image.height, image.width):
        values = np.asarray(convert(image.crop((0, top, image.width, bottom))))
        yield Block(values.reshape(*values.shape[:2], -1), top)


def _conversion(image: Image.Image, grey: bool, alpha: bool, path: Path) -> Callable[[Image.Image], Image.Image]:
    """What turns a strip of `image` into grey or RGB, with alpha or without."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return partial(_within_16_bits, path)
    if image.mode == "CMYK" and (icc := image.info.get("icc_profile")):
        try:
            profiles = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(*profiles, "CMYK", "RGB")
            return lambda strip: ImageCms.applyTransform(strip, transform) or strip
        except (ImageCms.PyCMSError, OSError) as error:
            logger.warning("%s: its CMYK profile is unusable (%s); colours are approximate", path, error)
    mode = ("L" if grey else "RGB") + ("A" if alpha else "")
    return lambda strip: strip if strip.mode == mode else strip.convert(mode)


def _within_16_bits(path: Path, strip: Image.Image) -> Image.Image:
    if strip.mode != "I":  # I;16 of some byte order
        return strip
    low, high = cast(tuple[int, int], strip.getextrema())
    if low < 0 or high > 65535:
        raise ImageError(f"{path} has more than 16 bits per channel: convert it to 8 or 16 bits")
    return strip


def _from_deep(picture: bit_depth.DeepPicture, metadata: _Metadata, path: Path) -> LoadedImage:
    pixels, alpha = to_planes(
        picture.blocks,
        picture.size,
        grey=picture.grey,
        alpha=picture.alpha,
        white=picture.white,
        orientation=metadata.orientation,
    )
    if picture.bits == 32:
        for plane in (pixels, alpha):
            if plane is not None:
                _clip_overshoot(plane, path)
    if picture.premultiplied and alpha is not None:
        divide_by_alpha(pixels, alpha)
    return metadata.loaded(pixels, alpha, picture.grey, picture.bits, path)


def _clip_overshoot(plane: Tensor, path: Path) -> None:
    low, high = (float(x) for x in plane.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{path} holds NaN or infinite values: replace them, or export it again")
    if low < -_MAX_OVERSHOOT or high > 1 + _MAX_OVERSHOOT:
        cure = "it looks like HDR or linear light; bring its tones to 0..1 as a display shows them, and export it again"
        raise ImageError(f"{path} has floating-point values from {low:.3g} to {high:.3g}: {cure}")
    if low < 0 or high > 1:
        logger.warning("%s: its values reach from %.3g to %.3g and are clipped to 0..1", path, low, high)
        plane.clamp_(0, 1)


def _metadata(image: Image.Image, path: Path, turned: int = 1) -> _Metadata:
    """Of a picture that Pillow has loaded; `turned` is the orientation of a TIFF, by which Pillow has turned the pixels
    already, and which it then says is 1."""
    icc = image.info.get("icc_profile")
    if not icc and image.format == "PNG" and not _looks_like_srgb(image.info):
        logger.warning("%s: its gAMA and cHRM chunks are left out; embed a colour profile to keep the colours", path)
    orientation, exif = _exif(image.getexif, path, image.format == "TIFF", turned)
    dpi = _dpi(image.info.get("dpi"))
    # Text in a PNG before Pillow 11.
    xmp = _xmp(image.info.get("xmp") or image.info.get(bit_depth.PNG_XMP), path)
    return _Metadata(image.format or "", icc, exif, orientation, dpi[::-1] if dpi and turned >= 5 else dpi, xmp)


def _tiff_metadata(handle: BinaryIO, directory: TiffImagePlugin.ImageFileDirectory_v2, path: Path) -> _Metadata:
    def tags() -> Image.Exif:
        exif = Image.Exif()
        handle.seek(2)
        exif.bigtiff = b"+" in handle.read(2)
        exif.endian = "<" if directory.prefix == b"II" else ">"
        exif.load_from_fp(handle, directory.offset)
        return exif

    across, down, unit = (directory.get(tag) for tag in _RESOLUTION)
    factor = {2: 1.0, 3: 2.54}.get(unit or 2)
    dpi = _dpi((across * factor, down * factor)) if factor and across and down else None
    orientation, exif = _exif(tags, path, is_tiff=True)
    icc = directory.get(0x8773)
    xmp = _xmp(directory.get(_TIFF_XMP), path)
    return _Metadata("TIFF", icc if isinstance(icc, bytes) else None, exif, orientation, dpi, xmp)


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(x) for x in value)
    except (TypeError, ValueError, ZeroDivisionError):  # none, or a fraction of zeros
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def _exif(read: Callable[[], Image.Exif], path: Path, is_tiff: bool, turned: int = 1) -> tuple[int, bytes | None]:
    """Orientation, and the EXIF block with orientation 1; `turned` as for `_metadata`.

    The embedded thumbnail, which shows the old picture, is left out.
    """
    orientation = 1
    try:
        exif = read()
        stored = exif.get(_ORIENTATION, 1)
        orientation = stored if stored in range(1, 9) else 1
        if max(orientation, turned) >= 5:
            _swap_sides(exif)
        if is_tiff:
            exif = _photo_tags(exif)
        if not exif:
            return orientation, None
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return orientation, exif.tobytes()
    except Exception as error:  # other programs damage EXIF in many ways; the picture is not affected
        logger.warning("%s: its EXIF data are damaged (%s) and are left out", path, error)
        return orientation, None


def _xmp(packet: Any, path: Path) -> bytes | None:
    try:
        packet = packet.encode() if isinstance(packet, str) else packet
        return about_the_photograph(packet) if isinstance(packet, bytes) else None
    except XmpError as error:
        logger.warning("%s: its XMP data are damaged (%s) and are left out", path, error)
        return None


def _photo_tags(exif: Image.Exif) -> Image.Exif:
    kept = Image.Exif()
    for tag in _TIFF_PHOTO_TAGS:
        value: Any = _folder(exif, tag) if tag in (_EXIF_FOLDER, _GPS_FOLDER) else exif.get(tag)
        if value:
            kept[tag] = value
    return kept


def _swap_sides(exif: Image.Exif) -> None:
    """In what EXIF says of a picture's size, where it is about to be turned upright."""
    for entries, (wide, high) in ((exif, _SIDES), (exif.get_ifd(_EXIF_FOLDER), _EXIF_SIDES)):
        if wide in entries and high in entries:
            entries[wide], entries[high] = entries[high], entries[wide]


def _folder(exif: Image.Exif, tag: int) -> dict[int, Any]:
    entries = dict(exif.get_ifd(tag))
    if _INTEROPERABILITY_FOLDER in entries:
        entries[_INTEROPERABILITY_FOLDER] = dict(exif.get_ifd(_INTEROPERABILITY_FOLDER))
    return entries


def _looks_like_srgb(info: Mapping[Any, Any]) -> bool:
    """Of a PNG's chunks: they say sRGB, or nothing else."""
    primaries = info.get("chromaticity", _SRGB_PRIMARIES)
    same = all(abs(a - b) < 0.005 for a, b in zip(primaries, _SRGB_PRIMARIES, strict=False))
    return "srgb" in info or (same and abs(info.get("gamma", 0.45455) - 0.45455) < 0.01)


# ---------------------------------------------------------------- writing


def _writer(path: Path, format: str, pixels: Tensor, like: LoadedImage, quality: int) -> Callable[[BinaryIO], None]:
    """What writes the picture into a file."""
    alpha = _alpha_to_write(path, format, pixels, like)
    bits = _bits_to_write(path, format, like)
    size, channels = (pixels.shape[1], pixels.shape[2]), (1 if like.grey else 3) + (alpha is not None)
    rows = to_strips(pixels, alpha, grey=like.grey, bits=bits)

    def with_pillow(handle: BinaryIO) -> None:
        options = _save_options(path, format, quality, like)
        image = Image.new(("L", "LA", "RGB", "RGBA")[channels - 1], size[::-1])
        top = 0
        for strip in rows:
            image.paste(Image.fromarray(strip.squeeze(2) if channels == 1 else strip), (0, top))
            top += len(strip)
        image.save(handle, format=format, **options)

    def deep_png(handle: BinaryIO) -> None:
        bit_depth.write_png(
            handle, rows, size, channels=channels, icc=like.icc, exif=like.exif, dpi=like.dpi, xmp=like.xmp
        )

    def deep_tiff(handle: BinaryIO) -> None:
        exif = _tiff_exif(like)
        bit_depth.write_tiff(handle, rows, size, channels=channels, bits=bits, icc=like.icc, exif=exif, dpi=like.dpi)

    if bits == 8:
        return with_pillow
    return deep_png if format == "PNG" else deep_tiff


def _alpha_to_write(path: Path, format: str, pixels: Tensor, like: LoadedImage) -> Tensor | None:
    """None also for an alpha that is opaque everywhere."""
    alpha = like.alpha
    if alpha is None:
        return None
    if alpha.shape != (1, *pixels.shape[1:]):
        raise ImageError(f"{path}: alpha is {list(alpha.shape)}, but the pixels are {list(pixels.shape)}")
    if bool((alpha >= 1).all()):
        return None
    if format in _WITHOUT_ALPHA:
        logger.warning("%s: %s holds no transparency, it is left out; save as PNG or WebP to keep it", path, format)
        return None
    return alpha


def _bits_to_write(path: Path, format: str, like: LoadedImage) -> int:
    held = _MAX_BITS.get(format, 8)
    if like.bits > held:
        had = "floating-point values" if like.bits == 32 else f"{like.bits} bits per channel"
        better = "TIFF" if like.bits == 32 else "PNG or TIFF"
        text = "%s: the picture had %s, but %s holds %d bits, which are written; save as %s to keep them"
        logger.warning(text, path, had, format, held, better)
    return min(like.bits, held)


def _save_options(path: Path, format: str, quality: int, like: LoadedImage) -> dict[str, Any]:
    """Of Pillow's writers."""
    options: dict[str, Any] = {}
    if format == "JPEG":
        options = {"quality": quality, "subsampling": 0}
    elif format == "WEBP":
        options = {"quality": quality, "lossless": quality >= 100, "exact": True}
    if like.dpi and format == "JPEG" and not all(0.5 <= x < 65535.5 for x in like.dpi):
        logger.warning("%s: its resolution is beyond what JPEG can hold and is left out", path)
    elif like.dpi:
        options["dpi"] = like.dpi
    if format in _WITHOUT_METADATA:
        if like.icc or like.exif or like.xmp:
            logger.warning("%s: %s holds no EXIF or XMP data and no colour profile: left out", path, format)
        return options
    if like.icc and format == "JPEG" and len(like.icc) > _MAX_JPEG_ICC:
        logger.warning("%s: its colour profile is too long for JPEG and is left out; save as PNG to keep it", path)
    elif like.icc:
        options["icc_profile"] = like.icc
    if format == "TIFF":
        return options | {"exif": _tiff_exif(like).tobytes()}
    exif = _exif_with_resolution(like) if format == "WEBP" else like.exif
    if exif and format == "JPEG" and len(exif) > _MAX_JPEG_EXIF:
        logger.warning("%s: its EXIF data are too long for JPEG and are left out", path)
    elif exif:
        options["exif"] = exif
    return options | _xmp_options(path, format, like)


def _xmp_options(path: Path, format: str, like: LoadedImage) -> dict[str, Any]:
    """Of Pillow's writers. JPEG needs Pillow 11 for it."""
    if not like.xmp:
        return {}
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt(bit_depth.PNG_XMP, like.xmp.decode())
        return {"pnginfo": text}
    if format == "JPEG" and len(like.xmp) > _MAX_JPEG_XMP:
        logger.warning("%s: its XMP data are too long for JPEG and are left out", path)
        return {}
    return {"xmp": like.xmp}


def _tiff_exif(like: LoadedImage) -> Image.Exif:
    """What TIFF keeps of EXIF and XMP: tags of the photograph, and none that would speak of the file's layout."""
    exif = _photo_tags(_parsed(like.exif)) if like.exif else Image.Exif()
    if like.xmp:
        exif[_TIFF_XMP] = like.xmp
    return exif


def _exif_with_resolution(like: LoadedImage) -> bytes | None:
    """For WebP, which has no other place for it."""
    if not like.dpi:
        return like.exif
    exif = _parsed(like.exif) if like.exif else Image.Exif()
    if _RESOLUTION[0] not in exif:
        for tag, value in zip(_RESOLUTION, (*like.dpi, 2), strict=True):  # 2: inch
            exif[tag] = value
    return exif.tobytes()


def _parsed(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


# ---------------------------------------------------------------- comparison sheet


def _largest_change(a: Tensor, b: Tensor, window: tuple[int, int]) -> tuple[int, int]:
    """Top left corner of the window around the cell of a 16x16 grid in which a and b differ most."""
    height, cells = a.shape[1], []
    for row in range(16):  # of a large picture no copy is made
        rows = slice(row * height // 16, -(-(row + 1) * height // 16))
        change = (a[:, rows] - b[:, rows]).abs_().mean(dim=0, keepdim=True)
        cells.append(F.adaptive_avg_pool2d(change, (1, 16)))
    row, column = divmod(int(torch.cat(cells).argmax()), 16)
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
