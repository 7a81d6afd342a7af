"""Tiled against whole: how far the results differ, at several tile sizes.

    python benchmarks/tiles.py PICTURE [PICTURE ...] [--tiles 256 384 512] [--steps 1] [--model FILE]

Prints, per picture and tile size, the largest difference, the one that 99.99 % of the values stay below, and the mean,
all in steps of 1/255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint
from rddm_core.images import load_image
from rddm_core.pipeline import DeblurSettings, deblur


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--tiles", nargs="+", type=int, default=[256, 384, 512])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--model", type=Path, default=default_checkpoint_path())
    args = parser.parse_args()
    model = load_checkpoint(args.model)
    print("| picture | size | tile | largest | 99.99 % below | mean |\n|---|---|---|---|---|---|")
    for path in args.pictures:
        image = load_image(path).pixels[None]

        def run(tile: int | None, image: torch.Tensor = image) -> torch.Tensor:
            return deblur(model, image, settings=DeblurSettings(steps=args.steps, tile=tile, working_size="full")).image

        whole = run(None)
        for tile in args.tiles:
            difference = (run(tile) - whole).abs().flatten() * 255
            share = float(difference.sort().values[int(0.9999 * (difference.numel() - 1))])
            size = f"{image.shape[3]}x{image.shape[2]}"
            figures = f"{float(difference.max()):.2f} | {share:.3f} | {float(difference.mean()):.4f}"
            print(f"| {path.name} | {size} | {tile} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
