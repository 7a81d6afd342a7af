"""Evaluation over a manifest: selection, scores, gains, failures and files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rddm_core.checkpoint import load_checkpoint
from rddm_core.cli import main
from rddm_core.evaluation.evaluate import (
    METRICS,
    ManifestError,
    Pair,
    PairScores,
    evaluate,
    evaluate_pair,
    format_table,
    rddm_method,
    read_manifest,
    summarise,
    write_csv,
    write_json,
)
from rddm_core.images import load_image, save_image
from rddm_core.metrics import MAX_PSNR, mae, psnr_8bit, ssim
from rddm_core.pipeline import DeblurSettings, deblur

SIZE = (3, 24, 32)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four rows: two good pairs (level 100 against 110 and 120), one missing file, one of unequal sizes."""
    for name, level in (("sharp", 100), ("b10", 110), ("b20", 120)):
        save_image(tmp_path / "data" / f"{name}.png", torch.full(SIZE, level / 255))
    save_image(tmp_path / "data" / "small.png", torch.zeros(3, 24, 31))
    path = tmp_path / "manifest.csv"
    path.write_text(
        "blur,sharp,scene,split,kind\n"
        "data/b10.png,data/sharp.png,a,val,plain\n"
        "data/b20.png,data/sharp.png,b,val,other\n"
        "data/none.png,data/sharp.png,c,dev,plain\n"
        "data/small.png,data/sharp.png,d,dev,plain\n",
        encoding="utf-8-sig",
    )
    return path


def halve_the_error(blurred: Tensor) -> dict[str, Tensor]:
    """Two rows for a target of level 100: the error halved, and the target itself."""
    return {"half": (blurred + 100 / 255) / 2, "perfect": torch.full_like(blurred, 100 / 255)}


def test_manifest_selection(manifest: Path) -> None:
    def names(pairs: list[Pair]) -> list[str]:
        return [p.blurred.name for p in pairs]

    assert names(read_manifest(manifest)) == ["b10.png", "b20.png", "none.png", "small.png"]
    assert names(read_manifest(manifest, [("split", "val")])) == ["b10.png", "b20.png"]
    assert names(read_manifest(manifest, [("split", "val"), ("kind", "other")])) == ["b20.png"]
    assert names(read_manifest(manifest, limit=1)) == ["b10.png"]
    (pair,) = read_manifest(manifest, limit=1)
    assert pair.sharp == manifest.parent / "data/sharp.png" and pair.columns["scene"] == "a"


def test_manifest_errors(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no rows with split=test"):
        read_manifest(manifest, [("split", "test")])
    with pytest.raises(ManifestError, match="no column 'grade'; it has: blur, sharp, scene, split, kind"):
        read_manifest(manifest, [("grade", "A")])
    with pytest.raises(ManifestError, match=r"none\.csv cannot be read"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ManifestError, match="no column 'blur'; it has: none"):
        read_manifest(tmp_path / "empty.csv")


def test_scores_of_a_pair_are_the_metrics_of_every_row(manifest: Path) -> None:
    (pair,) = read_manifest(manifest, limit=1)
    scores = evaluate_pair(pair, halve_the_error)
    assert list(scores.rows) == ["blurred", "half", "perfect"]
    assert scores.rows["blurred"]["mae"] == pytest.approx(10 / 255)
    assert scores.rows["half"]["mae"] == pytest.approx(5 / 255)
    assert scores.rows["half"]["psnr"] == pytest.approx(34.151, abs=1e-3)  # 20 log10(255 / 5)
    assert scores.rows["perfect"] == {"psnr": MAX_PSNR, "ssim": 1.0, "mae": 0.0}


def test_summary_of_known_scores() -> None:
    def scores(name: str, before: float, after: float) -> PairScores:
        rows = {"blurred": {"psnr": before, "mae": before}, "final": {"psnr": after, "mae": after}}
        return PairScores(Pair(Path(name), Path("s"), {"blur": name, "sharp": "s"}), rows)

    results = [scores("a", 20, 22), scores("b", 30, 29), scores("c", 25, 30)]
    results.append(PairScores(results[0].pair, error="unreadable"))
    metrics = [m for m in METRICS if m.name != "ssim"]
    blurred_psnr, _, psnr, mean_error = summarise(results, metrics)
    assert (blurred_psnr.row, blurred_psnr.mean, blurred_psnr.mean_gain) == ("blurred", 25, 0)
    assert (psnr.row, psnr.mean, psnr.median, psnr.worst) == ("final", 27, 29, 22)
    assert (psnr.mean_gain, psnr.median_gain, psnr.worst_gain, psnr.worst_pair) == (2, 2, -1, "b")
    # For an error, more is worse: every sign turns.
    assert (mean_error.worst, mean_error.mean_gain, mean_error.worst_gain, mean_error.worst_pair) == (
        30,
        -2,
        -5,
        "c",
    )
    text = format_table([blurred_psnr, psnr], metrics)
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["blurred", "psnr", "25.00", "25.00", "20.00"],
        ["final", "psnr", "27.00", "29.00", "22.00", "+2.00", "+2.00", "-1.00"],
    ]


def test_summary_of_nothing() -> None:
    assert summarise([]) == []


def test_failures_are_reported_per_pair_and_the_others_go_on(manifest: Path) -> None:
    results = list(evaluate(read_manifest(manifest), halve_the_error))
    assert [r.error is None for r in results] == [True, True, False, False]
    assert "none.png does not exist" in (results[2].error or "")
    assert "small.png is 31x24, but sharp.png is 32x24" in (results[3].error or "")


def test_further_metrics_and_rows_join(manifest: Path) -> None:
    from rddm_core.evaluation.evaluate import Metric

    largest = Metric("largest", lambda a, b: float((a - b).abs().max()), higher_is_better=False, decimals=3)
    results = list(evaluate(read_manifest(manifest, limit=2), halve_the_error, [largest]))
    assert [(s.row, s.metric) for s in summarise(results, [largest])] == [
        ("blurred", "largest"),
        ("half", "largest"),
        ("perfect", "largest"),
    ]


def test_files_hold_every_row_and_error(manifest: Path, tmp_path: Path) -> None:
    results = list(evaluate(read_manifest(manifest), halve_the_error))
    write_csv(tmp_path / "out" / "scores.csv", results)
    with (tmp_path / "out" / "scores.csv").open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert [(x["blur"], x["row"]) for x in lines] == [
        *((f"data/{name}.png", row) for name in ("b10", "b20") for row in ("blurred", "half", "perfect")),
        ("data/none.png", ""),
        ("data/small.png", ""),
    ]
    assert float(lines[1]["mae_gain"]) == pytest.approx(5 / 255, rel=1e-4)
    assert lines[1]["scene"] == "a" and "does not exist" in lines[6]["error"]

    write_json(tmp_path / "scores.json", results, {"model": "none"})
    document = json.loads((tmp_path / "scores.json").read_text())
    assert (document["model"], document["pairs"], document["failed"]) == ("none", 4, 2)
    summary = {(s.row, s.metric): s for s in summarise(results)}
    half = document["summary"]["half"]["psnr"]
    assert half["mean"] == summary["half", "psnr"].mean and half["worst_pair"] == summary["half", "psnr"].worst_pair
    assert len(document["results"]) == 8


def test_rddm_rows_are_the_pipeline_s_pictures(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    picture = torch.rand(SIZE, generator=torch.Generator().manual_seed(1))
    rows = rddm_method(model, DeblurSettings(samples=2, seed=3))(picture)
    result = deblur(model, picture[None], settings=DeblurSettings(samples=2, seed=3))
    assert list(rows) == ["pre-deblurred", "final"]
    assert torch.equal(rows["pre-deblurred"], result.pre_deblurred[0])
    assert torch.equal(rows["final"], (result.image[0] + result.image[1]) / 2)


def test_command_scores_what_deblur_would_write(
    manifest: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.json"
    arguments = ["evaluate", str(manifest), "--where", "split=val", "--model", str(tiny_checkpoint)]
    assert main([*arguments, "--json", str(scores), "--csv", str(tmp_path / "scores.csv"), "--steps", "2"]) == 0
    table = capsys.readouterr().out
    assert "2 pairs, 2 steps" in table and "pre-deblurred" in table
    document = json.loads(scores.read_text())
    assert document["where"] == {"split": "val"} and document["settings"]["steps"] == 2

    data = manifest.parent / "data"
    assert main(["deblur", str(data / "b20.png"), "-o", str(tmp_path / "r.png"), "--model", str(tiny_checkpoint)]) == 0
    final, sharp = load_image(tmp_path / "r.png").pixels, load_image(data / "sharp.png").pixels
    (line,) = [x for x in document["results"] if x["blur"] == "data/b20.png" and x["row"] == "final"]
    for metric, function in (("psnr", psnr_8bit), ("ssim", ssim), ("mae", mae)):
        assert line[metric] == pytest.approx(function(final, sharp), rel=1e-6)
    assert line["psnr_gain"] == pytest.approx(line["psnr"] - psnr_8bit(torch.full(SIZE, 120 / 255), sharp))


def test_command_exits_with_1_where_pairs_fail(
    manifest: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(manifest), "--model", str(tiny_checkpoint)]) == 1
    shown = capsys.readouterr()
    assert "2 pairs" in shown.out and "2 of 4 pairs failed" in shown.err and "none.png does not exist" in shown.err
    assert main(["evaluate", str(manifest), "--where", "split=test", "--model", str(tiny_checkpoint)]) == 1
    assert "no rows with split=test" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--where", "split"], ["--limit", "0"], ["--steps", "-1"]])
def test_command_refuses_senseless_options(manifest: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(manifest), *extra])
    assert stop.value.code == 2


def test_enlarged_pairs_are_scored_at_their_new_size(manifest: Path) -> None:
    pair, seen = read_manifest(manifest)[0], []

    def look(blurred: Tensor) -> dict[str, Tensor]:
        seen.append(tuple(blurred.shape))
        return {"same": blurred}

    scores = evaluate_pair(pair, look, enlarge=3)
    assert seen == [(3, 72, 96)]
    assert scores.rows["same"] == scores.rows["blurred"]
    assert scores.rows["blurred"]["mae"] == pytest.approx(10 / 255, abs=1e-4)
