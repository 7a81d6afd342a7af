"""The HTML report, from known scores and as the command writes it."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rddm_core.checkpoint import save_checkpoint
from rddm_core.cli import main
from rddm_core.config import nafnet
from rddm_core.evaluation.evaluate import METRICS, Pair, PairScores, summarise
from rddm_core.evaluation.maps import MapScore, RadiusOrder
from rddm_core.evaluation.report import (
    CropCollector,
    Report,
    _crop_section,
    _gain_table,
    _map_section,
    _score_table,
    _sharp_section,
    _uncertainty,
    strongest_window,
    write_report,
)
from rddm_core.images import save_image
from rddm_core.networks.model import RDDM

PSNR, HAARPSI, MAE = (next(m for m in METRICS if m.name == name) for name in ("psnr", "haarpsi", "mae"))


class Page(HTMLParser):
    """Headings, cells and pictures of a page; complains about tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def pair(name: str) -> Pair:
    return Pair(Path(name), Path("s"), {"blur": name, "sharp": "s", "scene": f"phone/{name}"})


def scores(name: str, gain: float, **figures: dict[str, float]) -> PairScores:
    """PSNR 25 of the input, and the gain of "final" once, twice and three times; the error falls by 0.01 each time."""
    rows = {"blurred": {"psnr": 25.0, "haarpsi": 0.6, "mae": 0.2, "colour_shift": 0.0}}
    for k, row in enumerate(("final", "steps-1", "steps-3"), 1):
        rows[row] = {"psnr": 25 + gain * k, "haarpsi": 0.7, "mae": 0.2 - 0.01 * k, "colour_shift": 1.0}
    return PairScores(pair(name), rows, figures={"blurred": {"radius": 3.0}, **figures})


def cells(*values: object) -> str:
    """Such cells side by side in a table."""
    return "".join(f"<td>{value}</td>" for value in values)


def test_a_page_of_known_scores(tmp_path: Path) -> None:
    results = [scores(f"p{i}", gain) for i, gain in enumerate((1, 2, -1, 4, 5, 6, 7))]
    results.append(PairScores(pair("<bad>.png"), error="cannot be read & more"))
    collect = CropCollector()
    for r in results[:-1]:
        collect(r.pair, {row: torch.rand(3, 20, 24) for row in r.rows}, torch.zeros(3, 20, 24))
    report = Report(
        "A <title>",
        {"data": "set", "settings": {"steps": 2}},
        results,
        collect.crops,
        (PSNR, HAARPSI),
        totals={"final": {"fid": 12.5}},
        maps={"estimator": MapScore(0.8, 0.6, 0.7, 0.1)},
        order=RadiusOrder((0.9, 0.7), 0.85),
    )
    path = tmp_path / "out" / "report.html"
    write_report(path, report)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.texts["h1"] == ["A <title>"]
    assert page.texts["h2"][:3] == ["Scores", "Gain over the blurred input", "Plots"]
    assert {"Best pairs", "Worst pairs", "Failed", "Defocus maps"} <= set(page.texts["h2"])
    assert "<bad>.png: cannot be read & more" in page.texts["li"]
    # Mean of the gains: 24 / 7. Best of the column in bold.
    assert "+3.43" in page.texts["td"] and "12.50" in page.texts["td"] and "35.29" in page.texts["b"]
    # One bar and scatter plot, one of all rows, one curve over steps, and the crops: 10 pairs of 4 rows and the target.
    assert len([i for i in page.images if (i["src"] or "").startswith("data:image/svg+xml")]) == 3
    assert len([i for i in page.images if (i["src"] or "").startswith("data:image/jpeg")]) == 2 * 5 * 5
    alts = [i["alt"] for i in page.images if (i["src"] or "").startswith("data:image/jpeg")]
    assert alts[:5] == ["blurred", "final", "target", "steps-1", "steps-3"], "what is judged stands in view"
    captions = page.texts["h3"]
    assert [re.findall(r"p\d", c)[0] for c in captions[:5]] == ["p6", "p5", "p4", "p3", "p1"]
    assert [re.findall(r"p\d", c)[0] for c in captions[5:]] == ["p2", "p0", "p1", "p3", "p4"]
    assert 'src="http' not in text and 'href="http' not in text, "the page must stand alone"
    write_report(path, report)
    assert path.read_text(encoding="utf-8") == text


def test_of_an_error_the_smallest_is_the_best_of_the_column() -> None:
    metrics = (PSNR, MAE)
    table = _score_table(summarise([scores("a", 1)], metrics), metrics, {})
    assert re.findall("<b>(.*?)</b>", table) == ["28.00", "0.1700"]


def test_the_worst_pair_is_named_beside_its_gain() -> None:
    results = [scores("good.png", 5), scores("bad.png", -5)]
    table = _gain_table(summarise(results, (PSNR,)), (PSNR,))
    assert cells("final", "+0.00", "+0.00", "-5.00", "bad.png") in table


def test_sharp_photographs_are_counted_from_44_db_and_the_worst_is_named() -> None:
    section = _sharp_section([scores("good.png", 25), scores("fine.png", 19), scores("bad.png", 5)])
    assert cells("final", "44.00", "30.00", "2/3", "1.00", "bad.png") in section


def test_columns_of_the_spread_of_samples() -> None:
    section = _uncertainty([scores("a", 1, final={"spread": 0.7, "spread_noise": 0.1, "deviation": 0.02})])
    assert cells("final", "0.700", "0.100", "5.10") in section


def test_columns_of_defocus_maps() -> None:
    section = _map_section({"estimator": MapScore(0.8, 0.6, 0.5, 0.1)}, None)
    assert cells("estimator", "0.700", "0.800", "0.600", "0.500", "0.100") in section


def test_crops_tell_the_gain_of_their_row() -> None:
    crop = torch.zeros(2, 2, 3, dtype=torch.uint8)
    section = _crop_section("Best", [scores("a", 2)], {"a": {"final": crop}}, "final")
    assert "<figcaption>final +2.00 dB</figcaption>" in section


def drawn_texts(page: Page) -> list[set[str]]:
    """What is written in each plot: matplotlib leaves it as comments beside the outlines of the letters."""
    plots = [src.split(",", 1)[1] for i in page.images if (src := i["src"] or "").startswith("data:image/svg+xml")]
    return [set(re.findall(r"<!-- (.*?) -->", base64.b64decode(plot).decode())) for plot in plots]


def test_the_command_shows_peers_and_ablations_everywhere(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A regression as the peer: in every table, plot and row of crops; sharp photographs by it and the result alone."""
    torch.manual_seed(0)
    peer = tmp_path / "r.safetensors"
    save_checkpoint(peer, RDDM(nafnet()), provenance={"recipe": {"stage": "regression"}}, licence="none")
    for kind in ("blur", "sharp"):
        save_image(tmp_path / "data" / kind / "0.png", torch.rand(3, 40, 48))
    (tmp_path / "data" / "photos.csv").write_text("file\nsharp/0.png\n")
    target = tmp_path / "report.html"
    rows = ["final", "steps-1", "steps-2", "map-zeroed", "map-inverted", "guidance-zeroed"]
    command = ["evaluate", str(tmp_path / "data"), "--model", str(tiny_checkpoint), "--rows", ",".join(rows)]
    sharp = ["--sharp", str(tmp_path / "data" / "photos.csv")]
    assert main([*command, "--peer", f"regression={peer}", "--report", str(target), *sharp]) == 0
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    tables = [re.findall(r"<tr><td>(.*?)</td>", table) for table in re.findall(r"<table>.*?</table>", text)]
    assert tables == [["blurred", *rows, "regression"], [*rows, "regression"], ["final", "regression"]]
    gains, spread, curve = drawn_texts(page)
    assert {"final: PSNR gain per pair", "regression"} <= gains
    assert {*rows, "regression"} <= spread and {"blurred", *rows, "regression"} <= curve
    strip = ["blurred", "final", "target", *rows[1:], "regression"]
    assert [c.split()[0] for c in page.texts["figcaption"]] == strip * 2


def test_a_peer_is_not_what_the_report_is_about(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for kind in ("blur", "sharp"):
        save_image(tmp_path / "data" / kind / "0.png", torch.rand(3, 40, 48))
    target = tmp_path / "report.html"
    command = ["evaluate", str(tmp_path / "data"), "--model", str(tiny_checkpoint), "--rows", "steps-1"]
    assert main([*command, "--peer", f"older={tiny_checkpoint}", "--report", str(target)]) == 0
    assert "steps-1: PSNR gain per pair" in drawn_texts(Page(target.read_text(encoding="utf-8")))[0]


def test_a_regression_is_no_model(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "r.safetensors"
    save_checkpoint(plain, RDDM(nafnet()), provenance={"recipe": {"stage": "regression"}}, licence="none")
    for kind in ("blur", "sharp"):
        save_image(tmp_path / "data" / kind / "0.png", torch.rand(3, 40, 48))
    photo = tmp_path / "data" / "blur" / "0.png"
    for command in (["evaluate", str(tmp_path / "data")], ["deblur", str(photo), "-o", str(tmp_path / "out.png")]):
        assert main([*command, "--model", str(plain)]) == 1
        assert "holds a plain network of the training stage" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_crops_lie_where_the_picture_changed_most() -> None:
    change = torch.zeros(64, 80)
    change[40:48, 56:64] = 1
    assert strongest_window(change, 16) == (32, 48) or strongest_window(change, 16) == (40, 56)
    collect = CropCollector()
    target = torch.zeros(3, 400, 500)
    final = target.clone()
    final[:, 300:310, 400:410] = 1
    collect(pair("a"), {"blurred": target, "final": final}, target)
    crop: Tensor = collect.crops["a"]["final"]
    assert crop.shape == (160, 160, 3) and int((crop == 255).sum()) == 300


def test_crops_are_kept_of_the_pairs_that_are_shown() -> None:
    collect, target = CropCollector(), torch.zeros(3, 20, 24)
    for i in range(30):  # in a mixed order; the higher the number, the larger the gain
        number = i * 7 % 30
        collect(pair(str(number)), {"blurred": target + 0.5, "final": target + (30 - number) / 60}, target)
    assert sorted(map(int, collect.crops)) == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]


def test_the_command_writes_a_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        for kind in ("blur", "sharp"):
            save_image(tmp_path / "data" / kind / f"{i}.png", torch.rand(3, 40, 48, generator=generator))
    masks = tmp_path / "masks"
    save_image(masks / "a.png", torch.rand(3, 40, 48, generator=generator))
    save_image(masks / "m.png", (torch.arange(48) < 20).float().expand(3, 40, 48))
    (masks / "manifest.csv").write_text("image,mask\nmasks/a.png,masks/m.png\n")
    (tmp_path / "data" / "photos.csv").write_text("file\nsharp/0.png\n")
    target = tmp_path / "report.html"
    command = ["evaluate", str(tmp_path / "data"), "--model", str(tiny_checkpoint), "--report", str(target)]
    rows = ["--rows", "unsharp,wiener,richardson-lucy,default,steps-1,steps-2,mean-2,map-zeroed"]
    extra = ["--sharp", str(tmp_path / "data" / "photos.csv"), "--masks", str(masks)]
    assert main([*command, *rows, *extra]) == 0
    page = Page(target.read_text(encoding="utf-8"))
    headings = page.texts["h2"]
    assert "Do the samples differ where they are wrong?" in headings and "Defocus maps" in headings
    assert "Sharp photographs, which should stay as they are" in headings
    assert {"blurred", "richardson-lucy", "mean-2", "estimator", "all white"} <= set(
        page.texts["td"] + page.texts["th"]
    )


@pytest.fixture
def sets(tmp_path: Path, tiny_checkpoint: Path) -> list[str]:
    """The command for a report on one pair of grade 1, beside which lie sharp.csv and the folder masks, of split val.

    One of the two masks cannot be read.
    """
    for name in ("blur", "sharp", "masks/a"):
        save_image(tmp_path / f"{name}.png", torch.rand(3, 40, 48))
    save_image(tmp_path / "masks" / "m.png", (torch.arange(48) < 20).float().expand(3, 40, 48))
    (tmp_path / "masks" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pairs.csv").write_text("blur,sharp,split,grade\nblur.png,sharp.png,val,1\n")
    (tmp_path / "sharp.csv").write_text("file,split\nsharp.png,val\nsharp.png,train\n")
    lines = [f"masks/a.png,masks/{mask}.png,val" for mask in ("broken", "m")]
    (tmp_path / "masks" / "manifest.csv").write_text("\n".join(["image,mask,split", *lines]) + "\n")
    command = ["evaluate", str(tmp_path / "pairs.csv"), "--model", str(tiny_checkpoint)]
    return [*command, "--report", str(tmp_path / "r.html"), "--rows", "unsharp"]


def test_senseless_data_is_refused_before_the_work(
    sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Pair] = []
    monkeypatch.setattr("rddm_core.evaluation.evaluate.evaluate_pair", lambda pair, *_: evaluated.append(pair))
    (tmp_path / "plain.csv").write_text("file\nsharp.png\n")
    for option, data, reason in (
        ("--masks", "none", "does not exist"),
        ("--masks", "sharp.csv", "lacks the columns image, mask"),
        ("--sharp", "none.csv", "cannot be read"),
        ("--sharp", "plain.csv", "no column 'split'"),
    ):
        assert main([*sets, option, str(tmp_path / data), "--where", "split=val"]) == 1
        assert reason in capsys.readouterr().err
    assert not evaluated and not (tmp_path / "r.html").exists()


def test_a_mask_that_cannot_be_read_does_not_cost_the_report(
    sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sets, "--masks", str(tmp_path / "masks")]) == 1
    assert f"failed: {tmp_path / 'masks' / 'a.png'}: " in capsys.readouterr().err
    assert "all white" in Page((tmp_path / "r.html").read_text()).texts["td"]
    (tmp_path / "masks" / "m.png").unlink()
    (tmp_path / "r.html").unlink()
    assert main([*sets, "--masks", str(tmp_path / "masks")]) == 1
    assert "the report has no defocus maps" in capsys.readouterr().err
    page = Page((tmp_path / "r.html").read_text())
    assert "Scores" in page.texts["h2"] and "Defocus maps" not in page.texts["h2"]


def test_columns_of_the_pairs_select_among_them_alone(sets: list[str], tmp_path: Path) -> None:
    save_image(tmp_path / "masks" / "broken.png", torch.zeros(3, 40, 48))
    beside = ["--masks", str(tmp_path / "masks"), "--sharp", str(tmp_path / "sharp.csv")]
    assert main([*sets, *beside, "--where", "split=val", "--where", "grade=1"]) == 0
    page = Page((tmp_path / "r.html").read_text())
    assert {"Defocus maps", "Sharp photographs, which should stay as they are"} <= set(page.texts["h2"])
    assert "0/1" in page.texts["td"] or "1/1" in page.texts["td"], "one of two sharp photographs"
