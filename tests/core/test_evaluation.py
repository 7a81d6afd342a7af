"""Evaluation over a manifest: selection, scores, gains, failures and files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rddm_core.cli import main
from rddm_core.evaluation.evaluate import (
    METRICS,
    ManifestError,
    Metric,
    Pair,
    PairScores,
    evaluate,
    evaluate_pair,
    find_pairs,
    format_table,
    own_targets,
    read_manifest,
    spearman,
    summarise,
    write_csv,
    write_json,
)
from rddm_core.images import load_image, save_image
from rddm_core.metrics import MAX_PSNR, mae, psnr_8bit, ssim

SIZE = (3, 24, 32)
SHARP = (100 + 4 * (torch.arange(32) // 8)).expand(SIZE) / 255
"""Four bands of levels 100 to 112: a target needs some gradient."""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four rows: two good pairs (10 and 20 levels brighter than SHARP), one missing file, one of unequal sizes."""
    for name, error in (("sharp", 0), ("b10", 10), ("b20", 20)):
        save_image(tmp_path / "data" / f"{name}.png", SHARP + error / 255)
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
    """Two rows for the target SHARP: the error halved, and the target itself."""
    return {"half": (blurred + SHARP) / 2, "perfect": SHARP}


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
    perfect = scores.rows["perfect"]
    assert list(perfect) == [m.name for m in METRICS]
    assert [perfect[m] for m in ("psnr", "ssim", "mae", "gmsd", "colour_shift")] == [MAX_PSNR, 1.0, 0.0, 0.0, 0.0]
    assert scores.rows["half"]["colour_shift"] == pytest.approx(5)


def scores(name: str, before: float, after: float) -> PairScores:
    rows = {"blurred": {"psnr": before, "mae": before}, "final": {"psnr": after, "mae": after}}
    return PairScores(Pair(Path(name), Path("s"), {"blur": name, "sharp": "s"}), rows)


def test_summary_of_known_scores() -> None:
    results = [scores("a", 20, 22), scores("b", 30, 29), scores("c", 25, 30)]
    results.append(PairScores(results[0].pair, error="unreadable"))
    metrics = [m for m in METRICS if m.name in ("psnr", "mae")]
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
    assert psnr.improved == pytest.approx(2 / 3) and mean_error.improved == pytest.approx(1 / 3)
    text = format_table(summarise(results, metrics), metrics)
    assert [line.split() for line in text.splitlines()] == [
        ["psnr", "mae", "psnr", "gain", "median", "worst"],
        ["blurred", "25.00", "25.0000"],
        ["final", "27.00", "27.0000", "+2.00", "+2.00", "-1.00"],
    ]


def test_what_stays_as_it_was_has_not_improved() -> None:
    metrics = [m for m in METRICS if m.name == "psnr"]
    assert [s.improved for s in summarise([scores("a", 25, 25)], metrics)] == [0, 0]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_by_every_metric_the_target_is_better_than_the_blurred_picture(metric: Metric) -> None:
    target = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(target[None], 5, 1, 2)[0]
    assert metric.gain(metric.function(target, target), metric.function(blurred, target)) > 0


def test_a_metric_with_an_ideal_judges_by_the_distance_to_it() -> None:
    metric = next(m for m in METRICS if m.name == "gradient_energy")
    assert metric.gain(0.9, before=0.5) == pytest.approx(0.4)
    assert metric.gain(1.6, before=0.5) == pytest.approx(-0.1)
    assert metric.worst([0.5, 0.9, 1.6]) == 1.6


def test_samples_are_scored_as_their_mean_and_their_spread(manifest: Path) -> None:
    (pair,) = read_manifest(manifest, limit=1)
    generator = torch.Generator().manual_seed(0)

    def restore(blurred: Tensor) -> dict[str, Tensor]:
        # Left half certain and right, right half uncertain and wrong.
        noise = torch.randn(8, *SIZE, generator=generator) * (torch.arange(SIZE[2]) >= 16) * 0.1
        return {"samples": SHARP + noise, "mean": (SHARP + noise).mean(dim=0)}

    scores = evaluate_pair(pair, restore)
    assert scores.rows["samples"]["psnr"] == pytest.approx(scores.rows["mean"]["psnr"], abs=1.0)
    figures = scores.figures["samples"]
    assert figures["spread"] > 0.6 and abs(figures["spread_noise"]) < 0.15 and "mean" not in scores.figures
    assert figures["deviation"] == pytest.approx(0.1 * (0.5 * 7 / 8) ** 0.5, rel=0.05)


def test_spearman_is_of_ranks_and_0_for_constants() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.ones(4)) == 0


def test_watchers_see_every_row_and_probes_the_pair(manifest: Path) -> None:
    seen = []
    scores = evaluate_pair(
        read_manifest(manifest, limit=1)[0],
        lambda blurred: {"two": torch.stack((blurred, blurred))},
        watch=lambda pair, pictures, target: seen.append((pair.columns["scene"], list(pictures), target.shape)),
        probe=lambda blurred, target: {"difference": float((blurred - target).mean() * 255)},
    )
    assert seen == [("a", ["blurred", "two"], torch.Size(SIZE))]
    assert scores.figures["blurred"]["difference"] == pytest.approx(10, abs=1e-3)


class TestFindPairs:
    def test_manifests_are_found_by_file_and_by_folder(self, manifest: Path) -> None:
        where = [("split", "val")]
        assert find_pairs(manifest, where=where) == find_pairs(manifest.parent, where=where)
        assert len(find_pairs(manifest, "manifest", limit=3)) == 3

    def test_data_sets_get_columns(self, tmp_path: Path) -> None:
        for part in ("train_c", "test_c"):
            for kind in ("source", "target"):
                save_image(tmp_path / part / kind / "1.png", torch.zeros(SIZE))
        (pair,) = find_pairs(tmp_path, where=[("split", "test")])
        assert pair.columns == {
            "blur": "test_c/source/1.png",
            "sharp": "test_c/target/1.png",
            "scene": "dpdd/1",
            "split": "test",
        }
        assert pair.blurred == tmp_path / "test_c/source/1.png" and find_pairs(tmp_path, "dpdd") == [pair]
        with pytest.raises(ManifestError, match="no rows with split=val; there split is test, train"):
            find_pairs(tmp_path, where=[("split", "val")])
        with pytest.raises(ValueError, match="ROOT/source"):
            find_pairs(tmp_path, "realdof")

    def test_photographs_may_be_their_own_target(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.csv").write_text("file,split\na.jpg,val\nb.jpg,train\n")
        (pair,) = find_pairs(tmp_path, where=[("split", "val")])
        assert pair.blurred == pair.sharp == tmp_path / "a.jpg" and pair.columns["blur"] == "a.jpg"


def test_summary_of_nothing() -> None:
    assert summarise([]) == []


def test_failures_are_reported_per_pair_and_the_others_go_on(manifest: Path) -> None:
    results = list(evaluate(read_manifest(manifest), halve_the_error))
    assert [r.error is None for r in results] == [True, True, False, False]
    assert "none.png does not exist" in (results[2].error or "")
    assert "small.png is 31x24, but sharp.png is 32x24" in (results[3].error or "")


def test_further_metrics_and_rows_join(manifest: Path) -> None:
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
    assert line["psnr_gain"] == pytest.approx(line["psnr"] - psnr_8bit(SHARP + 20 / 255, sharp))


def test_command_exits_with_1_where_pairs_fail(
    manifest: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(manifest), "--model", str(tiny_checkpoint)]) == 1
    shown = capsys.readouterr()
    assert "2 pairs" in shown.out and "2 of 4 pairs failed" in shown.err and "none.png does not exist" in shown.err
    assert main(["evaluate", str(manifest), "--where", "split=test", "--model", str(tiny_checkpoint)]) == 1
    assert "no rows with split=test" in capsys.readouterr().err
    assert main(["evaluate", str(manifest), "--steps", "1301", "--model", str(tiny_checkpoint)]) == 1
    shown = capsys.readouterr()
    assert "--steps must be at most 1300" in shown.err and not shown.out  # before any pair


def test_an_interrupted_command_keeps_what_it_has_scored(
    manifest: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(pairs: list[Pair], *arguments: Any) -> Iterator[PairScores]:
        yield from evaluate(pairs[:1], *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("rddm_core.evaluation.evaluate.evaluate", stopped)
    files = ["--csv", str(tmp_path / "scores.csv"), "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(manifest), "--model", str(tiny_checkpoint), *files]) == 130
    assert "1 of 4 pairs are scored" in capsys.readouterr().err
    document = json.loads((tmp_path / "scores.json").read_text())
    assert (document["selected"], document["pairs"]) == (4, 1)
    with (tmp_path / "scores.csv").open(newline="") as handle:
        assert {line["blur"] for line in csv.DictReader(handle)} == {"data/b10.png"}


@pytest.mark.parametrize("error", [RuntimeError("a bug"), UnicodeEncodeError("cp1252", "x", 0, 1, "no such letter")])
def test_whatever_goes_wrong_what_is_scored_is_kept(
    manifest: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: Any) -> str:
        raise error

    monkeypatch.setattr("rddm_core.evaluation.evaluate.format_table", failing)
    files = ["--csv", str(tmp_path / "scores.csv"), "--json", str(tmp_path / "scores.json")]
    with pytest.raises(type(error)):
        main(["evaluate", str(manifest), "--model", str(tiny_checkpoint), "--where", "split=val", *files])
    assert json.loads((tmp_path / "scores.json").read_text())["pairs"] == 2
    assert (tmp_path / "scores.csv").is_file()


def test_a_pair_that_is_too_large_is_one_failure(manifest: Path) -> None:
    def method(blurred: Tensor) -> dict[str, Tensor]:
        if blurred[0, 0, 0] > 115 / 255:
            raise MemoryError
        return {}

    results = list(evaluate(read_manifest(manifest, limit=2), method))
    assert [r.error is None for r in results] == [True, False] and "not enough memory" in (results[1].error or "")


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = "caf\udce9.png"  # as Python holds a byte that is no UTF-8
    pair = Pair(tmp_path / name, tmp_path / name, {"blur": name, "sharp": name})
    write_csv(tmp_path / "scores.csv", [PairScores(pair, error="damaged")])
    write_json(tmp_path / "scores.json", [PairScores(pair, error="damaged")], {})
    assert "caf\\udce9.png" in (tmp_path / "scores.csv").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "scores.json").read_text())["results"][0]["blur"] == name


def test_what_should_stay_sharp_are_the_targets_of_pairs(manifest: Path) -> None:
    pair = own_targets(read_manifest(manifest))[0]
    assert pair.blurred == pair.sharp and pair.sharp.name == "sharp.png"
    assert pair.columns["blur"] == pair.columns["sharp"] == "data/sharp.png" and pair.columns["split"] == "val"


def test_command_overwrites_no_input(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = manifest.read_bytes()
    assert main(["evaluate", str(manifest), "--csv", str(manifest)]) == 1
    assert "would overwrite the input" in capsys.readouterr().err and manifest.read_bytes() == before


@pytest.mark.parametrize("option", ["--csv", "--json", "--report"])
def test_command_refuses_what_it_could_not_write_before_the_work(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setattr("rddm_core.evaluation.evaluate.evaluate", lambda *_: pytest.fail("scored"))
    (tmp_path / "a file").touch()
    for target, message in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "a file" / "x", "a file is no folder"),
        (Path(os.devnull), "is no regular file"),
    ):
        assert main(["evaluate", str(manifest), option, str(target)]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--where", "split"], ["--limit", "0"], ["--steps", "-1"]])
def test_command_refuses_senseless_options(manifest: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(manifest), *extra])
    assert stop.value.code == 2


class Look:
    """A method that changes nothing and remembers the sizes of what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, blurred: Tensor) -> dict[str, Tensor]:
        self.seen.append(tuple(blurred.shape))
        return {"same": blurred}


def test_enlarged_pairs_are_scored_at_their_new_size(manifest: Path) -> None:
    look = Look()
    scores = evaluate_pair(read_manifest(manifest)[0], look, enlarge=3)
    assert look.seen == [(3, 72, 96)]
    assert scores.rows["same"] == scores.rows["blurred"]
    assert scores.rows["blurred"]["mae"] == pytest.approx(10 / 255, abs=1e-4)


def test_every_pair_is_enlarged(manifest: Path) -> None:
    look = Look()
    list(evaluate(read_manifest(manifest, limit=2), look, [], enlarge=3))
    assert look.seen == [(3, 72, 96)] * 2
