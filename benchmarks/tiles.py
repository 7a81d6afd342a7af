"""Tiled against whole: how far the results differ, at several tile sizes.

    python -m benchmarks.tiles [PICTURE ...] [--tiles 256 384 512 1024] [--steps N] [--model FILE]

Without pictures it takes adversarial ones (a flat sky, gratings of many periods, rendered text) and the examples, each
large enough to be cut in both directions. Prints, per picture and tile size, the largest difference, the one that
99.99 % of the values stay below, and the mean, all in steps of 1/255.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
from rddm_core.images import load_image
from rddm_core.pipeline import DeblurSettings, deblur
from rddm_core.tiling import round_up

from .pictures import gratings, photograph, sky, text
from .process import ROOT

TILES = (256, 384, 512, 1024)
SHARE = 0.9999
LEAST = 640
"""Short side of the adversarial pictures, in pixels; more for tiles that would hold one whole."""
PICTURES: dict[str, Callable[[int, int], Tensor]] = {
    "sky": sky,
    "gratings": gratings,
    "text": text,
    "sign": photograph,
    "market": lambda h, w: photograph(h, w, ROOT / "examples" / "market.blur.jpg"),
}


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--tiles", nargs="+", type=int, default=list(TILES))
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--model", type=Path, default=default_checkpoint_path())
    args = parser.parse_args()
    print("\n".join(HEADER))
    for row in compare(args.pictures, args.tiles, args.steps, args.model):
        print(format_row(row), flush=True)


HEADER = ("| picture | size | tile | largest | 99.99 % below | mean |", "|---|---|---|---|---|---|")


def format_row(row: dict[str, Any]) -> str:
    """One line of the table below HEADER."""
    figures = f"{row['largest']:.2f} | {row['below']:.3f} | {row['mean']:.4f}"
    return f"| {row['picture']} | {row['width']}x{row['height']} | {row['tile']} | {figures} |"


def compare_adversarial(tiles: Sequence[int], threads: int) -> list[dict[str, Any]]:
    """Rows for the adversarial pictures and the examples, at the weights' own number of steps."""
    torch.set_num_threads(threads)
    return list(compare([], tiles, 0, default_checkpoint_path()))


def compare(files: Sequence[Path], tiles: Sequence[int], steps: int, model_file: Path) -> Iterator[dict[str, Any]]:
    """One row per picture and tile size: picture, width, height, tile, and the differences in 1/255."""
    model = load_checkpoint(model_file)

    def run(picture: Tensor, tile: int | None) -> Tensor:
        return deblur(model, picture, settings=DeblurSettings(steps=steps, tile=tile, working_size="full")).image

    for name, sizes, make in _pictures(files, tiles):
        for size, tiles_of_size in sizes.items():
            picture = make(*size)
            whole = run(picture, None)
            for tile in tiles_of_size:
                height, width = picture.shape[-2:]
                row = {"picture": name, "width": width, "height": height, "tile": tile}
                yield row | difference(run(picture, tile), whole)


def difference(tiled: Tensor, whole: Tensor) -> dict[str, float]:
    """Largest, 99.99 % quantile (`below`) and mean of the differences of two results, in 1/255."""
    apart = (tiled - whole).abs().flatten() * 255
    below = apart.kthvalue(max(1, int(SHARE * apart.numel()))).values
    return {"largest": float(apart.max()), "below": float(below), "mean": float(apart.mean())}


Sizes = dict[tuple[int, int], list[int]]


def _pictures(files: Sequence[Path], tiles: Sequence[int]) -> Iterator[tuple[str, Sizes, Callable[[int, int], Tensor]]]:
    """Name, the tile sizes to try at each picture size, and how to make the picture."""
    for file in files:
        pixels = load_image(file).pixels[None]
        yield file.name, {(pixels.shape[2], pixels.shape[3]): list(tiles)}, lambda h, w, pixels=pixels: pixels  # type: ignore[misc]
    if not files:
        sizes: Sizes = {}
        for tile in tiles:
            height = max(LEAST, round_up(tile * 9 // 8, 64))
            sizes.setdefault((height, height * 3 // 2), []).append(tile)
        for name, make in PICTURES.items():
            yield name, sizes, make


if __name__ == "__main__":
    main()
