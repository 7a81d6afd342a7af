"""LPIPS and FID, by torchmetrics, where their weights are at hand. Nothing is downloaded here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics import MissingExtraError, to_8bit
from .evaluate import Metric, Pair

PATCH = 192
"""Side of the patches that FID is measured on, in pixels."""

LPIPS_FILE = "alexnet-owt-7be5be79.pth"
LPIPS_URL = f"https://download.pytorch.org/models/{LPIPS_FILE}"
FID_FILE = "weights-inception-2015-12-05-6726825d.pth"
FID_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FID_FILE}"


class MissingWeightsError(FileNotFoundError):
    """Weights of a metric are not at hand; the message says which, from where and to where."""


def lpips_metric() -> Metric:
    """LPIPS of Zhang et al. 2018 (AlexNet, version 0.1), the one of the papers on defocus: less is better.

    Raises MissingExtraError and MissingWeightsError.
    """
    library = _torchmetrics("torchmetrics.image.lpip")
    _require(LPIPS_FILE, LPIPS_URL, "LPIPS")
    network = library.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()

    def lpips(image: Tensor, target: Tensor) -> float:
        a, b = (torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in to_8bit(image, target))
        with torch.inference_mode():
            return float(network(a, b))

    return Metric("lpips", lpips, higher_is_better=False, decimals=4)


class PatchFID:
    """Frechet inception distance (Heusel et al. 2017) of every row to the targets, on patches of PATCH pixels.

    Called with each scored pair (see `evaluate.Watch`); `values()` at the end. Needs thousands of patches to mean much,
    and at least two. Pictures smaller than a patch are left out. `network` (tests): features [B, C] of uint8
    [B, 3, PATCH, PATCH], instead of Inception. Raises MissingExtraError and MissingWeightsError.
    """

    def __init__(self, network: torch.nn.Module | None = None) -> None:
        self.library = _torchmetrics("torchmetrics.image.fid")
        if network is None:
            _torchmetrics("torch_fidelity")
            _require(FID_FILE, FID_URL, "FID")
        self.network = network
        self.rows: dict[str, Any] = {}

    def __call__(self, pair: Pair, pictures: Mapping[str, Tensor], target: Tensor) -> None:
        for row, picture in pictures.items():
            a, b = (patches(torch.from_numpy(x).permute(2, 0, 1)) for x in to_8bit(picture, target))
            if len(a):
                if row not in self.rows:
                    options = {} if self.network is None else {"feature": self.network}
                    self.rows[row] = self.library.FrechetInceptionDistance(**options)
                self.rows[row].update(a, real=False)
                self.rows[row].update(b, real=True)

    def values(self) -> dict[str, float]:
        """Row -> distance, less is better; {} for fewer than two patches."""
        return {row: float(x.compute()) for row, x in self.rows.items() if int(x.real_features_num_samples) > 1}


def patches(picture: Tensor) -> Tensor:
    """All patches [N, C, PATCH, PATCH] of a picture [C, H, W] on a grid from its top left corner, without overlap."""
    if min(picture.shape[-2:]) < PATCH:
        return picture.new_empty(0, picture.shape[0], PATCH, PATCH)
    cut = picture.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return cut.permute(1, 2, 0, 3, 4).reshape(-1, picture.shape[0], PATCH, PATCH)


def _require(name: str, url: str, metric: str) -> None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / name).is_file():
        raise MissingWeightsError(
            f"{metric} needs {name}, which is not in {folder}, and nothing is downloaded without being asked: "
            f"fetch {url} into that folder yourself, or leave {metric} out"
        )


def _torchmetrics(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            "LPIPS and FID need the extra `perceptual`: pip install torchmetrics torch-fidelity"
        ) from error
