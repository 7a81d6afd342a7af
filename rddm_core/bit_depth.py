"""PNG and TIFF files with more than 8 bits per channel, which Pillow handles with a single channel alone.

TIFF is read by tifffile, which takes most compressions from imagecodecs: the extra `depth`. PNG is read by Pillow, once
for the high and once for the low bytes. Both are written here, strip by strip: tifffile writes no EXIF folders, and the
libraries that write PNG with 16 bits hold the picture two more times.
"""

from __future__ import annotations

import importlib
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from .planes import Block, strips

PNG_XMP = "XML:com.adobe.xmp"
"""Keyword of the text that an XMP packet is in a PNG."""
INSTALL = "pip install tifffile imagecodecs"
_SUBFILE, _COLOUR_FILTERS, _LINEAR_RAW = 254, 32803, 34892
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 259, 262, 339
_REDUCED, _OPACITY = 1, 4  # bits of _SUBFILE
_PAGES = 100
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_FLOATING_POINT = 3
_PREMULTIPLIED, _TRANSPARENCY = 1, 2
# None, LZW, Deflate (two numbers), PackBits, Zstandard. tifffile knows dozens more, some of them decoders that few
# eyes have looked at.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 50000)
_PILLOWS_LIMIT = threading.Lock()
"""Held by the thread that has taken it away."""
_READ_BYTES = 1 << 22
_PNG_COMPRESSION = 3
"""Of zlib. The noise in the low bytes does not compress: 6 gains 1 % and takes half as long again."""


class UnsuitableError(ValueError):
    """Why a file cannot be read or written, and the cure; whoever catches it knows the file's name."""


@dataclass(frozen=True)
class DeepPicture:
    """What a file holds.

    Attributes:
        size: height and width, as stored.
        grey, alpha: one colour channel, otherwise three; one more for transparency.
        premultiplied: the colours were multiplied by alpha.
        bits: 16, or 32 for floating point.
        white: the value of full intensity.
        blocks: the values; they are decoded while one goes through them.
    """

    size: tuple[int, int]
    grey: bool
    alpha: bool
    premultiplied: bool
    bits: int
    white: float
    blocks: Iterator[Block]


# ---------------------------------------------------------------- reading


def tiff_directory(handle: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """The tags of the first page; None for what is no TIFF, or one too damaged for it.

    Raises UnsuitableError for the one kind that Pillow takes for a TIFF but cannot read.
    """
    head = handle.read(4)
    handle.seek(0)
    if head == b"MM\0+":
        raise UnsuitableError(
            "is a BigTIFF with the high byte first, which cannot be read: save it as TIFF, or as a BigTIFF with the "
            "low byte first"
        )
    if head not in (b"II*\0", b"MM\0*", b"II+\0"):
        return None
    try:
        directory = _tiff_header(handle)
        handle.seek(directory.next)
        directory.load(handle)
    except Exception:  # damaged in one of many ways: Pillow will say which
        return None
    return directory


def further_pictures(handle: BinaryIO) -> int:
    """How many pages of a TIFF, beside the first, are pictures of their own: neither a reduced copy nor a mask of
    transparency. It looks through at most 100 of them; a damaged one ends the search."""
    handle.seek(0)
    count, seen = 0, set[int]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that nobody reads
        try:
            directory = _tiff_header(handle)
            while directory.next and directory.next not in seen and len(seen) < _PAGES:
                seen.add(directory.next)
                handle.seek(directory.next)
                directory.load(handle)
                kind = directory.get(_SUBFILE)
                own = _WIDTH in directory and not (isinstance(kind, int) and kind & (_REDUCED | _OPACITY))
                count += own and len(seen) > 1
        except Exception:  # damaged: it is not read anyway
            pass
    return count


def _tiff_header(handle: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Empty, but for `next`: where the first directory lies."""
    head = handle.read(8)
    return TiffImagePlugin.ImageFileDirectory_v2(head + (handle.read(8) if b"+" in head[:4] else b""))


def is_raw(directory: Mapping[int, Any]) -> bool:
    """Whether a TIFF with these tags of its first page is what a camera's sensor saw, or begins with a small preview of
    it, as many raw files do."""
    kind = directory.get(_SUBFILE)
    reduced = isinstance(kind, int) and kind & _REDUCED
    return bool(reduced) or directory.get(_PHOTOMETRIC) in (_COLOUR_FILTERS, _LINEAR_RAW)


def is_deep_tiff(directory: Mapping[int, Any]) -> bool:
    """Whether a TIFF with these tags needs `open_tiff`: more than 8 bits, but not plain grey with 16."""
    bits = _numbers(directory.get(_BITS, 1))
    plain_grey = bits == (16,) and directory.get(_PHOTOMETRIC) == _MIN_IS_BLACK
    return max(bits) > 8 and not (plain_grey and _numbers(directory.get(_SAMPLE_FORMAT, 1)) == (1,))


def is_deep_png(image: ImageFile.ImageFile) -> bool:
    """Whether a PNG that Pillow has opened, but not loaded, needs `read_png`."""
    if image.format != "PNG" or not image.tile or not str(image.tile[0][3]).endswith("16B"):
        return False
    return image.mode in ("RGB", "RGBA", "LA") or "transparency" in image.info


@contextmanager
def open_tiff(path: Path, directory: Mapping[int, Any], max_pixels: int) -> Iterator[DeepPicture]:
    """The first page of a TIFF with 9 to 16 bits per channel or 16 to 32 bits of floating point.

    Raises UnsuitableError for other kinds of pixels, more than `max_pixels`, and missing libraries. A damaged file
    raises what tifffile and imagecodecs make of it, here or when the blocks are read.
    """
    bits, formats = _numbers(directory.get(_BITS, 1)), _numbers(directory.get(_SAMPLE_FORMAT, 1))
    floating = formats[0] == _FLOATING_POINT
    photometric, compression = directory.get(_PHOTOMETRIC), directory.get(_COMPRESSION, 1)
    height, width = directory.get(_HEIGHT, 0), directory.get(_WIDTH, 0)
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise UnsuitableError("has channels of different kinds: convert it to 16 bits per channel")
    if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
        raise UnsuitableError(f"has {bits[0]}-bit pixels that are neither grey nor RGB: convert it to RGB")
    if (bits[0] not in (16, 32)) if floating else (bits[0] > 16 or formats[0] != 1):
        kind = f"{bits[0]}-bit floating-point" if floating else "signed" if bits[0] <= 16 else "more than 16 bits of"
        raise UnsuitableError(f"has {kind} values per channel: convert it to 16 bits, or 32 of floating point")
    if compression not in _COMPRESSIONS:
        raise UnsuitableError(f"is compressed in a rare way (TIFF number {compression}): save it uncompressed")
    check_size(width, height, max_pixels)
    if compression != 1 or bits[0] not in (16, 32):  # others are packed
        _library("imagecodecs")
    with _library("tifffile").TiffFile(path) as file:
        page = file.pages[0]
        count = math.prod(page.chunked)
        if (page.imagelength, page.imagewidth, page.imagedepth) != (height, width, 1):
            raise ValueError("its size is not clear")
        if len(page.dataoffsets) != count or len(page.databytecounts) != count:
            raise ValueError("parts of the picture are missing")
        if math.prod(page.chunks) > max(max_pixels, 1 << 20) * 4:
            raise ValueError("its tiles are larger than any picture")
        if any(a + n > file.filehandle.size for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise ValueError("the file ends too early")
        colours = 3 if photometric == _RGB else 1
        extra = tuple(page.extrasamples or ())
        if page.samplesperpixel < colours:
            raise ValueError("channels are missing")
        opacity = int(extra[0]) if extra and page.samplesperpixel > colours else 0
        white = 1.0 if floating else 2.0 ** bits[0] - 1
        yield DeepPicture(
            size=(height, width),
            grey=colours == 1,
            alpha=opacity in (_PREMULTIPLIED, _TRANSPARENCY),
            premultiplied=opacity == _PREMULTIPLIED,
            bits=32 if floating else 16,
            white=white,
            blocks=_tiff_blocks(page, white if photometric == _MIN_IS_WHITE else None),
        )


def read_png(path: Path) -> DeepPicture:
    """A PNG for which `is_deep_png` holds. A damaged file raises what Pillow makes of it."""
    with open_any_size(path, ("PNG",)) as image:
        rawmode, size, key = str(image.tile[0][3]), (image.height, image.width), image.info.get("transparency")
    # Of 16 bits Pillow keeps 8, by default the high ones; told that the bytes come in the other order, the low ones.
    # For grey with alpha it knows one order only, but as four channels it shows all of the bytes.
    rawmodes = {"I;16B": ("I;16B",), "LA;16B": ("RGBA",)}.get(rawmode, (rawmode, rawmode.replace("16B", "16L")))
    pictures = [_png_bytes(path, name) for name in rawmodes]
    grey = rawmode in ("I;16B", "LA;16B")
    alpha = rawmode in ("LA;16B", "RGBA;16B") or key is not None
    return DeepPicture(size, grey, alpha, False, 16, 65535.0, _png_blocks(pictures, key))


@contextmanager
def open_any_size(path: Path, formats: tuple[str, ...]) -> Iterator[ImageFile.ImageFile]:
    """`Image.open` without Pillow's own limit, which counts for the whole process; see `check_size`.

    By a handle: a TIFF that it opens by name and that lies on its side, Pillow maps into memory with wrong rows.
    """
    with path.open("rb") as handle:
        with _PILLOWS_LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                opened = Image.open(handle, formats=formats)  # reads the header, where the limit is looked at
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with opened as image:
            yield image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise UnsuitableError for more than `max_pixels`."""
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:.0f} megapixels"
        raise UnsuitableError(f"has {width}x{height} pixels, more than {limit}: reduce it first")


def _png_bytes(path: Path, rawmode: str) -> Image.Image:
    """The picture, the bytes of each pixel unpacked as `rawmode` says."""
    with open_any_size(path, ("PNG",)) as image:
        image.tile = [(*image.tile[0][:3], rawmode)]  # type: ignore[list-item]  # plain tuples until Pillow 11
        image.load()
    return image


def _png_blocks(pictures: list[Image.Image], key: Any) -> Iterator[Block]:
    """key: the value or colour that is transparent, or None."""
    for top, bottom in strips(pictures[0].height, pictures[0].width):
        parts = [np.asarray(picture.crop((0, top, picture.width, bottom))) for picture in pictures]
        parts = [part.reshape(*part.shape[:2], -1).astype(np.uint16) for part in parts]
        if len(parts) == 2:
            values = parts[0] << 8 | parts[1]
        elif parts[0].shape[2] == 4:
            values = parts[0][:, :, ::2] << 8 | parts[0][:, :, 1::2]
        else:
            values = parts[0]
        if key is not None:
            seen = (values != np.asarray(key)).any(axis=2, keepdims=True)
            values = np.concatenate((values, seen * np.uint16(65535)), axis=2)
        yield Block(values, top)


def _tiff_blocks(page: Any, inverted_white: float | None) -> Iterator[Block]:
    _, _, height, width, _ = page.shaped
    for values, (plane, _, top, left, channel), _ in page.segments(maxworkers=1, buffersize=_READ_BYTES):
        if values is None:
            raise ValueError("parts of the picture are missing")
        values = values[0, : height - top, : width - left]  # tiles reach beyond the borders
        if inverted_white is not None and plane + channel == 0:  # alpha is never inverted
            values = np.concatenate((inverted_white - values[:, :, :1], values[:, :, 1:]), axis=2)
        yield Block(values, top, left, plane + channel)


def _numbers(value: Any) -> tuple[int, ...]:
    """A tag's value or values."""
    return tuple(int(v) for v in value) if isinstance(value, tuple) and value else (int(value or 1),)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsuitableError(f"has more than 8 bits per channel, which needs {name}: {INSTALL}") from error


# ---------------------------------------------------------------- writing


def write_png(
    handle: BinaryIO,
    rows: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    channels: int,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
) -> None:
    """Write uint16 strips [h, W, C] as PNG.

    Args:
        size: height and width.
        channels: C, from 1 (grey) to 4 (RGB and alpha).
    """
    colour_type = (0, 4, 2, 6)[channels - 1]
    handle.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(handle, b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 16, colour_type, 0, 0, 0))
    if icc:
        _write_chunk(handle, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if dpi:
        _write_chunk(handle, b"pHYs", struct.pack(">IIB", *(round(x / 0.0254) for x in dpi), 1))  # 1: per metre
    if exif:
        _write_chunk(handle, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if xmp:  # not compressed, no language
        _write_chunk(handle, b"iTXt", PNG_XMP.encode() + b"\0\0\0\0\0" + xmp)
    deflate, pixel = zlib.compressobj(_PNG_COMPRESSION), 2 * channels
    for strip in rows:
        lines = strip.astype(">u2").view(np.uint8).reshape(len(strip), -1)
        filtered = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
        filtered[:, 0] = 1  # filter "Sub": each byte less that of the pixel before it
        filtered[:, 1 : 1 + pixel] = lines[:, :pixel]
        np.subtract(lines[:, pixel:], lines[:, :-pixel], out=filtered[:, 1 + pixel :])
        _write_chunk(handle, b"IDAT", deflate.compress(filtered.data))
    _write_chunk(handle, b"IDAT", deflate.flush())
    _write_chunk(handle, b"IEND", b"")


def write_tiff(
    handle: BinaryIO,
    rows: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    channels: int,
    bits: int,
    icc: bytes | None = None,
    exif: Mapping[int, Any] | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write uint16 (`bits` = 16) or float32 (32) strips [h, W, C] as an uncompressed TIFF.

    Args:
        size: height and width.
        channels: C, from 1 (grey) to 4 (RGB and alpha, not premultiplied).
        exif: tags, with the EXIF and GPS folders as mappings.
    """
    height, width = size
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (exif or {}).items():
        directory[tag] = value
    directory[_WIDTH], directory[_HEIGHT] = width, height
    directory[_BITS] = (bits,) * channels
    directory[_SAMPLE_FORMAT] = (_FLOATING_POINT if bits == 32 else 1,) * channels
    directory[_COMPRESSION] = 1
    directory[_PHOTOMETRIC] = _RGB if channels >= 3 else _MIN_IS_BLACK
    directory[TiffImagePlugin.SAMPLESPERPIXEL], directory[TiffImagePlugin.PLANAR_CONFIGURATION] = channels, 1
    if channels in (2, 4):
        directory[TiffImagePlugin.EXTRASAMPLES] = _TRANSPARENCY
    # One strip: its offset counts from the end of the directory, which Pillow adds.
    directory[TiffImagePlugin.ROWSPERSTRIP] = height
    directory.tagtype[TiffImagePlugin.STRIPBYTECOUNTS] = directory.tagtype[TiffImagePlugin.STRIPOFFSETS] = 4
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = height * width * channels * bits // 8
    directory[TiffImagePlugin.STRIPOFFSETS] = 0
    if icc:
        directory[TiffImagePlugin.ICCPROFILE] = icc
    if dpi:
        directory[TiffImagePlugin.RESOLUTION_UNIT] = 2  # inch
        directory[TiffImagePlugin.X_RESOLUTION], directory[TiffImagePlugin.Y_RESOLUTION] = dpi
    directory.save(handle)
    for strip in rows:
        handle.write(strip.astype(strip.dtype.newbyteorder("<"), copy=False).data)


def _write_chunk(handle: BinaryIO, kind: bytes, data: bytes) -> None:
    handle.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
