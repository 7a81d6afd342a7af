"""A miniature of the image collection, and recipes of short runs on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_collection(root: Path) -> Path:
    """One sharp photograph, one pair per split and one mask per split, all of 80x72 pixels; gives `root` back."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[dict[str, object]]] = {"sharp": [], "real_pairs": [], "defocus_masks": []}

    def picture(path: Path) -> str:
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 72), Image.Resampling.BICUBIC).save(path)
        return path.name

    for folder in tables:
        (root / folder).mkdir()
    photo = picture(root / "sharp" / "a.png")
    tables["sharp"].append({"file": photo, "textured_tile_frac": 1, "sharp_tile_frac": 1, "split": "train"})
    for split in ("train", "dev"):
        pair = {k: picture(root / "real_pairs" / f"{split}_{k}.png") for k in ("blur", "sharp")}
        tables["real_pairs"].append(pair | {"split": split})
        picture(root / "defocus_masks" / f"{split}.png")
        mask = (np.arange(80)[None] > 40) * np.ones((72, 1)) * 255
        Image.fromarray(mask.astype(np.uint8)).save(root / "defocus_masks" / f"{split}_mask.png")
        names = {"image": f"defocus_masks/{split}.png", "mask": f"defocus_masks/{split}_mask.png"}
        tables["defocus_masks"].append(names | {"split": split})
    for folder, rows in tables.items():
        with (root / folder / "manifest.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


def flat(path: Path, level: int, size: tuple[int, int] = (80, 72)) -> Path:
    """A picture of one grey of 0 to 255, as large as those of the collection; gives `path` back."""
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


def write_recipe(folder: Path, collection: Path, **changes: object) -> Path:
    """A joint run of four steps on the collection, but for the `changes`; the file lies in `folder`."""
    values: dict[str, object] = {
        "name": "tiny",
        "stage": "joint",
        "data": {"root": str(collection), "segments": "", "pack_count": 4, "render": {"size": 64, "max_radius": 3.0}},
        "mixture": {"crop": 64, "masks": 0.0},
        "batch": 2,
        "steps": 4,
        "warmup_steps": 2,
        "residual_scale_steps": [0],
        "workers": 0,
        "checkpoint_minutes": 0.0,
    }
    path = folder / f"{changes.get('name', 'tiny')}.json"
    path.write_text(json.dumps(values | changes))
    return path
