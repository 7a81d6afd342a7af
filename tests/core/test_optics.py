"""Thin lens, apertures and layered rendering."""

from __future__ import annotations

import math

import pytest
import torch
from live_tensors import Peak
from torch import Tensor

from rddm_core.callbacks import Callbacks
from rddm_core.optics import (
    Aperture,
    aperture_kernel,
    circle_of_confusion,
    kernel_reach,
    linear_to_srgb,
    map_from_radius,
    radius_from_map,
    render_defocus,
    scale_map,
    srgb_to_linear,
)


class TestCircleOfConfusion:
    def test_follows_the_thin_lens(self):
        """f = 50 mm at f/2, focused at 2 m: image distances by 1/f = 1/d + 1/i, spot by similar triangles."""
        focal, aperture, focus = 0.05, 0.025, 2.0
        for d in (0.5, 1.0, 3.0, 100.0):
            sensor, image = 1 / (1 / focal - 1 / focus), 1 / (1 / focal - 1 / d)
            expected = aperture / 2 * (sensor - image) / image
            got = float(circle_of_confusion(torch.tensor([d]), focus, aperture, focal))
            assert got == pytest.approx(expected, rel=1e-4)

    def test_sign_and_zero(self):
        radius = circle_of_confusion(torch.tensor([1.0, 2.0, 4.0]), 2.0, 0.02, 0.05)
        assert radius[0] < 0 and radius[1] == 0 and radius[2] > 0

    def test_infinity_is_the_limit_of_far_things(self):
        near, far = circle_of_confusion(torch.tensor([1e6, math.inf]), 2.0, 0.02, 0.05)
        assert float(far) == pytest.approx(float(near), rel=1e-5) and far > near

    @pytest.mark.parametrize(("focus", "focal"), [(0.05, 0.05), (1.0, 0.0), (0.01, 0.05)])
    def test_impossible_lenses_are_refused(self, focus, focal):
        with pytest.raises(ValueError, match="must exceed the focal length"):
            circle_of_confusion(torch.ones(1), focus, 0.01, focal)

    def test_depth_must_be_positive(self):
        with pytest.raises(ValueError, match="depth must be positive"):
            circle_of_confusion(torch.tensor([1.0, 0.0]), 2.0, 0.01, 0.05)


def test_map_and_radius_are_inverse_and_monotone():
    radius = torch.linspace(0, 13, 50)
    assert torch.allclose(radius_from_map(map_from_radius(radius)), radius, atol=1e-3)
    assert bool((map_from_radius(radius).diff() > 0).all())
    assert torch.equal(map_from_radius(-radius), map_from_radius(radius))
    assert float(map_from_radius(torch.tensor(0.0))) == 0


def test_the_map_of_an_enlarged_picture_has_larger_radii():
    radius = torch.linspace(0, 3, 31)
    torch.testing.assert_close(scale_map(map_from_radius(radius), 2.5), map_from_radius(2.5 * radius))
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(scale_map(ends, 12.0), ends)


def test_transfer_functions_are_inverse_and_standard():
    x = torch.linspace(0, 1, 1001)
    assert torch.allclose(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-5)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-4)


SHAPES = [Aperture(), Aperture(blades=6, rotation=0.3), Aperture(rim=0.5, softness=0.3), Aperture(vignette=0.5)]


@pytest.mark.parametrize("aperture", SHAPES)
@pytest.mark.parametrize("radius", [0.0, 0.4, 1.0, 3.7, 9.0, -5.0])
def test_spots_keep_the_energy(aperture, radius):
    spot = aperture_kernel(radius, aperture, 25)
    assert float(spot.sum()) == pytest.approx(1, abs=1e-5)
    assert float(spot.min()) >= 0


@pytest.mark.parametrize("blades", [0, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("radius", [0.3, 3.4, -32.0, 100.0])
def test_a_kernel_of_their_reach_holds_all_of_a_spot(blades: int, radius: float) -> None:
    for rotation in (0.0, 0.4, math.pi / 2):
        aperture = Aperture(blades=blades, rotation=rotation)
        reach = kernel_reach(radius, aperture)
        spot, double = (aperture_kernel(radius, aperture, 2 * half + 1) for half in (reach, 2 * reach))
        torch.testing.assert_close(torch.nn.functional.pad(spot, (reach,) * 4), double, atol=1e-7, rtol=1e-4)


def test_corners_of_a_polygon_are_rendered() -> None:
    """A point of light in a picture large enough for its spot."""
    point, aperture = torch.zeros(3, 161, 161), Aperture(blades=3, rotation=math.pi / 2)
    point[:, 80, 80] = 1
    spot = aperture_kernel(32.0, aperture, 161)
    rendered = srgb_to_linear(render_defocus(point, torch.full((161, 161), 32.0), aperture))[0]
    torch.testing.assert_close(rendered, spot, atol=1e-5, rtol=0)
    assert float(spot[: 80 - 34].sum() + spot[80 + 35 :].sum()) > 0.03


@pytest.mark.parametrize("blades", [0, 5, 6, 8])
@pytest.mark.parametrize("radius", [3.0, 8.0])
def test_spots_have_the_area_of_their_disc(blades, radius):
    spot = aperture_kernel(radius, Aperture(blades=blades), 31)
    assert float(1 / spot.max()) == pytest.approx(math.pi * radius**2, rel=0.06)


def test_a_disc_has_the_second_moment_of_its_radius():
    axis = torch.arange(41.0) - 20
    for radius in (2.0, 6.0, 12.0):
        spot = aperture_kernel(radius, Aperture(), 41)
        moment = float((spot * (axis[:, None] ** 2 + axis[None, :] ** 2)).sum())
        # The antialiased rim of one pixel adds a quarter of a square pixel.
        assert moment == pytest.approx(radius**2 / 2 + 0.25, rel=0.06)


def test_spots_are_mirrored_in_front_of_the_focus_plane():
    aperture = Aperture(blades=5, rotation=0.2, vignette=0.4, vignette_angle=1.0)
    behind, front = aperture_kernel(6.0, aperture, 17), aperture_kernel(-6.0, aperture, 17)
    assert torch.allclose(front, behind.flip(0, 1), atol=1e-6)
    assert not torch.allclose(front, behind, atol=1e-4)


@pytest.mark.parametrize("angle", [0.0, math.pi / 2])
def test_a_cat_s_eye_keeps_the_side_of_its_angle(angle: float) -> None:
    axis = torch.arange(25.0) - 12
    spot = aperture_kernel(8.0, Aperture(vignette=0.5, vignette_angle=angle), 25)
    x, y = float((spot * axis).sum()), float((spot * axis[:, None]).sum())
    length = math.hypot(x, y)
    assert length > 0.5 and (x, y) == pytest.approx((length * math.cos(angle), length * math.sin(angle)), abs=1e-4)


def test_softness_keeps_the_second_moment() -> None:
    axis = torch.arange(61.0) - 30
    squares = axis[:, None] ** 2 + axis**2
    hard, soft = (float((aperture_kernel(6.0, Aperture(softness=s), 61) * squares).sum()) for s in (0.0, 1.0))
    assert soft == pytest.approx(hard, rel=0.03)


def test_a_positive_rim_is_brighter_than_the_centre() -> None:
    bubble, soft = (aperture_kernel(6.0, Aperture(rim=rim), 15)[7] for rim in (0.5, -0.5))
    assert bubble[2] > 1.2 * bubble[7] and soft[2] < 0.8 * soft[7]


class TestRendering:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 48, 56, generator=generator)

    def test_in_focus_nothing_changes(self):
        assert torch.allclose(render_defocus(self.picture, torch.zeros(48, 56)), self.picture, atol=1e-5)

    def test_a_flat_picture_stays_flat_under_any_blur(self):
        radius = torch.linspace(-6, 6, 56).expand(48, 56)
        grey = torch.full((3, 48, 56), 0.4)
        assert torch.allclose(render_defocus(grey, radius), grey, atol=1e-3)

    def test_uniform_blur_is_a_convolution_in_linear_light(self):
        blurred = render_defocus(self.picture, torch.full((48, 56), 3.0))
        spot = aperture_kernel(3.0, Aperture(), 9)
        linear = torch.nn.functional.pad(srgb_to_linear(self.picture)[None], (4,) * 4, mode="replicate")
        expected = torch.nn.functional.conv2d(linear, spot.expand(3, 1, 9, 9), groups=3)[0]
        assert torch.allclose(srgb_to_linear(blurred), expected, atol=1e-4)

    def test_near_objects_bleed_over_far_ones_and_not_the_reverse(self):
        picture, near = torch.zeros(3, 40, 60), torch.zeros(40, 60, dtype=torch.bool)
        picture[:, :, 30:] = 1.0
        near[:, 30:] = True
        over_focused = render_defocus(picture, torch.where(near, -5.0, 0.0))
        assert float(over_focused[0, 20, 27]) > 0.3  # blurred near edge spreads over the focused background
        behind_focused = render_defocus(picture, torch.where(near, 0.0, 5.0))
        assert float(behind_focused[0, 20, 31]) > 0.99  # a focused near object keeps its edge

    def test_highlights_bloom(self):
        picture = torch.full((3, 41, 41), 0.1)
        picture[:, 20, 20] = 1.0
        radius = torch.full((41, 41), 4.0)
        plain, bloom = (render_defocus(picture, radius, highlight_gain=g) for g in (1.0, 10.0))
        assert float(bloom[0, 20, 18]) > float(plain[0, 20, 18]) + 0.05

    def test_colour_fringe_spreads_red_and_blue_differently(self):
        picture = torch.zeros(3, 31, 31)
        picture[:, :, 16:] = 1.0
        fringed = render_defocus(picture, torch.full((31, 31), 4.0), colour_fringe=0.3)
        assert float((fringed[0] - fringed[2]).abs().max()) > 0.02
        plain = render_defocus(picture, torch.full((31, 31), 4.0))
        assert torch.allclose(plain[0], plain[2], atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"colour_fringe": -0.1}, {"highlight_gain": 6.0}])
    @pytest.mark.parametrize("levels", [2, 7, 16])
    def test_layers_one_by_one_give_what_all_at_once_give(self, options: dict[str, float], levels: int) -> None:
        radius = torch.linspace(-5, 7, 56) + torch.linspace(0, 1, 48)[:, None]
        aperture = Aperture(blades=7, rotation=0.3, rim=0.4, vignette=0.4, vignette_angle=0.5, softness=0.2)
        rendered = render_defocus(self.picture, radius, aperture, levels=levels, **options)
        expected = all_layers_at_once(self.picture, radius, aperture, levels, **options)
        torch.testing.assert_close(rendered, expected, atol=1e-5, rtol=0)

    def test_one_layer_takes_the_middle_of_the_radii(self) -> None:
        radius = torch.linspace(2, 6, 56).expand(48, 56)
        rendered = render_defocus(self.picture, radius, levels=1)
        # Only the margin of the transforms differs.
        torch.testing.assert_close(rendered, render_defocus(self.picture, torch.full_like(radius, 4.0)))

    def test_memory_does_not_grow_with_the_layers(self) -> None:
        radius = torch.linspace(-6, 6, 56).expand(48, 56).contiguous()
        peaks = []
        for levels in (2, 16):
            with Peak() as peak:
                render_defocus(self.picture, radius, levels=levels)
            peaks.append(peak.peak)
        assert peaks[1] <= 1.02 * peaks[0]

    def test_every_layer_is_reported_and_can_be_the_last(self) -> None:
        seen: list[tuple[int, int]] = []

        def stop() -> None:
            if len(seen) == 3:
                raise KeyboardInterrupt

        radius, watch = torch.linspace(-6, 6, 56).expand(48, 56), lambda *done: seen.append(done)
        with pytest.raises(KeyboardInterrupt):
            render_defocus(self.picture, radius, levels=5, callbacks=Callbacks(progress=watch, check_interrupt=stop))
        assert seen == [(1, 5), (2, 5), (3, 5)]


def all_layers_at_once(
    image: Tensor,
    radius: Tensor,
    aperture: Aperture,
    levels: int,
    *,
    colour_fringe: float = 0.0,
    highlight_gain: float = 1.0,
) -> Tensor:
    """`render_defocus` by another way: direct convolutions of all layers."""
    linear = srgb_to_linear(image)
    linear = linear * (1 + (highlight_gain - 1) * ((linear.amin(0, keepdim=True) - 0.85) / 0.15).clamp(0, 1))
    low, high = float(radius.min()), float(radius.max())
    centres = torch.linspace(high, low, min(levels, math.ceil((high - low) / 0.75) + 1))
    weights = (1 - (radius - centres[:, None, None]).abs() / (centres[0] - centres[1])).clamp(0, 1)
    margin = kernel_reach(float(radius.abs().max()) * (1 + abs(colour_fringe)), aperture)
    layers = torch.cat((linear[None] * weights[:, None], weights[:, None]), dim=1)
    layers = torch.nn.functional.pad(layers, (margin,) * 4, mode="replicate")
    result = torch.zeros(4, *radius.shape)
    for centre, layer in zip(centres.tolist(), layers, strict=True):
        scales = (1 + colour_fringe, 1.0, 1 - colour_fringe, 1.0)
        spots = torch.stack([aperture_kernel(centre * scale, aperture, 2 * margin + 1) for scale in scales])
        if abs(centre) < 0.25:
            spots = torch.zeros_like(spots)
            spots[:, margin, margin] = 1
        blurred = torch.nn.functional.conv2d(layer[None], spots.flip(1, 2)[:, None], groups=4)[0]
        result = blurred + (1 - blurred[3].clamp(0, 1)) * result
    return linear_to_srgb((result[:3] / result[3]).clamp(0, 1))
