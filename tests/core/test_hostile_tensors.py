"""Tensors of any shape, type and content into every stage: a finite result, or one error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_tensors import tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import at_most
from torch import Tensor

from rddm_core.checkpoint import load_checkpoint
from rddm_core.images import ImageError, LoadedImage, save_image
from rddm_core.networks.model import RDDM
from rddm_core.pipeline import (
    DeblurSettings,
    deblur,
    encode_guidance,
    estimate_defocus_map,
    merge_residual,
    pre_deblur,
    sample_residual,
)

FAST = DeblurSettings(steps=1)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> RDDM:
    return load_checkpoint(tiny_checkpoint)


def answer(call: Callable[[], Any], names: tuple[str, ...]) -> list[Tensor]:
    """What `call` returns, if it does not refuse one of `names` in one readable line."""
    with at_most(1 << 30):
        try:
            result = call()
        except ValueError as error:
            assert any(name in str(error) for name in names), error
            assert str(error).isprintable() and len(str(error)) < 300
            return []
    return [result] if isinstance(result, Tensor) else list(result)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(image=tensors((2, 3, 5, 7)), defocus_map=tensors((2, 1, 5, 7)), mask=tensors((1, 1, 3, 3)))
def test_deblur(model: RDDM, image: Tensor, defocus_map: Tensor, mask: Tensor) -> None:
    names = ("image", "defocus_map", "mask")
    given: dict[str, Any] = {"settings": FAST, "defocus_map": defocus_map, "mask": mask}
    for result in answer(lambda: [deblur(model, image, **given).image], names):
        assert result.shape[0] == len(image) and result.shape[2:] == image.shape[2:]
        assert result.isfinite().all() and 0 <= result.min() and result.max() <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    image=tensors((1, 3, 4, 6)), other=tensors((1, 3, 4, 6)), residual=tensors((1, 3, 4, 6)), mask=tensors((1, 1, 4, 6))
)
def test_merge(image: Tensor, other: Tensor, residual: Tensor, mask: Tensor) -> None:
    names = ("original", "pre_deblurred", "residual", "mask")
    for result in answer(lambda: merge_residual(image, other, residual, mask=mask), names):
        assert result.shape == image.shape and result.isfinite().all() and 0 <= result.min() and result.max() <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(image=tensors((1, 3, 5, 7)), defocus_map=tensors((1, 1, 5, 7)))
def test_stages(model: RDDM, image: Tensor, defocus_map: Tensor) -> None:
    names = ("image", "defocus_map", "pre_deblurred")
    for call in (
        lambda: estimate_defocus_map(model, image),
        lambda: pre_deblur(model, image, defocus_map),
        lambda: encode_guidance(model, image),
        lambda: sample_residual(model, image, defocus_map, steps=1),
    ):
        for result in answer(call, names):
            assert result.shape[0] == len(image) and result.dtype == torch.float32
            assert result.isfinite().all() or image.abs().max() > 1e3  # what no picture holds may overflow


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pixels=tensors((3, 5, 7)), alpha=tensors((1, 5, 7)), bits=st.sampled_from([8, 16, 32]))
def test_saving(tmp_path_factory: pytest.TempPathFactory, pixels: Tensor, alpha: Tensor, bits: int) -> None:
    path = tmp_path_factory.mktemp("saved") / "a.tif"
    try:
        save_image(path, pixels, LoadedImage(pixels, alpha, bits=bits))
    except ImageError as error:
        assert str(error).startswith(f"{path}") and str(error).isprintable()
        assert list(path.parent.iterdir()) == []
    else:
        assert pixels.isfinite().all() and list(path.parent.iterdir()) == [path]


def test_a_huge_batch_of_tiny_pictures(model: RDDM) -> None:
    """As single pictures, in the memory of one."""
    batch = torch.rand(100, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    with at_most(512 << 20):
        result = deblur(model, batch, settings=FAST).image
    assert result.shape == batch.shape
    for b in (0, 57, 99):
        alone = deblur(model, batch[b : b + 1], settings=DeblurSettings(steps=1, seed=b)).image
        assert torch.equal(result[b : b + 1], alone)
