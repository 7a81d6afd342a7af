"""Scores of defocus maps on miniature masks, the choice of a threshold, and the order of rendered radii."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rddm_core.classical import edge_defocus_map
from rddm_core.cli import main
from rddm_core.config import RDDMConfig
from rddm_core.data.sources import MaskedPhoto
from rddm_core.evaluation.maps import (
    SWEPT,
    Cut,
    f_beta,
    find_masks,
    format_sweep,
    map_methods,
    radius_order,
    score_maps,
    sweep_thresholds,
)
from rddm_core.evaluation.radius import RADII, fitted_radius
from rddm_core.networks.model import RDDM
from rddm_core.optics import map_from_radius, render_defocus
from rddm_core.pipeline import estimate_defocus_map


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Two photographs, 20 of whose 40 columns and 10 of whose 40 columns are out of focus."""
    folder = tmp_path / "masks"
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["image,mask,split"]
    for i, (columns, split) in enumerate(((20, "dev"), (10, "val"))):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        mask = np.zeros((36, 40), dtype=np.uint8)
        mask[:, :columns] = 255
        Image.fromarray(mask).save(folder / f"{i}_mask.png")
        lines.append(f"masks/{i}.png,masks/{i}_mask.png,{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def ramp(image: Tensor) -> Tensor:
    """From 1 at the left border to 0 at the right one."""
    return torch.linspace(1, 0, image.shape[2]).expand(image.shape[1:])


def test_scores_of_known_maps(masks: Path) -> None:
    photos = find_masks(masks)
    scores = score_maps(photos, {"left half": lambda x: (torch.arange(40) < 20).float().expand(36, 40)})
    white, half = scores["all white"], scores["left half"]
    # 30 of 80 columns are out of focus; the left half claims 40, the right 30 among them.
    assert (white.iou_blurred, white.iou_sharp, white.mean_iou) == (30 / 80, 0, 15 / 80)
    assert (half.iou_blurred, half.iou_sharp) == (30 / 40, 40 / 50)
    assert half.mae == pytest.approx((0 + 10 / 40) / 2) and white.mae == pytest.approx((20 + 30) / 80)
    precise = 1.3 * 0.5 * 1 / (0.3 * 0.5 + 1)
    assert half.f_beta == pytest.approx((1 + precise) / 2)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert f_beta(nothing, nothing) == 1 and f_beta(~nothing, nothing) == 0


def test_the_threshold_decides_and_the_sweep_agrees_with_the_scores(masks: Path) -> None:
    photos = find_masks(masks)
    cuts = sweep_thresholds(photos, ramp)
    assert [cut.threshold for cut in cuts] == list(SWEPT)
    for cut in cuts[::3]:
        score = score_maps(photos, {"ramp": ramp}, cut.threshold)["ramp"]
        assert (cut.iou_blurred, cut.iou_sharp) == pytest.approx((score.iou_blurred, score.iou_sharp), abs=1e-12)
    assert max(cuts, key=lambda cut: cut.mean_iou).threshold == pytest.approx(0.5, abs=0.26)
    assert cuts[0].mean_iou < 0.7 * max(cut.mean_iou for cut in cuts)


def test_the_star_marks_the_best_threshold() -> None:
    lines = format_sweep([Cut(0.4, 0.5, 0.5), Cut(0.5, 0.8, 0.6), Cut(0.6, 0.1, 0.2)]).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("*")] == ["0.50"]


def test_methods_are_what_their_names_say(tiny_config: RDDMConfig) -> None:
    model, picture = RDDM(tiny_config).eval(), torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    methods = map_methods(model)
    assert torch.equal(methods["estimator"](picture), estimate_defocus_map(model, picture[None])[0, 0])
    assert torch.equal(methods["edges"](picture), edge_defocus_map(picture[None])[0, 0])


def test_no_more_masks_are_taken_than_asked_for(masks: Path) -> None:
    assert [photo.image.name for photo in find_masks(masks, limit=1)] == ["0.png"]


def test_masks_are_found_by_split_and_must_fit(masks: Path, tmp_path: Path) -> None:
    (photo,) = find_masks(masks, [("split", "val")])
    assert photo.mask == masks / "1_mask.png"
    with pytest.raises(ValueError, match="no rows with split=test"):
        find_masks(masks, [("split", "test")])
    Image.new("L", (39, 36)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png is \[36, 39\], but its photograph \[36, 40\]"):
        score_maps([MaskedPhoto(photo.image, tmp_path / "small.png")], {})
    for scoring in (lambda: score_maps([], {}), lambda: sweep_thresholds([], ramp)):
        with pytest.raises(ValueError, match="no photographs"):
            scoring()


def test_paths_count_from_the_same_folder_however_the_manifest_is_spelled(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (masks / "below").mkdir()
    for folder, spelled in (
        (masks, "manifest.csv"),
        (masks, "."),
        (masks / "below", ".."),
        (tmp_path, "masks/manifest.csv"),
        (tmp_path, "masks"),
    ):
        monkeypatch.chdir(folder)
        assert [photo.image for photo in find_masks(Path(spelled))] == [masks / "0.png", masks / "1.png"], spelled


def test_a_folder_that_is_a_link_has_its_pictures_beside_the_link(masks: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    masks.rename(tmp_path / "elsewhere" / "masks-2")
    masks.symlink_to(tmp_path / "elsewhere" / "masks-2")
    assert all(photo.mask.is_file() for photo in find_masks(masks))


def test_cuhk_is_selected_by_split_alone(tmp_path: Path) -> None:
    for number in (10, 11, 605):
        for folder, ending in (("image", "jpg"), ("gt", "png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / folder / f"out_of_focus{number:04}.{ending}")
    assert [p.image.stem for p in find_masks(tmp_path, [("split", "dev")])] == ["out_of_focus0010"]
    assert [p.image.stem for p in find_masks(tmp_path)] == ["out_of_focus0605"]
    with pytest.raises(ValueError, match="no column 'scene': CUHK has split alone"):
        find_masks(tmp_path, [("split", "dev"), ("scene", "x")])
    with pytest.raises(ValueError, match="no rows of dev and test at once"):
        find_masks(tmp_path, [("split", "dev"), ("split", "test")])


def test_command_scores_and_sweeps(
    masks: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate-maps", str(masks), "--model", str(tiny_checkpoint), "--json", str(tmp_path / "m.json")]
    assert main([*command, "--threshold", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["all white", "estimator", "edges"]
    assert json.loads((tmp_path / "m.json").read_text())["threshold"] == 0.3
    assert main([*command, "--sweep", "--where", "split=dev"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["threshold", "mean", "IoU"] and len(table) == 1 + len(SWEPT)
    assert sum(line.endswith("*") for line in table) == 1
    assert len(json.loads((tmp_path / "m.json").read_text())["sweep"]) == len(SWEPT)


def test_pictures_that_cannot_be_read_are_reported_and_left_out(
    masks: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate-maps", str(masks), "--model", str(tiny_checkpoint), "--json", str(tmp_path / "m.json")]
    assert main([*command, "--where", "split=val"]) == 0
    alone = json.loads((tmp_path / "m.json").read_text())["maps"]
    (masks / "0_mask.png").write_bytes(b"no picture")
    (tmp_path / "photos.csv").write_text("file\nmasks/0_mask.png\nmasks/0.png\n")
    capsys.readouterr()
    assert main([*command, "--sharp", str(tmp_path / "photos.csv")]) == 1
    figures = json.loads((tmp_path / "m.json").read_text())
    assert figures["maps"] == alone and "pooled" in figures["radius_order"]
    told = capsys.readouterr().err
    assert f"failed: {masks / '0.png'}: " in told and f"failed: {masks / '0_mask.png'}: " in told
    assert main([*command, "--sweep"]) == 1
    assert f"failed: {masks / '0.png'}: " in capsys.readouterr().err


def test_a_map_of_the_true_radii_keeps_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, fields = [], []
    for i in range(6):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
        paths.append(path)

    def render(sharp: Tensor, field: Tensor, aperture: object) -> Tensor:
        fields.append(field)
        return sharp

    monkeypatch.setattr("rddm_core.evaluation.maps.render_defocus", render)
    order = radius_order(paths, lambda image: map_from_radius(fields[-1].abs()))
    assert order.pooled > 0.999 and all(scene > 0.999 for scene in order.scenes) and order.scenes
    turned = radius_order(paths, lambda image: 1 - map_from_radius(fields[-1].abs()))
    assert turned.mean < -0.999


def test_photographs_are_reduced_before_they_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rddm_core.evaluation.maps.RENDERED_SIDE", 32)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    seen: list[tuple[int, ...]] = []

    def method(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image[0]

    radius_order([tmp_path / "a.png"], method)
    assert seen == [(3, 24, 32)]


@pytest.mark.parametrize("radius", [RADII[0], RADII[3], RADII[6]])
def test_the_radius_of_a_rendered_pair_is_found_again(radius: float) -> None:
    target = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    target[:, :48, :48] = 0.5  # a flat part cannot tell and must not count
    blurred = render_defocus(target, torch.full((96, 96), radius))
    assert fitted_radius(blurred, target) == pytest.approx(radius, abs=0.05)
