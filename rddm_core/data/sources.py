"""Readers of the image collections named by a recipe: every one is a folder or a manifest with a `split` column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..bit_depth import check_size, open_any_size
from ..images import DEFAULT_MAX_PIXELS, READ_FORMATS, ImageError, load_image
from ..metrics import to_8bit


@dataclass(frozen=True)
class SharpPhoto:
    """An all-in-focus photograph; `texture` in 0..1 is the share of its area known to be sharp and textured."""

    path: Path
    texture: float
    segments: Path | None = None


@dataclass(frozen=True)
class PhotoPair:
    """A defocused photograph and its all-in-focus target, registered to the pixel."""

    blurred: Path
    sharp: Path
    scene: str


@dataclass(frozen=True)
class DepthPhoto:
    """An all-in-focus photograph and its depth: any values that grow, or with `near_is_bright` fall, with distance."""

    image: Path
    depth: Path
    near_is_bright: bool = False


@dataclass(frozen=True)
class MaskedPhoto:
    """A photograph and its binary mask, white where it is out of focus."""

    image: Path
    mask: Path


def read_rgb(path: Path) -> np.ndarray:
    """Decode to uint8 [H, W, 3], as the evaluation does: upright, 16 bits rounded. Raises ImageError."""
    return to_8bit(load_image(path).pixels)[0]


def read_mask(path: Path) -> np.ndarray:
    """Decode to the brightness of every pixel, uint8 [H, W], upright, 16 bits rounded. Raises ImageError."""
    with opened_upright(path) as image:
        if image.mode.startswith("I"):  # Pillow would clip at 255
            return (np.asarray(image, np.float32).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.array(image.convert("L"))


@contextmanager
def opened_upright(path: Path) -> Iterator[Image.Image]:
    """The picture as Pillow has it, upright. Raises ImageError, which names the file."""
    try:
        with open_any_size(path, READ_FORMATS) as image:
            check_size(image.width, image.height, DEFAULT_MAX_PIXELS)
            yield ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path} is missing, damaged or no picture ({error}): copy or download it again") from error


def check_sizes(partners: Iterable[tuple[Path, Path]]) -> None:
    """Compare the sizes of pictures that lie over each other, by their headers alone; ValueError names two that differ.

    Raises OSError for a file that is missing or no picture.
    """
    for paths in partners:
        sizes = []
        for path in paths:
            with open_any_size(path, READ_FORMATS) as image:
                # On its side; of a TIFF Pillow gives the size that it will have upright.
                lies = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                sizes.append("x".join(map(str, image.size[::-1] if lies else image.size)))
        if sizes[0] != sizes[1]:
            raise ValueError(f"{paths[0]} is {sizes[0]}, but {paths[1]} is {sizes[1]}: they must be of one size")


def read_labels(path: Path) -> np.ndarray:
    """Decode the number of every pixel's segment, uint8 [H, W]: of palette images the index, whatever its colour.

    Raises ImageError.
    """
    with opened_upright(path) as image:
        return np.array(image if image.mode in ("L", "P") else image.convert("L"))


def open_table(path: Path) -> csv.DictReader[str]:
    """The rows of a CSV file in UTF-8, with a byte order mark or without one, as spreadsheets save it.

    Raises OSError where it cannot be read, ValueError for another encoding.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8, save it as such: {error}") from error
    return csv.DictReader(io.StringIO(text, newline=""))


def read_rows(manifest: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a manifest, each with all of `columns`; ValueError names the file and what is wrong with it."""
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} does not exist: name the folder of an image collection, which has one")
    reader = open_table(manifest)
    missing = [c for c in columns if c not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"{manifest} lacks the columns {', '.join(missing)}")
    rows = []
    for row in reader:
        if short := [c for c in columns if row[c] is None]:
            raise ValueError(f"{manifest}, line {reader.line_num}: nothing in the column {short[0]}")
        rows.append(row)
    return rows


def sharp_photos(root: Path, split: str, segments: Path | None = None) -> list[SharpPhoto]:
    """`root/manifest.csv` with columns file, textured_tile_frac, sharp_tile_frac, split.

    `segments`: folder with NAME_seg.png label images for photographs called PREFIX_NAME.jpg.
    """
    photos = []
    for row in read_rows(root / "manifest.csv", ("file", "textured_tile_frac", "sharp_tile_frac", "split")):
        if row["split"] != split:
            continue
        path = root / row["file"]
        labels = segments / f"{path.stem.rsplit('_', 1)[-1]}_seg.png" if segments else None
        texture = float(row["textured_tile_frac"]) * float(row["sharp_tile_frac"])
        photos.append(SharpPhoto(path, texture, labels if labels and labels.is_file() else None))
    return photos


def photo_pairs(root: Path, split: str) -> list[PhotoPair]:
    """`root/manifest.csv` with columns blur, sharp, split and optionally scene."""
    rows = read_rows(root / "manifest.csv", ("blur", "sharp", "split"))
    return [
        PhotoPair(root / r["blur"], root / r["sharp"], r.get("scene") or r["sharp"])
        for r in rows
        if r["split"] == split
    ]


def depth_photos(root: Path) -> list[DepthPhoto]:
    """`root/manifest.csv` with columns image, depth, type; of them the rows of metric depth and of disparity."""
    return [
        DepthPhoto(root / r["image"], root / r["depth"], near_is_bright="disparity" in r["type"])
        for r in read_rows(root / "manifest.csv", ("image", "depth", "type"))
        if "disparity" in r["type"] or "metric depth" in r["type"]
    ]


def focal_stack_depths(root: Path, split: str) -> list[DepthPhoto]:
    """The composites of focal stacks of `root/manifest.csv`, with the index of the sharpest slice as their depth.

    Only stacks of many slices: two slices are no depth map. Every composite comes once.
    """
    rows = read_rows(root / "manifest.csv", ("sharp", "split"))
    found = {
        r["sharp"]: DepthPhoto(root / r["sharp"], root / r["index_map"])
        for r in rows
        if r["split"] == split and r.get("index_map") and int(r.get("n_slices") or 0) >= 5
    }
    return list(found.values())


def masked_photos(root: Path, split: str) -> list[MaskedPhoto]:
    """`root/manifest.csv` with columns image, mask, split; paths are relative to the parent of `root`."""
    rows = read_rows(root / "manifest.csv", ("image", "mask", "split"))
    return [MaskedPhoto(root.parent / r["image"], root.parent / r["mask"]) for r in rows if r["split"] == split]
