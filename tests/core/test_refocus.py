"""Depth of field from a depth map: what is in focus stays, the rest is blurred as far as asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rddm_core.callbacks import Callbacks
from rddm_core.classical import WORKING_SIZE
from rddm_core.optics import Aperture, map_from_radius, render_defocus
from rddm_core.refocus import LEVELS, MAX_RADIUS, Lens, refocus


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """[2, 3, 48, 64]."""
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def split(size: tuple[int, int] = (48, 64)) -> Tensor:
    """The left half has depth 0, the right half 1."""
    depth = torch.zeros(1, 1, *size)
    depth[..., size[1] // 2 :] = 1
    return depth


@pytest.mark.parametrize("lens", [Lens(focus=0.4, radius=9), Lens(focus=0.9, radius=0)])
def test_what_is_in_focus_stays(scene: Tensor, lens: Lens) -> None:
    image, defocus_map = refocus(scene, torch.full((1, 1, 4, 4), 0.4), lens)
    assert torch.allclose(image, scene, atol=1e-4) and not defocus_map.any()


def test_radius_is_that_of_one_unit_of_depth(scene: Tensor) -> None:
    """Half a unit in front of the focus: half the radius, and the spot of a near thing."""
    image, defocus_map = refocus(scene, torch.full((1, 1, 4, 4), 0.75), Lens(focus=0.25, radius=6))
    expected = render_defocus(scene[0], torch.full((48, 64), -3.0), Aperture(rotation=math.pi / 2))
    assert torch.allclose(image[0], expected, atol=1e-5)
    assert torch.allclose(defocus_map, map_from_radius(torch.tensor(3.0)).expand(2, 1, 48, 64))


def test_near_and_far_are_told_apart(scene: Tensor) -> None:
    """A near thing bleeds over what is behind it; a far one ends at the sharp edge before it."""
    depth, beside = split(), (slice(None), slice(None), slice(None), slice(32, 36))
    sharp_is_far, _ = refocus(scene, depth, Lens(focus=1, radius=6, near_is_bright=False))
    sharp_is_near, _ = refocus(scene, depth, Lens(focus=1, radius=6, near_is_bright=True))
    spilt, kept = ((result[beside] - scene[beside]).abs().mean() for result in (sharp_is_far, sharp_is_near))
    assert spilt > 0.05 > 5 * kept


def test_blades_shape_the_spot() -> None:
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    depth = torch.zeros(1, 1, 1, 1)
    round_spot, two, triangle = (refocus(point, depth, Lens(radius=12, blades=b))[0] for b in (0, 2, 3))
    assert torch.equal(round_spot, two)
    lit, cut = ((spot[0, 0] > 0.01).float() for spot in (round_spot, triangle))
    assert torch.equal(lit, lit.flip(0)) and torch.equal(cut, cut.flip(1))  # upright: left and right are alike,
    assert (cut - cut.flip(0)).abs().sum() > 0.3 * cut.sum()  # top and bottom are not


def test_map_of_a_large_picture_counts_pixels_of_the_working_size() -> None:
    wide = torch.rand(1, 3, 8, 2 * WORKING_SIZE, generator=torch.Generator().manual_seed(0))
    _, defocus_map = refocus(wide, torch.zeros(1, 1, 1, 1), Lens(radius=4))
    assert torch.allclose(defocus_map, map_from_radius(torch.tensor(2.0)).expand_as(defocus_map))


def test_batch_equals_single_and_a_depth_of_another_size_is_resized(scene: Tensor) -> None:
    lens = Lens(focus=1, radius=5)
    both, maps = refocus(scene, split((24, 32)), lens)
    for b in range(2):
        one, one_map = refocus(scene[b : b + 1], split((24, 32)), lens)
        assert torch.equal(both[b : b + 1], one) and torch.equal(maps[b : b + 1], one_map)


def test_progress_and_interrupts_come_within_a_picture(scene: Tensor) -> None:
    done: list[tuple[int, int]] = []
    interrupts: list[int] = []
    watch = Callbacks(
        progress=lambda *update: done.append(update), check_interrupt=lambda: interrupts.append(len(done))
    )
    refocus(scene, split(), Lens(focus=1, radius=5), callbacks=watch)  # two layers a picture
    assert done == [(n * LEVELS // 2, 2 * LEVELS) for n in (1, 2, 3, 4)]
    assert interrupts == [0, 1, 2, 3]


def test_a_gradient_of_depth_is_cut_into_all_layers(scene: Tensor) -> None:
    done: list[tuple[int, int]] = []
    watch = Callbacks(progress=lambda *update: done.append(update))
    refocus(scene[:1], torch.linspace(0, 1, 64).expand(1, 1, 48, 64), Lens(focus=0, radius=16), callbacks=watch)
    assert done == [(n, LEVELS) for n in range(1, LEVELS + 1)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"focus": 1.1}, "focus must lie in 0..1"),
        ({"focus": math.nan}, "focus must lie in 0..1"),
        ({"radius": MAX_RADIUS + 1}, "radius must lie in 0..128 pixels"),
        ({"radius": -1.0}, "radius must lie in 0..128 pixels"),
        ({"blades": -1}, "blades must be 0"),
    ],
)
def test_a_lens_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lens(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pictures", "depth", "message"),
    [
        (1.0, torch.zeros(3, 1, 48, 64), "depth must be a tensor .* with B = 2 or 1"),
        (1.0, torch.full((1, 1, 48, 64), math.nan), "depth holds NaN"),
        (1.0, torch.full((1, 1, 48, 64), 60.0), "depth must lie in 0..1, not 60..60"),  # metres
        (255.0, torch.zeros(1, 1, 48, 64), "image must lie in 0..1"),
    ],
)
def test_inputs_that_do_not_fit(scene: Tensor, pictures: float, depth: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refocus(scene * pictures, depth, Lens())
