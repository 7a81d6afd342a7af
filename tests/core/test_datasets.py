"""Readers of public data sets, each on a miniature of its published layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rddm_core.data.datasets import DatasetError, cuhk_photos, dataset_pairs, read_dataset


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def names(parts) -> dict[str, list[tuple[str, str]]]:  # type: ignore[no-untyped-def]
    return {part: [(p.blurred.name, p.sharp.name) for p in pairs] for part, pairs in parts.items()}


def dpdd(root: Path) -> Path:
    for part, first in (("train", 100), ("val", 200), ("test", 300)):
        for i in range(2):  # the two shots of a pair are numbered one after the other
            put(
                root / f"{part}_c/source/1P0A0{first + 2 * i}.png",
                root / f"{part}_c/target/1P0A0{first + 2 * i + 1}.png",
            )
        put(root / f"{part}_l/source/1P0A0{first}.png", root / f"{part}_l/target/1P0A0{first + 1}.png")
    return root


@pytest.mark.parametrize("layout", ["auto", "dpdd"])
def test_dpdd_takes_the_centre_view_and_pairs_by_order(tmp_path: Path, layout: str) -> None:
    parts = read_dataset(dpdd(tmp_path / "dd_dp_dataset_canon"), layout)
    assert names(parts) == {
        "train": [("1P0A0100.png", "1P0A0101.png"), ("1P0A0102.png", "1P0A0103.png")],
        "dev": [("1P0A0200.png", "1P0A0201.png"), ("1P0A0202.png", "1P0A0203.png")],
        "test": [("1P0A0300.png", "1P0A0301.png"), ("1P0A0302.png", "1P0A0303.png")],
    }
    assert all("_c" in str(p.blurred) for p in parts["train"])


@pytest.mark.parametrize("layout", ["auto", "lfdof"])
def test_lfdof_has_many_inputs_to_a_target(tmp_path: Path, layout: str) -> None:
    for part, scene in (("train_data", "IMG_1"), ("train_data", "IMG_2"), ("test_data", "IMG_3")):
        put(*(tmp_path / part / "input" / scene / f"{scene}_ap{a}_00.png" for a in (1, 2)))
        put(tmp_path / part / "ground_truth" / f"{scene}.png")
    parts = read_dataset(tmp_path, layout)
    assert names(parts)["train"] == [
        ("IMG_1_ap1_00.png", "IMG_1.png"),
        ("IMG_1_ap2_00.png", "IMG_1.png"),
        ("IMG_2_ap1_00.png", "IMG_2.png"),
        ("IMG_2_ap2_00.png", "IMG_2.png"),
    ]
    assert {p.scene for p in parts["train"]} == {"lfdof/IMG_1", "lfdof/IMG_2"} and len(parts["test"]) == 2
    (tmp_path / "test_data" / "ground_truth" / "IMG_3.png").unlink()
    with pytest.raises(DatasetError, match="IMG_3 has no target"):
        read_dataset(tmp_path, layout)


@pytest.mark.parametrize("layout", ["auto", "realdof"])
def test_realdof(tmp_path: Path, layout: str) -> None:
    put(*(tmp_path / kind / f"{i}.jpg" for kind in ("source", "target") for i in (1, 2)))
    assert names(read_dataset(tmp_path, layout)) == {"test": [("1.jpg", "1.jpg"), ("2.jpg", "2.jpg")]}


def test_folders_flat_and_by_part(tmp_path: Path) -> None:
    put(tmp_path / "flat/blur/a.png", tmp_path / "flat/sharp/a.jpg")
    assert names(read_dataset(tmp_path / "flat")) == {"test": [("a.png", "a.jpg")]}
    for part in ("train", "dev"):
        put(tmp_path / "parts" / part / "blur/a.png", tmp_path / "parts" / part / "sharp/a.png")
    assert set(read_dataset(tmp_path / "parts", "folders")) == {"train", "dev"}


def test_partners_share_their_stem_whatever_the_endings(tmp_path: Path) -> None:
    put(*(tmp_path / "blur" / f"{stem}.jpg" for stem in ("a", "a.l")))
    put(*(tmp_path / "sharp" / f"{stem}.png" for stem in ("a", "a.l")))
    assert names(read_dataset(tmp_path)) == {"test": [("a.jpg", "a.png"), ("a.l.jpg", "a.l.png")]}
    put(tmp_path / "blur/a.png", tmp_path / "sharp/a.l.jpg")
    with pytest.raises(DatasetError, match="has no partner of its own"):
        read_dataset(tmp_path)


def test_partners_must_be_there(tmp_path: Path) -> None:
    put(tmp_path / "blur/a.png", tmp_path / "blur/b.png", tmp_path / "sharp/a.png")
    with pytest.raises(DatasetError, match=r"blur holds 2 pictures and .*sharp 1"):
        read_dataset(tmp_path)
    put(tmp_path / "sharp/c.png")
    with pytest.raises(DatasetError, match="b lies in only one of"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("layout", "tree"),
    [
        ("dpdd", "train_c/source"),
        ("lfdof", "train_data/input/SCENE"),
        ("realdof", r"ROOT/source/\*.jpg"),
        ("folders", r"ROOT/blur/\*"),
        ("auto", "train_c/source(.|\n)*SCENE(.|\n)*ROOT/blur"),
    ],
)
def test_a_wrong_folder_is_shown_the_expected_tree(tmp_path: Path, layout: str, tree: str) -> None:
    put(tmp_path / "pictures/a.png")
    with pytest.raises(DatasetError, match=tree):
        read_dataset(tmp_path, layout)
    with pytest.raises(DatasetError, match="none is no folder"):
        read_dataset(tmp_path / "none", layout)


def test_an_unknown_layout_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="choose auto, dpdd, lfdof, realdof, folders"):
        read_dataset(tmp_path, "gopro")


def test_parts_and_manifests_are_read_by_one_function(tmp_path: Path) -> None:
    root = dpdd(tmp_path / "dpdd")
    assert [p.blurred.name for p in dataset_pairs(root, "dev", "dpdd")] == ["1P0A0200.png", "1P0A0202.png"]
    with pytest.raises(DatasetError, match="no part 'val'; it has: train, dev, test"):
        dataset_pairs(root, "val", "dpdd")
    (tmp_path / "manifest.csv").write_text("blur,sharp,split\nb.png,s.png,dev\n")
    assert [p.blurred.name for p in dataset_pairs(tmp_path, "dev")] == ["b.png"]


@pytest.mark.parametrize("folder", ["image", "images"])
def test_cuhk_is_divided_by_number(tmp_path: Path, folder: str) -> None:
    for number in (1, 10, 604, 605, 704):
        put(tmp_path / folder / f"out_of_focus{number:04d}.jpg", tmp_path / "gt" / f"out_of_focus{number:04d}.png")
    put(tmp_path / folder / "motion0001.jpg")
    found = {s: [p.image.stem[-4:] for p in cuhk_photos(tmp_path, s)] for s in ("train", "dev", "test")}
    assert found == {"train": ["0001", "0604"], "dev": ["0010"], "test": ["0605", "0704"]}
    with pytest.raises(DatasetError, match="no photographs of part 'val'"):
        cuhk_photos(tmp_path, "val")
    put(tmp_path / folder / "out_of_focus0001_copy.jpg")
    with pytest.raises(DatasetError, match="out_of_focus0001_copy.jpg is no photograph of CUHK"):
        cuhk_photos(tmp_path, "test")
    (tmp_path / folder / "out_of_focus0001_copy.jpg").unlink()
    (tmp_path / "gt" / "out_of_focus0704.png").unlink()
    with pytest.raises(DatasetError, match=r"out_of_focus0704.png is missing(.|\n)*ROOT/image"):
        cuhk_photos(tmp_path, "test")
    with pytest.raises(DatasetError, match=r"holds no defocus part(.|\n)*ROOT/gt"):
        cuhk_photos(tmp_path / "gt", "test")
