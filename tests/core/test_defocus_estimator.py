"""Defocus-map estimator: any size, working size, alignment, dtypes, batch independence, no download."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rddm_core.config import EstimatorConfig, RDDMConfig, lite
from rddm_core.networks.defocus_estimator import DefocusEstimator, decode, focus_cues, reduce_to


@pytest.fixture(scope="module")
def estimator(tiny_config: RDDMConfig) -> DefocusEstimator:
    torch.manual_seed(0)
    estimator = DefocusEstimator(tiny_config.estimator)
    with torch.no_grad():
        for parameter in estimator.parameters():  # away from the flat map of a fresh network
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return estimator.eval()


class Echo(nn.Module):
    """In place of SegFormer: the red channel at a quarter of the size, and what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []
        one = torch.ones(1, 1)
        self.decode_head = SimpleNamespace(
            linear_projections=[SimpleNamespace(proj=SimpleNamespace(weight=one, bias=torch.zeros(1)))],
            linear_fuse=SimpleNamespace(weight=one[..., None, None]),
            **dict.fromkeys(("batch_norm", "activation", "dropout", "classifier"), nn.Identity()),
        )

    def segformer(self, pixels: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        assert output_hidden_states
        self.seen.append(pixels)
        return SimpleNamespace(hidden_states=[F.avg_pool2d(pixels[:, :1], 4) * self.scale])


@pytest.fixture
def echo(tiny_config: RDDMConfig) -> tuple[DefocusEstimator, Echo]:
    estimator, segformer = DefocusEstimator(tiny_config.estimator), Echo()
    estimator.add_module("segformer", segformer)
    return estimator, segformer


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (31, 33), (64, 64), (65, 37), (20, 300)])
def test_any_size(estimator: DefocusEstimator, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    with torch.inference_mode():
        logits = estimator(image)
    assert logits.shape == (2, 1, *size) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((1, 1), (32, 32)),
        ((40, 20), (64, 32)),
        ((64, 64), (64, 64)),
        ((200, 100), (64, 32)),
        ((640, 10), (64, 32)),
        ((3000, 2), (64, 32)),
    ],
)
def test_reduced_to_the_working_size_and_never_enlarged(
    echo: tuple[DefocusEstimator, Echo], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    estimator, segformer = echo
    estimator(torch.full((1, 3, *size), 0.75))
    assert segformer.seen[0].shape[-2:] == padded
    # (0.75 - 0.5) / 0.25 everywhere: the padding repeats the border, a black one would be an edge to find.
    torch.testing.assert_close(segformer.seen[0][:, :3], torch.ones(1, 3, *padded))


@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_that_of_transformers(estimator: DefocusEstimator, training: bool) -> None:
    """Values and gradients, with the batch norm's own statistics and with those of the batch."""
    pixels = torch.randn(2, 6, 96, 64)
    segformer = estimator.segformer.train(training)
    try:
        encoded = segformer.segformer(pixels, output_hidden_states=True).hidden_states
        stages = [stage.detach().requires_grad_() for stage in encoded]
        found, wanted = decode(segformer.decode_head, stages), segformer.decode_head(stages)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        for a, b in zip(*(torch.autograd.grad(x.square().sum(), stages) for x in (found, wanted)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    finally:
        segformer.eval()


def test_reduction_is_antialiased() -> None:
    noise = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    reduced = reduce_to(noise, 64)
    assert reduced.shape == (1, 3, 64, 64)
    # An average over 8 x 8 pixels or more leaves an eighth of the deviation; taking single pixels leaves half.
    assert reduced.std() < noise.std() / 8
    assert reduce_to(noise, 512) is noise


@pytest.mark.parametrize("size", [(64, 64), (50, 61), (128, 96), (201, 333)])
def test_map_lies_over_its_picture(echo: tuple[DefocusEstimator, Echo], size: tuple[int, int]) -> None:
    """A ramp comes back as a ramp: padding, cropping and resizing shift nothing."""
    estimator, _ = echo
    rows = (torch.arange(size[0]) + 0.5) / size[0]
    columns = (torch.arange(size[1]) + 0.5) / size[1]
    image = ((rows[:, None] + columns) / 2).expand(1, 3, -1, -1)
    answer = estimator(image) * 0.25 + 0.5
    edge = [slice(side // 6, side - side // 6) for side in size]
    error = (answer - image[:, :1])[..., edge[0], edge[1]].abs().max()
    # A shift by one pixel of the network's quarter grid would be 0.04 and more.
    assert error < 0.01


def test_half_precision_and_autocast(tiny_config: RDDMConfig, estimator: DefocusEstimator) -> None:
    image = torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        full = estimator(image)
        with torch.autocast("cpu", torch.bfloat16):
            results = [estimator(image), estimator(image.bfloat16())]
        for dtype in (torch.bfloat16, torch.float16):
            half = DefocusEstimator(tiny_config.estimator)
            half.load_state_dict(estimator.state_dict())
            half = half.to(dtype).eval()
            assert half.dtype == dtype
            results += [half(image), half(image.to(dtype))]
    spread = (full.max() - full.min()).item()
    assert spread > 0.02
    for result in results:
        assert result.dtype == torch.float32
        assert (result - full).abs().mean() < 0.1 * full.abs().mean()


def test_batch_items_are_independent(estimator: DefocusEstimator) -> None:
    images = torch.rand(3, 3, 40, 70)
    images[0] *= 0.1
    with torch.inference_mode():
        together = estimator(images)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], estimator(images[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_one_tiny_picture_can_be_trained_on(tiny_config: RDDMConfig) -> None:
    """The head's BatchNorm: batch statistics in training even of one pixel, nothing moves in eval mode."""
    estimator = DefocusEstimator(tiny_config.estimator).train()
    statistics = {name: value.clone() for name, value in estimator.named_buffers()}
    estimator(torch.rand(1, 3, 1, 1)).sum().backward()
    moved = {name: value.clone() for name, value in estimator.named_buffers()}
    assert any(not torch.equal(value, statistics[name]) for name, value in moved.items())
    with torch.inference_mode():
        estimator.eval()(torch.rand(1, 3, 32, 32))
    assert all(torch.equal(value, moved[name]) for name, value in estimator.named_buffers())


def test_focus_cues_fall_with_blur_and_bear_flat_pictures() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    assert (focus_cues(image).mean(dim=(2, 3)) > focus_cues(blurred).mean(dim=(2, 3)) + 0.1).all()
    # How much the re-blur weakens an edge: more where the picture is sharp.
    weakened = [(cues[:, 0] - cues[:, 1]).mean() for cues in (focus_cues(image), focus_cues(blurred))]
    assert weakened[0] > weakened[1]
    flat = torch.full((1, 3, 5, 7), 0.3, requires_grad=True)
    focus_cues(flat).sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_configuration(tiny_config: RDDMConfig) -> None:
    with pytest.raises(ValueError, match="estimator.depths must have 4 entries, not 3"):
        DefocusEstimator(replace(tiny_config.estimator, depths=(1, 1, 1)))
    network = DefocusEstimator(EstimatorConfig())
    assert sum(p.numel() for p in network.parameters()) < 3.75e6  # B0 is 3.7 million


def test_built_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    from rddm_core.networks.model import RDDM

    def refuse(*args: object) -> None:
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    RDDM(lite())


def test_importing_is_cheap() -> None:
    code = (
        "import sys, rddm_core.networks.model, rddm_core.checkpoint\n"
        "print([m for m in ('transformers', 'timm', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
