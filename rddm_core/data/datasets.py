"""Public data sets by the folders they are published in, and any folder of blurred and sharp photographs.

Parts are called `train`, `dev` (what the set calls validation: to choose on) and `test` (to quote). None of the sets is
downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images import FORMAT_OF_EXTENSION
from .sources import MaskedPhoto, PhotoPair, masked_photos, photo_pairs

MANIFEST = "manifest"
"""Layout name of a folder with a manifest.csv (columns blur, sharp, split)."""


class DatasetError(ValueError):
    """A folder that is no such data set; the message shows the expected tree."""


Parts = Mapping[str, list[PhotoPair]]
"""Part (`train`, `dev`, `test`) -> its pairs, for the parts that are there."""


@dataclass(frozen=True)
class Layout:
    """How a data set of pairs lies on disk. `read` returns {} where the folder looks like another set."""

    name: str
    tree: str
    read: Callable[[Path], Parts]


def read_dataset(root: Path, layout: str = "auto") -> Parts:
    """All parts of the data set in `root`, by layout name (see LAYOUTS) or, with "auto", the first one that fits.

    Raises DatasetError with the expected tree where the folder has none, or has pictures without a partner.
    """
    names = [x.name for x in LAYOUTS]
    if layout != "auto" and layout not in names:
        raise DatasetError(f"unknown layout {layout!r}: choose auto, {', '.join(names)}")
    wanted = [x for x in LAYOUTS if layout in ("auto", x.name)]
    if root.is_dir():
        for candidate in wanted:
            if parts := candidate.read(root):
                return parts
    trees = "\n\n".join(f"{x.name}:\n{x.tree}" for x in wanted)
    cause = f"is no data set of layout {layout}" if layout != "auto" else "has none of the known layouts"
    raise DatasetError(f"{root} {cause if root.is_dir() else 'is no folder'}. Expected:\n\n{trees}")


def dataset_pairs(root: Path, split: str, layout: str = MANIFEST) -> list[PhotoPair]:
    """The pairs of one part: of a manifest by its `split` column, else of the data set in `root`.

    Raises DatasetError where the set has no such part.
    """
    if layout == MANIFEST:
        return photo_pairs(root, split)
    parts = read_dataset(root, layout)
    if split not in parts:
        raise DatasetError(f"{root} has no part {split!r}; it has: {', '.join(parts)}")
    return parts[split]


def dataset_masks(root: Path, split: str) -> list[MaskedPhoto]:
    """Photographs with masks of one part: of a manifest, where `root` has one, else of CUHK."""
    return masked_photos(root, split) if (root / "manifest.csv").is_file() else cuhk_photos(root, split)


# ---------------------------------------------------------------- layouts


def _dpdd(root: Path) -> Parts:
    return _parts(
        (part, root / f"{folder}_c" / "source", root / f"{folder}_c" / "target", "dpdd")
        for part, folder in (("train", "train"), ("dev", "val"), ("test", "test"))
    )


def _realdof(root: Path) -> Parts:
    return _parts([("test", root / "source", root / "target", "realdof")])


def _lfdof(root: Path) -> Parts:
    """Several apertures and focus distances of each scene in a folder of their own, one target for all of them.

    The set has no part to choose on: every tenth scene of train_data is `dev`.
    """
    parts: dict[str, list[PhotoPair]] = {}
    for whole, folder in (("train", "train_data"), ("test", "test_data")):
        inputs, targets = root / folder / "input", root / folder / "ground_truth"
        if not inputs.is_dir() or not targets.is_dir():
            continue
        sharp = {path.stem: path for path in pictures(targets)}
        for number, scene in enumerate(sorted(path for path in inputs.iterdir() if path.is_dir()), 1):
            part = "dev" if whole == "train" and number % 10 == 0 else whole
            if scene.name not in sharp:
                raise DatasetError(f"{scene} has no target {targets / scene.name}.png")
            pairs = [PhotoPair(path, sharp[scene.name], f"lfdof/{scene.name}") for path in pictures(scene)]
            parts.setdefault(part, []).extend(pairs)
    return parts


def _folders(root: Path) -> Parts:
    """blur and sharp below `root`, or below train, dev and test in it."""
    parts = [(part, root / part) for part in ("train", "dev", "test")]
    nested = _parts((part, folder / "blur", folder / "sharp", "folder") for part, folder in parts)
    return nested or _parts([("test", root / "blur", root / "sharp", "folder")])


LAYOUTS = (
    Layout(
        "dpdd",
        "  DPDD, Canon (Abuolaim and Brown 2020), the centre view; l and r are not read\n"
        "  ROOT/train_c/source/*.png   ROOT/train_c/target/*.png\n"
        "  ROOT/val_c/source/*.png     ROOT/val_c/target/*.png      (part dev)\n"
        "  ROOT/test_c/source/*.png    ROOT/test_c/target/*.png",
        _dpdd,
    ),
    Layout(
        "lfdof",
        "  LFDOF (Ruan et al. 2021)\n"
        "  ROOT/train_data/input/SCENE/*.png   ROOT/train_data/ground_truth/SCENE.png   (every tenth scene: part dev)\n"
        "  ROOT/test_data/input/SCENE/*.png    ROOT/test_data/ground_truth/SCENE.png",
        _lfdof,
    ),
    Layout(
        "realdof",
        "  RealDOF (Lee et al. 2021), test pictures alone\n  ROOT/source/*.jpg   ROOT/target/*.jpg",
        _realdof,
    ),
    Layout(
        "folders",
        "  any pairs: files of the same name, or as many files in the same order\n"
        "  ROOT/blur/*   ROOT/sharp/*   (part test), or both below ROOT/train, ROOT/dev and ROOT/test",
        _folders,
    ),
)


CUHK_TREE = (
    "  CUHK blur detection (Shi et al. 2014), its defocus part; masks are white where out of focus\n"
    "  ROOT/image/out_of_focus0001.jpg   ROOT/gt/out_of_focus0001.png   ... up to 0704 (images/ is read as well)"
)
CUHK_TEST_FROM = 605
"""The usual division: the last 100 photographs are the test part."""


def cuhk_photos(root: Path, split: str) -> list[MaskedPhoto]:
    """CUHK's defocused photographs and masks: `train` and `dev` (every tenth) of the first 604, `test` the last 100.

    Raises DatasetError with the expected tree, or for a photograph without a mask.
    """
    images = next((root / name for name in ("image", "images") if (root / name).is_dir()), root / "image")
    found = [path for path in pictures(images) if path.stem.startswith("out_of_focus")] if images.is_dir() else []
    if not found:
        raise DatasetError(f"{root} holds no defocus part of CUHK. Expected:\n\n{CUHK_TREE}")
    photos = []
    for path in found:
        if not (digits := path.stem.removeprefix("out_of_focus")).isdecimal():
            raise DatasetError(f"{path} is no photograph of CUHK: move it elsewhere. Expected:\n\n{CUHK_TREE}")
        number = int(digits)
        part = "test" if number >= CUHK_TEST_FROM else "dev" if number % 10 == 0 else "train"
        if part == split:
            photos.append(MaskedPhoto(path, root / "gt" / f"{path.stem}.png"))
    if missing := [p.mask for p in photos if not p.mask.is_file()]:
        raise DatasetError(f"{missing[0]} is missing ({len(missing)} in all). Expected:\n\n{CUHK_TREE}")
    if not photos:
        raise DatasetError(f"{root} has no photographs of part {split!r}: choose train, dev or test")
    return photos


# ---------------------------------------------------------------- shared


def pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in FORMAT_OF_EXTENSION and not p.name.startswith("."))


def _parts(folders: Iterable[tuple[str, Path, Path, str]]) -> Parts:
    """Part -> pairs, for (part, blurred folder, sharp folder, collection) whose two folders both exist."""
    parts = {}
    for part, blurred, sharp, collection in folders:
        if blurred.is_dir() and sharp.is_dir():
            parts[part] = _match(blurred, sharp, collection)
    return parts


def _match(blurred: Path, sharp: Path, collection: str) -> list[PhotoPair]:
    """Partners by name where the names agree, else by order: in DPDD the two shots of a pair have two names."""
    left, right = pictures(blurred), pictures(sharp)
    if not left or len(left) != len(right):
        raise DatasetError(f"{blurred} holds {len(left)} pictures and {sharp} {len(right)}: every one needs a partner")
    left_names, right_names = ({p.stem for p in paths} for paths in (left, right))
    if (common := left_names & right_names) and left_names != right_names:
        lonely = min((left_names | right_names) - common)
        raise DatasetError(f"{lonely} lies in only one of {blurred} and {sharp}, while others are in both")
    partners = dict(zip(left, right, strict=True))
    if common:  # both by their stems, which alone agree: the endings can turn an order round
        partners = dict(zip(sorted(left, key=_stem), sorted(right, key=_stem), strict=True))
        if odd := [b for b, s in partners.items() if b.stem != s.stem]:
            raise DatasetError(f"{odd[0]} has no partner of its own in {sharp}: there are several files of one name")
    return [PhotoPair(b, s, f"{collection}/{s.stem}") for b, s in partners.items()]


def _stem(path: Path) -> tuple[str, str]:
    return path.stem, path.name
