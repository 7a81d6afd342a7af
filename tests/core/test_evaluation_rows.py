"""The rows of the evaluation: each is what its name says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rddm_core import classical
from rddm_core.checkpoint import load_checkpoint, save_checkpoint
from rddm_core.cli import main
from rddm_core.evaluation.rows import (
    ALL_ROWS,
    RowError,
    _remembering,
    combine,
    peer_method,
    rddm_method,
    select_rows,
)
from rddm_core.images import save_image
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import DeblurResult, DeblurSettings, deblur, estimate_defocus_map, pre_deblur

SIZE = (3, 40, 48)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> RDDM:
    return load_checkpoint(tiny_checkpoint)


def test_names() -> None:
    assert select_rows(["default", "final", "steps-7"]) == ["pre-deblurred", "final", "steps-7"]
    assert select_rows(["all"]) == list(ALL_ROWS)
    for wrong in ("steps-0", "mean", "sharpest"):
        with pytest.raises(RowError, match=f"unknown row '{wrong}': choose all"):
            select_rows([wrong])


def test_rows_are_the_pipeline_s_pictures(model: RDDM, picture: Tensor) -> None:
    settings = DeblurSettings(samples=2, seed=3)
    rows = rddm_method(model, settings, ["default", "steps-1", "steps-3"])(picture)
    result = deblur(model, picture[None], settings=settings)
    assert list(rows) == ["pre-deblurred", "final", "steps-1", "steps-3"]
    assert torch.equal(rows["pre-deblurred"], result.pre_deblurred[0])
    assert torch.equal(rows["final"], (result.image[0] + result.image[1]) / 2)
    for n in (1, 3):
        expected = deblur(model, picture[None], settings=DeblurSettings(samples=2, seed=3, steps=n)).image.mean(dim=0)
        assert torch.equal(rows[f"steps-{n}"], expected)
    assert not torch.equal(rows["steps-1"], rows["steps-3"])


def test_a_budget_buys_the_tiles_that_it_buys_deblur(
    model: RDDM, picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not looked at is not kept."""
    kept: list[tuple[bool, bool]] = []

    def look(*arguments: Any, keep_stages: bool = True, mean: bool = False, **options: Any) -> DeblurResult:
        kept.append((keep_stages, mean))
        return deblur(*arguments, keep_stages=keep_stages, mean=mean, **options)

    monkeypatch.setattr("rddm_core.evaluation.rows.deblur", look)
    rddm_method(model, DeblurSettings(), ["final", "steps-2", "map-zeroed", "guidance-zeroed"])(picture)
    assert kept == [(False, True)] * 4
    rddm_method(model, DeblurSettings(), ["default"])(picture)
    assert kept[4:] == [(True, True)]


def test_rows_of_samples_share_their_first_ones(model: RDDM, picture: Tensor) -> None:
    rows = rddm_method(model, DeblurSettings(), ["mean-2", "mean-3"])(picture)
    drawn = deblur(model, picture[None], settings=DeblurSettings(samples=3)).image
    assert torch.equal(rows["mean-3"], drawn) and torch.equal(rows["mean-2"], drawn[:2])


def test_ablations_change_one_input_each(model: RDDM, picture: Tensor) -> None:
    rows = rddm_method(model, DeblurSettings(), ["final", "map-zeroed", "map-inverted", "guidance-zeroed"])(picture)
    estimate = estimate_defocus_map(model, picture[None])
    for row, defocus_map in (("map-zeroed", torch.zeros_like(estimate)), ("map-inverted", 1 - estimate)):
        assert torch.equal(rows[row], deblur(model, picture[None], defocus_map=defocus_map).image[0])
    assert len({float(p.sum()) for p in rows.values()}) == 4, "every input has an effect"
    again = rddm_method(model, DeblurSettings(), ["final"])(picture)
    assert torch.equal(again["final"], rows["final"]), "nothing of an ablation stays behind"


def test_rows_share_what_they_have_in_common(model: RDDM, picture: Tensor) -> None:
    """One picture: f is asked once per distinct step, everything else once per map, and nothing is kept after."""
    calls: dict[str, int] = {}
    # Layers within the networks: hooks of these themselves see the calls that are answered from memory, too.
    counted: dict[str, torch.nn.Module] = {
        "estimator": model.estimator.segformer.segformer,
        "pre_deblur": model.pre_deblur.outro,
        "guidance": model.guidance.backbone,
        "denoiser": model.denoiser.time,
    }
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        for name, part in counted.items()
    ]
    rows = ["final", "steps-1", "steps-2", "steps-3", "mean-2", "map-zeroed", "guidance-zeroed"]
    method = rddm_method(model, DeblurSettings(), rows)
    try:
        first = method(picture)
    finally:
        for hook in hooks:
            hook.remove()
    # H: of this map's guess, of it turned for the second sample, and of the other map's.
    # f: one first step for all, the 2nd of final (2 steps), the 2nd and 3rd of steps-3, two of the second sample, and
    # two each with another map and without guidance.
    assert calls == {"estimator": 1, "pre_deblur": 2, "guidance": 3, "denoiser": 1 + 1 + 2 + 2 + 2 + 2}
    assert not any("forward" in vars(part) for part in (model.estimator, model.pre_deblur, model.denoiser))
    remembering = _remembering(lambda x: x.sum())
    reused = torch.ones(2)
    assert remembering(reused) == 2
    reused.zero_()
    assert remembering(reused) == 0, "a picture that was written over is another one"
    second = method(1 - picture)
    assert not any(torch.equal(first[row], second[row]) for row in rows)


def test_classical_rows(model: RDDM, picture: Tensor) -> None:
    rows = rddm_method(model, DeblurSettings(), ["unsharp", "wiener", "richardson-lucy"])(picture)
    edges = classical.edge_defocus_map(picture[None])
    assert torch.equal(rows["unsharp"], classical.unsharp_mask(picture[None])[0])
    for row, method in (("wiener", "wiener"), ("richardson-lucy", "richardson_lucy")):
        assert torch.equal(rows[row], classical.deconvolve(picture[None], edges, method=method, max_radius=10.0)[0])


def test_methods_are_combined_in_order(picture: Tensor) -> None:
    rows = combine([lambda x: {"a": x}, lambda x: {"b": 1 - x}])(picture)
    assert list(rows) == ["a", "b"] and torch.equal(rows["b"], 1 - picture)


class TestPeers:
    def test_another_checkpoint_of_ours(self, tiny_checkpoint: Path, model: RDDM, picture: Tensor) -> None:
        rows = peer_method("other", tiny_checkpoint)(picture)
        assert list(rows) == ["other"] and torch.equal(rows["other"], deblur(model, picture[None]).image[0])

    def test_it_gets_the_settings_but_for_its_own_steps(
        self, tiny_checkpoint: Path, model: RDDM, picture: Tensor
    ) -> None:
        settings = DeblurSettings(steps=3, strength=0.5, seed=3, samples=2, working_size=32)
        (row,) = peer_method("other", tiny_checkpoint, settings=settings)(picture).values()
        expected = deblur(model, picture[None], settings=replace(settings, steps=0), mean=True).image[0]
        assert torch.equal(row, expected) and model.recommended_steps != 3

    def test_a_regression_is_its_first_network_without_a_map(
        self, model: RDDM, picture: Tensor, tmp_path: Path
    ) -> None:
        path = tmp_path / "r.safetensors"
        save_checkpoint(path, model, provenance={"recipe": {"stage": "regression"}}, licence="none")
        (row,) = peer_method("r", path)(picture).values()
        loaded = load_checkpoint(path)
        expected = pre_deblur(loaded, picture[None], torch.zeros(1, 1, 40, 48))[0].clamp(0, 1)
        assert torch.equal(row, expected)

    def test_models_that_spandrel_loads(self, picture: Tensor, tmp_path: Path) -> None:
        pytest.importorskip("spandrel")
        from safetensors.torch import save_file
        from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet

        network = NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
        path = tmp_path / "nafnet.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
        rows = peer_method("nafnet", path)(picture)
        with torch.inference_mode():
            expected = network.eval()(picture[None])[0].clamp(0, 1)
        assert torch.allclose(rows["nafnet"], expected, atol=1e-5)

    def test_what_nobody_loads(self, tmp_path: Path) -> None:
        with pytest.raises(RowError, match="no such file"):
            peer_method("x", tmp_path / "none.safetensors")
        (tmp_path / "x.safetensors").write_bytes(b"no weights at all")
        with pytest.raises(RowError, match="neither this package nor spandrel can load it"):
            peer_method("x", tmp_path / "x.safetensors")


def test_command_names_rows_and_refuses_two_of_one_name(
    tiny_checkpoint: Path, picture: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("blur", "sharp"):
        save_image(tmp_path / "data" / name / "a.png", picture)
    command = ["evaluate", str(tmp_path / "data"), "--model", str(tiny_checkpoint), "--rows", "final,steps-1"]
    assert main([*command, "--peer", f"older={tiny_checkpoint}"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "blurred",
        "final",
        "steps-1",
        "older",
    ]
    for wrong, message in (
        (["--peer", f"final={tiny_checkpoint}"], "two rows are called final"),
        (["--peer", f"blurred={tiny_checkpoint}"], "a peer cannot be called blurred"),
        (["--peer", f"target={tiny_checkpoint}"], "a peer cannot be called target"),
        (["--rows", "steps-1", "--peer", f"final={tiny_checkpoint}"], "a peer cannot be called final"),
        (["--rows", "final,steps-5000"], "--steps must be at most"),
        (["--peer", "none.pth"], "no such file"),
        (["--rows", "best"], "unknown row 'best'"),
        (["--layout", "dpdd"], "train_c/source"),
    ):
        assert main([*command, *wrong]) == 1
        assert message in capsys.readouterr().err
