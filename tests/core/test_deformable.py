"""DCNv4 against its literal definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rddm_core.networks.deformable import DeformableConv, deformable_aggregate
from rddm_core.networks.precision import without_autocast


def literal(value: Tensor, offset: Tensor, modulation: Tensor, size: int = 3) -> Tensor:
    """y_g(p) = sum_k m_gk(p) v_g(p + p_k + d_gk(p)), one scalar at a time, zeros outside."""
    batch, channels, height, width = value.shape
    groups = modulation.shape[1]
    rows = []
    for b, c, y, x in itertools.product(range(batch), range(channels), range(height), range(width)):
        g = c // (channels // groups)
        total = value.new_zeros(())
        for k in range(size * size):
            px = x + k // size - size // 2 + offset[b, g, k, 0, y, x]
            py = y + k % size - size // 2 + offset[b, g, k, 1, y, x]
            x0, y0 = math.floor(px.item()), math.floor(py.item())
            for yy, xx in itertools.product((y0, y0 + 1), (x0, x0 + 1)):
                if 0 <= yy < height and 0 <= xx < width:
                    weight = (1 - (px - xx).abs()) * (1 - (py - yy).abs())
                    total = total + modulation[b, g, k, y, x] * weight * value[b, c, yy, xx]
        rows.append(total)
    return torch.stack(rows).reshape(value.shape)


def inputs(batch: int, channels: int, groups: int, height: int, width: int, size: int = 3, spread: float = 1.7):
    generator = torch.Generator().manual_seed(height * 100 + width)
    value = torch.randn(batch, channels, height, width, generator=generator)
    offset = torch.randn(batch, groups, size * size, 2, height, width, generator=generator) * spread
    modulation = torch.randn(batch, groups, size * size, height, width, generator=generator)
    return [x.requires_grad_() for x in (value, offset, modulation)]


@pytest.mark.parametrize(
    ("batch", "channels", "groups", "height", "width", "size"),
    [
        (1, 2, 1, 5, 5, 3),
        (2, 4, 2, 4, 7, 3),
        (1, 3, 3, 1, 6, 3),
        (1, 2, 1, 3, 2, 1),
        (1, 1, 1, 5, 6, 5),
        (2, 6, 2, 1, 1, 3),
    ],
)
def test_values_and_gradients_equal_the_definition(batch, channels, groups, height, width, size):
    ours, theirs = (inputs(batch, channels, groups, height, width, size) for _ in range(2))
    result, expected = deformable_aggregate(*ours, kernel_size=size), literal(*theirs, size=size)
    assert torch.allclose(result, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(deformable_aggregate(*ours, kernel_size=size), expected, atol=1e-5)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=2e-4)


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("far", [5.0, 100.0, -1e6])
def test_taps_far_outside_read_zero(with_gradient, far):
    value, offset, modulation = inputs(1, 2, 1, 4, 4)
    with torch.set_grad_enabled(with_gradient):
        result = deformable_aggregate(value, offset * 0 + far, modulation)
    assert torch.equal(result, torch.zeros_like(value))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_an_offset_that_no_integer_holds_reaches_its_own_pixel_alone(bad):
    value, offset, modulation = (x.detach() for x in inputs(1, 2, 1, 5, 5))
    expected = deformable_aggregate(value, offset, modulation)
    offset[:, :, 4, 1, 2, 3] = bad
    with torch.no_grad():
        result = deformable_aggregate(value, offset, modulation)
    rest = torch.ones(5, 5, dtype=torch.bool)
    rest[2, 3] = False
    assert torch.allclose(result[..., rest], expected[..., rest], atol=1e-5)
    assert math.isfinite(bad) or bool(result[..., 2, 3].isnan().all())


def test_strips_of_rows_and_their_order_make_no_difference(monkeypatch):
    arguments = [x.detach() for x in inputs(2, 4, 2, 9, 7)]
    with torch.no_grad():
        whole = deformable_aggregate(*arguments)
        for rows in (1, 4):
            monkeypatch.setattr("rddm_core.networks.deformable.BAG_ELEMENTS", rows * 4 * 9 * 2 * 7)
            assert torch.equal(deformable_aggregate(*arguments), whole)
            last = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in arguments]
            assert torch.equal(deformable_aggregate(*last), whole)


def test_whole_pixel_offsets_shift_the_picture():
    value = torch.arange(20.0).reshape(1, 1, 4, 5)
    offset = torch.zeros(1, 1, 9, 2, 4, 5)
    offset[:, :, 4, 0] = 1  # the centre tap looks one pixel to the right
    modulation = torch.zeros(1, 1, 9, 4, 5)
    modulation[:, :, 4] = 1
    result = deformable_aggregate(value, offset, modulation)
    assert torch.allclose(result[..., :4], value[..., 1:], atol=1e-4)
    assert torch.equal(result[..., 4], torch.zeros(1, 1, 4))


def test_taps_run_in_column_major_order():
    value = torch.arange(9.0).reshape(1, 1, 3, 3)
    for k in range(9):
        modulation = torch.zeros(1, 1, 9, 3, 3)
        modulation[:, :, k] = 1
        centre = deformable_aggregate(value, torch.zeros(1, 1, 9, 2, 3, 3), modulation)[0, 0, 1, 1]
        assert float(centre) == pytest.approx(float(value[0, 0, k % 3, k // 3]), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_fp32_coordinates(dtype):
    value, offset, modulation = (x.detach() for x in inputs(1, 8, 2, 96, 96))
    rounded = value.to(dtype)
    result = deformable_aggregate(rounded, offset, modulation)
    exact = deformable_aggregate(rounded.float(), offset, modulation)
    assert result.dtype == dtype
    assert float((result.float() - exact).abs().max()) <= float(exact.abs().max()) * torch.finfo(dtype).eps


def test_autocast_does_not_reach_the_coordinates():
    value, offset, modulation = (x.detach() for x in inputs(1, 4, 1, 80, 80))
    with torch.autocast("cpu", torch.bfloat16):
        result = deformable_aggregate(value, offset, modulation)
    assert torch.equal(result, deformable_aggregate(value, offset, modulation))


def test_devices_without_autocast_are_left_alone():
    """As MPS before torch 2.5; the meta device knows none in any version."""
    with pytest.raises(RuntimeError), torch.autocast("meta", enabled=False):
        pass
    with without_autocast(torch.device("meta")):
        pass
    with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 2, 9, 2, 4, 4), "does not fit"), ((1, 1, 8, 2, 4, 4), "does not fit")]
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        deformable_aggregate(torch.zeros(1, 4, 4, 4), torch.zeros(shape), torch.zeros(1, 1, 9, 4, 4))


def test_channels_must_split_into_groups():
    with pytest.raises(ValueError, match="cannot be split"):
        deformable_aggregate(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 9, 2, 2, 2), torch.zeros(1, 3, 9, 2, 2))
    with pytest.raises(ValueError, match="cannot be split"):
        DeformableConv(48, reach=4, group_width=32)


def test_a_fresh_layer_is_a_box_filter_and_alive():
    layer = DeformableConv(8, reach=4, group_width=4)
    x = torch.randn(1, 8, 6, 6)
    box = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    assert torch.allclose(layer(x), box, atol=1e-5)
    first, second = layer(x).chunk(2, dim=1)
    (first * second).sum().backward()  # SimpleGate: a zero start would keep this gradient at zero for ever
    assert float(layer.offset_modulation.weight.grad.abs().min()) > 0


def shifting(layer: DeformableConv, across: float, down: float) -> None:
    """Every tap of every pixel looks so far to the right and down."""
    bias = layer.offset_modulation.bias.detach().view(layer.groups, -1)
    bias[:, :18:2], bias[:, 1:18:2] = across, down


@pytest.mark.parametrize(("distance", "share"), [(3, 1), (4, 1), (4.25, 0.75), (5, 0), (9, 0)])
@pytest.mark.parametrize("axis", ["across", "down"])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_lies_beyond_the_reach_is_as_outside_the_picture(distance, share, axis, sign):
    layer = DeformableConv(4, reach=4, group_width=4)
    with torch.no_grad():
        shifting(layer, **{"across": 0, "down": 0} | {axis: sign * distance})
        result = layer(torch.ones(1, 4, 32, 32))
    assert torch.allclose(result[..., 12:20, 12:20], torch.full((), float(share)), atol=1e-5)


def test_a_value_farther_away_than_reach_and_tap_changes_nothing():
    torch.manual_seed(0)
    layer = DeformableConv(4, reach=3, group_width=2)
    x = torch.randn(1, 4, 40, 40)
    far = x.clone()
    far[..., 25:, :] += 1
    with torch.no_grad():
        torch.nn.init.normal_(layer.offset_modulation.weight, std=3)
        before, after = layer(x), layer(far)
    # Reach 3, one more where it fades, one to the tap, one of interpolation.
    assert torch.equal(before[..., : 25 - 6, :], after[..., : 25 - 6, :])
    assert not torch.equal(before[..., 21:25, :], after[..., 21:25, :])
