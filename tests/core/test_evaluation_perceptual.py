"""LPIPS and FID: only with weights at hand, and a clear message otherwise. FID with a network of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rddm_core.cli import main
from rddm_core.evaluation.evaluate import Pair
from rddm_core.evaluation.perceptual import (
    LPIPS_FILE,
    PATCH,
    MissingWeightsError,
    PatchFID,
    lpips_metric,
    patches,
)
from rddm_core.images import save_image

pytest.importorskip("torchmetrics")


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_missing_weights_are_asked_for_and_not_fetched(no_weights: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"LPIPS needs alexnet\S+ .*checkpoints.*fetch https://"):
        lpips_metric()
    with pytest.raises(MissingWeightsError, match=r"FID needs weights-inception\S+ .*fetch https://"):
        PatchFID()
    assert not no_weights.exists()


@pytest.mark.parametrize("option", ["--lpips", "--fid"])
def test_the_command_says_so_too(
    option: str, no_weights: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("blur", "sharp"):
        save_image(tmp_path / "data" / kind / "0.png", torch.rand(3, 40, 48))
    assert main(["evaluate", str(tmp_path / "data"), "--model", str(tiny_checkpoint), option]) == 1
    assert "fetch https://" in capsys.readouterr().err


class MeanDifference(nn.Module):
    """Stands in for LPIPS's network: the mean difference of pictures [1, 3, H, W] in 0..1."""

    def __init__(self, net_type: str, normalize: bool) -> None:
        super().__init__()
        assert net_type == "alex" and normalize, "0..1 is asked for, not -1..1"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape == (1, 3, 4, 6) and not self.training
        return (a - b).abs().mean()


def test_lpips_sees_both_pictures_as_they_are_saved(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", MeanDifference)
    no_weights.mkdir(parents=True)
    (no_weights / LPIPS_FILE).touch()
    metric = lpips_metric()
    assert metric.name == "lpips" and not metric.higher_is_better
    assert metric.function(torch.full((3, 4, 6), 0.7), torch.full((3, 4, 6), 0.2)) == pytest.approx(0.5, abs=1 / 255)
    assert metric.function(torch.full((3, 4, 6), 1.4), torch.ones(3, 4, 6)) == 0.0


def test_patches_lie_on_a_grid() -> None:
    picture = torch.arange(3 * 400 * 600).reshape(3, 400, 600)
    cut = patches(picture)
    assert cut.shape == (2 * 3, 3, PATCH, PATCH)
    assert torch.equal(cut[4], picture[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH])
    assert patches(picture[:, : PATCH - 1]).shape[0] == 0


class MeanColour(nn.Module):
    """Features [B, 3] of uint8 patches; `num_features` is what torchmetrics asks for."""

    num_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.double().mean(dim=(2, 3)) / 255


def test_distance_is_of_the_row_to_the_targets() -> None:
    fid, generator = PatchFID(MeanColour()), torch.Generator().manual_seed(0)
    for i in range(4):
        target = torch.rand(3, 1, 1, generator=generator).expand(3, PATCH, 2 * PATCH) * torch.rand(
            3, PATCH, 2 * PATCH, generator=generator
        )
        darker = target * 0.5
        fid(Pair(Path(str(i)), Path("s"), {}), {"same": target, "darker": darker}, target)
    values = fid.values()
    assert values["same"] == pytest.approx(0, abs=1e-6) and values["darker"] > 0.01
