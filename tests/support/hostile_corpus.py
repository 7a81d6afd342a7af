"""Files that a program for photographs meets sooner or later, or that somebody made to break it.

    python tests/support/hostile_corpus.py FOLDER

writes them into FOLDER, the same bytes every time, and prints what each should come to.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms


@dataclass(frozen=True)
class Case:
    """A file `name` with `content`, or something else that `make` puts there.

    error: what the one error about it must say (a regular expression), or None where it is read, as a picture of `size`
    (height, width).
    """

    name: str
    content: bytes | Callable[[Path], None]
    error: str | None = None
    size: tuple[int, int] = (24, 32)

    def write(self, folder: Path) -> Path:
        """Make it in `folder`."""
        path = folder / self.name
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)
        return path


DAMAGED = "is damaged or incomplete .*copy or export it again"
FOREIGN = "is not a JPEG, PNG, WebP, TIFF or BMP picture: convert it"
TOO_LARGE = "reduce it first"
ANIMATED = "is animated: export the frame"


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 32), seed: int = 0) -> Image.Image:
    """A smooth picture with a little noise, of height and width `size`."""
    height, width = size
    channels = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [127 + 100 * np.sin(3 * x + 5 * y + phase) for phase in range(channels)]
    values = np.stack(planes, axis=-1) + random.normal(0, 4, (height, width, channels))
    return Image.frombytes(mode, (width, height), values.clip(0, 255).astype(np.uint8).tobytes())


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def exif(orientation: int | None = None, **more: Any) -> Image.Exif:
    """An EXIF block with a camera's name, or what else is wanted under hexadecimal tags (x010F="Camera")."""
    block = Image.Exif()
    block[0x010F] = "Camera"
    if orientation is not None:
        block[0x0112] = orientation
    for tag, value in more.items():
        block[int(tag[1:], 16)] = value
    return block


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG by hand: `extra` chunks behind the header, then `data` as compressed lines."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF by hand: tag -> (type, count, value or offset), and data from byte 8 on."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def deep(dtype: str, channels: int) -> np.ndarray:
    """Values [H, W, C] of all bits, or floats in 0..1."""
    random = np.random.default_rng(channels)
    if dtype == "f4":
        return random.random((24, 32, channels), np.float32)
    return random.integers(0, 65536, (24, 32, channels), dtype=np.uint16)


def deep_png(channels: int, colour: int) -> bytes:
    """16 bits per channel."""
    rows = deep("u2", channels).astype(">u2").view(np.uint8).reshape(24, -1)
    return png(32, 24, zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes()), depth=16, colour=colour)


def deep_tiff(values: np.ndarray) -> bytes:
    """Uncompressed, one strip."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    shorts = struct.pack("<8H", *[bits] * 4, *[3 if values.dtype.kind == "f" else 1] * 4)
    tags = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, 8 if channels > 2 else bits),
        259: (3, 1, 1),
        262: (3, 1, 2 if channels > 2 else 1),
        273: (4, 1, 24),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, values.nbytes),
        339: (3, channels, 16 if channels > 2 else 3 if values.dtype.kind == "f" else 1),
    }
    return tiff(tags, shorts + values.tobytes())


def cases() -> Iterator[Case]:
    """All files; those with content first, then names, links and the like."""
    yield from _sizes()
    yield from _modes()
    yield from _deep()
    yield from _orientations()
    yield from _metadata()
    yield from _broken()
    yield from _bombs()
    yield from _names()


def _sizes() -> Iterator[Case]:
    for size in ((1, 1), (1, 97), (97, 1), (3, 5000), (37, 53), (63, 65)):
        yield Case(f"size-{size[0]}x{size[1]}.png", encoded(picture(size=size), "PNG"), size=size)
    yield Case("size-5000x3.jpg", encoded(picture(size=(5000, 3)), "JPEG"), size=(5000, 3))


def _modes() -> Iterator[Case]:
    yield Case("grey.jpg", encoded(picture("L"), "JPEG"))
    yield Case("grey-alpha.png", encoded(picture("LA"), "PNG"))
    palette = picture().quantize(16)
    yield Case("palette.png", encoded(palette, "PNG"))
    yield Case("palette.bmp", encoded(palette, "BMP"))
    yield Case("palette-transparent.png", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))))
    yield Case("palette-one-transparent.png", encoded(palette, "PNG", transparency=3))
    yield Case("key-transparent.png", encoded(picture(), "PNG", transparency=(127, 127, 127)))
    yield Case("alpha.png", encoded(picture("RGBA"), "PNG"))
    yield Case("alpha.webp", encoded(picture("RGBA"), "WEBP", lossless=True, exact=True))
    yield Case("alpha.tif", encoded(picture("RGBA"), "TIFF"))
    yield Case("cmyk.jpg", encoded(picture("CMYK"), "JPEG"))
    yield Case("cmyk.tif", encoded(picture("CMYK"), "TIFF"))
    yield Case("ycbcr.tif", encoded(picture("YCbCr"), "TIFF"))
    yield Case("lab.tif", encoded(picture("LAB"), "TIFF"), "has Lab pixels: convert it to 8-bit RGB")
    for format in ("PNG", "TIFF", "BMP"):
        yield Case(f"black-white.{format.lower()[:3]}", encoded(picture("L").convert("1"), format))
    frames = [picture(seed=seed) for seed in range(3)]
    for format in ("PNG", "WEBP"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
        yield Case(f"animated.{format.lower()}", content, ANIMATED)
    yield Case("animated-gif.png", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), FOREIGN)
    yield Case("pages.tif", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    yield Case("two-views.jpg", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))


def _deep() -> Iterator[Case]:
    for channels, colour in ((1, 0), (2, 4), (3, 2), (4, 6)):
        yield Case(f"16-bit-{channels}.png", deep_png(channels, colour))
    for channels in (1, 3):
        yield Case(f"16-bit-{channels}.tif", deep_tiff(deep("u2", channels)))
        yield Case(f"float-{channels}.tif", deep_tiff(deep("f4", channels)))
    yield Case("float-hdr.tif", deep_tiff(deep("f4", 3) * 40), "HDR or linear light")
    for name, value in (("nan", np.nan), ("infinity", -np.inf)):
        values = deep("f4", 3)
        values[5, 5, 1] = value
        yield Case(f"float-{name}.tif", deep_tiff(values), "holds NaN or infinite values")
    yield Case("32-bit.tif", deep_tiff(deep("u2", 3).astype(np.uint32)), "more than 16 bits of values per channel")


def _orientations() -> Iterator[Case]:
    for orientation in range(10):  # 0 and 9 mean nothing
        size = (32, 24) if 5 <= orientation <= 8 else (24, 32)
        yield Case(f"exif-{orientation}.jpg", encoded(picture(), "JPEG", exif=exif(orientation)), size=size)


def _metadata() -> Iterator[Case]:
    image = picture()
    yield Case("exif-garbage.jpg", encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    yield Case("exif-text.jpg", encoded(image, "JPEG", exif=b"Exif\0\0" + b"no TIFF at all" * 40))
    # The EXIF folder lies where the first folder does: whoever follows the pointer never arrives.
    yield Case("exif-circle.jpg", encoded(image, "JPEG", exif=b"Exif\0\0" + tiff({0x8769: (4, 1, 8)})))
    # A count that no file can hold, and text where a number belongs.
    claims = {0x010F: (2, 2**31, 8), 0x0112: (2, 4, 0x31323334)}
    yield Case("exif-claims.jpg", encoded(image, "JPEG", exif=b"Exif\0\0" + tiff(claims)))
    huge = exif(1, x8769={0x927C: bytes(5_000_000)})
    for format in ("PNG", "WEBP", "TIFF"):
        yield Case(f"exif-huge.{format.lower()[:4]}", encoded(image, format, exif=huge.tobytes()))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile[:24] + bytes(12) + profile[36:84] + bytes(16) + profile[100:]  # without the time of its making
    yield Case("icc.jpg", encoded(image, "JPEG", icc_profile=profile))
    yield Case("icc-damaged.jpg", encoded(image, "JPEG", icc_profile=profile[:130] + b"\xff" * 300))
    yield Case("icc-short.png", encoded(image, "PNG", icc_profile=b"short"))
    cmyk = profile[:16] + b"CMYK" + profile[20:]
    yield Case("icc-damaged-cmyk.jpg", encoded(picture("CMYK"), "JPEG", icc_profile=cmyk))
    yield Case("icc-large.jpg", encoded(image, "JPEG", icc_profile=profile + bytes(400_000)))


def _broken() -> Iterator[Case]:
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        extension = {"JPEG": "jpg"}.get(format, format.lower())
        content = encoded(picture(size=(64, 64)), format)
        for share in (0.04, 0.5, 0.95):
            part = content[: max(9, int(len(content) * share))]
            yield Case(f"truncated-{share}.{extension}", part, f"{DAMAGED}|{FOREIGN}")
        yield Case(f"empty.{extension}", b"", r"is empty \(0 bytes\): copy or download it again")
        yield Case(f"zeros.{extension}", bytes(1000), FOREIGN)
    yield Case("truncated-deep.png", deep_png(3, 2)[:2000], DAMAGED)
    yield Case("truncated-deep.tif", deep_tiff(deep("u2", 3))[:3000], f"{DAMAGED}|{FOREIGN}")
    yield Case("png-named.jpg", encoded(picture(), "PNG"))
    yield Case("jpeg-named.tif", encoded(picture(), "JPEG"))
    yield Case("text.jpg", b"Dear Sir or Madam,\n", FOREIGN)
    yield Case("page.png", b"<!DOCTYPE html><html><title>404 Not Found</title></html>", FOREIGN)
    yield Case("script.png", b"#!/bin/sh\ntouch sprung\n", FOREIGN)
    yield Case("postscript.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", FOREIGN)


def _bombs() -> Iterator[Case]:
    """Small files that would like to be large pictures, or large texts."""
    yield Case("bomb-claim.png", png(100_000, 100_000, b""), TOO_LARGE)
    yield Case("bomb-claim-deep.png", png(100_000, 100_000, b"", depth=16), TOO_LARGE)
    line = zlib.compressobj(9)
    lines = b"".join(line.compress(bytes(1 + 20_000 // 8)) for _ in range(20_000)) + line.flush()
    yield Case("bomb-real.png", png(20_000, 20_000, lines, depth=1, colour=0), TOO_LARGE)
    bmp = encoded(picture(), "BMP")
    yield Case("bomb-claim.bmp", bmp[:18] + struct.pack("<ii", 200_000, 200_000) + bmp[26:], TOO_LARGE)
    jpeg = encoded(picture(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    yield Case("bomb-claim.jpg", jpeg[:frame] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 4 :], TOO_LARGE)
    size = {256: (4, 1, 100_000), 257: (4, 1, 100_000)}
    bits = {258: (3, 1, 16), 259: (3, 1, 1), 262: (3, 1, 0), 273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, 100_000)}
    yield Case("bomb-claim.tif", tiff({**size, **bits, 258: (3, 1, 8), 279: (4, 1, 64)}, bytes(64)), TOO_LARGE)
    yield Case("bomb-claim-deep.tif", tiff({**size, **bits, 279: (4, 1, 64)}, bytes(64)), TOO_LARGE)
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") * 2
    webp += encoded(picture(), "WEBP", lossless=True)[12:]
    content = b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp
    yield Case("bomb-claim.webp", content, f"{TOO_LARGE}|{DAMAGED}|{FOREIGN}")
    # 100 MB of zeros in 100 kB: what is read of them must be bounded.
    zeros = zlib.compress(bytes(100_000_000), 9)
    good = zlib.compress(bytes(24 * (1 + 32 * 3)))
    yield Case("bomb-profile.png", png(32, 24, good, extra=chunk(b"iCCP", b"a\0\0" + zeros)), DAMAGED)
    yield Case("bomb-text.png", png(32, 24, good, extra=chunk(b"zTXt", b"Comment\0\0" + zeros)), DAMAGED)
    yield Case("bomb-data.png", png(32, 24, zeros))  # more data than pixels


def _names() -> Iterator[Case]:
    content = encoded(picture(), "PNG")
    names = [
        "new\nline.png",
        "tab\tand\x1b[31mred.png",
        " space .png",
        "-dash.png",
        "100%d{0}%s.png",
        "semi;colon&.png",
    ]
    names += ["äöü-ß-日本語-🙂.png", "e\u0301-decomposed.png", "\u202eright-to-left.png", "x" * 251 + ".png"]
    yield from (Case(name, content) for name in names)
    yield Case(os.fsdecode(b"not-utf-8-\xff\xfe.png"), content)
    yield Case("upper.PNG", content)
    yield Case("good-link.png", lambda path: path.symlink_to("palette.png"))
    nowhere = "is a link that leads nowhere: restore the file that it names"
    yield Case("broken-link.png", lambda path: path.symlink_to("nothing.png"), nowhere)
    yield Case("loop.png", lambda path: path.symlink_to(path.name), nowhere)
    yield Case("pipe.png", os.mkfifo, "is no regular file")


def write_corpus(folder: Path) -> list[Case]:
    """Write all files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    written = list(cases())
    for case in written:
        case.write(folder)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for case in write_corpus(Path(sys.argv[1])):
        print(f"{ascii(case.name):32} {case.error or case.size}")
