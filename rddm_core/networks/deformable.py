"""Deformable convolution v4 (Xiong et al. 2024) in standard torch operations."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import without_autocast


def deformable_aggregate(value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int = 3) -> Tensor:
    """y_g(p) = sum_k m_gk(p) v_g(p + p_k + d_gk(p)): bilinear sampling, zeros outside, no softmax, no static kernel.

    Args:
        value: [B, C, H, W]; C is a multiple of the number of groups G.
        offset: [B, G, K, 2, H, W], (x, y) in pixels, K = kernel_size ** 2 taps in column-major order
            (tap k sits at x = k // kernel_size, y = k % kernel_size, as in DCNv4).
        modulation: [B, G, K, H, W].

    Returns [B, C, H, W] in the dtype of `value`. Coordinates and the sum are computed in fp32 whatever the dtype or
    autocast state: a bf16 coordinate misses by pixels.
    """
    batch, channels, height, width = value.shape
    groups, taps = modulation.shape[1], kernel_size * kernel_size
    if offset.shape != (batch, groups, taps, 2, height, width) or modulation.shape[2] != taps:
        raise ValueError(f"offset {tuple(offset.shape)} or modulation {tuple(modulation.shape)} does not fit the input")
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} groups")
    in_bags = value.device.type == "cpu" and not torch.is_grad_enabled()
    with without_autocast(value.device):
        aggregate = _aggregate_in_bags if in_bags else _aggregate_taps
        return aggregate(value.float(), offset.float(), modulation.float(), kernel_size).to(value.dtype)


def _aggregate_taps(value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int) -> Tensor:
    """The portable way, and the differentiable one: every tap samples the whole input."""
    batch, channels, height, width = value.shape
    groups, taps = modulation.shape[1:3]
    v = value.reshape(batch * groups, channels // groups, height, width)
    d = offset.reshape(batch * groups, taps, 2, height, width)
    m = modulation.reshape(batch * groups, taps, 1, height, width)
    xs = torch.arange(width, device=value.device, dtype=torch.float32)
    ys = torch.arange(height, device=value.device, dtype=torch.float32)[:, None]
    centre = kernel_size // 2
    out = torch.zeros_like(v)
    for k in range(taps):
        x = xs + (k // kernel_size - centre) + d[:, k, 0]
        y = ys + (k % kernel_size - centre) + d[:, k, 1]
        # align_corners=False maps pixel centre i of n to (2 i + 1) / n - 1.
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        sampled = F.grid_sample(v, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = torch.addcmul(out, sampled, m[:, k])
    return out.reshape(batch, channels, height, width)


BAG_ELEMENTS = 2**18
"""Corners of taps looked up at a time by `_aggregate_in_bags`: their indices and weights stay in a CPU's cache."""


def _aggregate_in_bags(value: Tensor, offset: Tensor, modulation: Tensor, kernel_size: int) -> Tensor:
    """For a CPU: a pixel of a group is a weighted sum over the four corners of its taps, which is
    an embedding bag over the input's pixels. No tap's samples are ever stored.
    """
    batch, channels, height, width = value.shape
    groups, taps = modulation.shape[1:3]
    # A border of zeros is what taps outside see.
    bordered = value.new_zeros(batch, height + 2, width + 2, channels)
    bordered[:, 1:-1, 1:-1] = value.permute(0, 2, 3, 1)
    table = bordered.view(-1, channels // groups)
    offset, modulation = offset.permute(0, 4, 5, 1, 2, 3), modulation.permute(0, 3, 4, 1, 2)
    tap, centre = torch.arange(taps), kernel_size // 2
    xs = torch.arange(width)[:, None, None] + tap // kernel_size - centre
    ys = (torch.arange(height)[:, None] + tap % kernel_size - centre)[:, None, None]
    group = torch.arange(groups, dtype=torch.int32)[:, None]
    rows = max(1, BAG_ELEMENTS // (4 * taps * groups * width))
    out = value.new_empty(batch, height, width, channels)
    for b in range(batch):
        for top in range(0, height, rows):
            strip = slice(top, top + rows)
            d, m, first = offset[b, strip], modulation[b, strip], b * (height + 2) + 1
            across = [((i + 1) * groups + group, w) for i, w in _corners(d[..., 0] + xs, width)]
            down = [((i + first) * (width + 2) * groups, m * w) for i, w in _corners(d[..., 1] + ys[strip], height)]
            indices = torch.cat([y + x for y, _ in down for x, _ in across], dim=-1)
            weights = torch.cat([y * x for _, y in down for _, x in across], dim=-1)
            bags = F.embedding_bag(
                indices.reshape(-1, 4 * taps), table, mode="sum", per_sample_weights=weights.reshape(-1, 4 * taps)
            )
            out[b, strip] = bags.view(-1, width, channels)
    return out.permute(0, 3, 1, 2)


def _corners(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Both whole coordinates beside each position, as int32 in -1..size, and their weights in linear interpolation."""
    low = position.floor()
    fraction = position - low
    # Clamped as integers: what no integer holds, such as a NaN, still becomes a valid index.
    index = low.to(torch.int32)
    return [(index.clamp(-1, size), 1 - fraction), ((index + 1).clamp(-1, size), fraction)]


class DeformableConv(nn.Module):
    """DCNv4 without its pointwise projections: the 1x1 convolutions around it in a NAFBlock already mix channels.

    [B, C, H, W] -> [B, C, H, W]. Offsets and modulations come from a 1x1 convolution whose weights start at zero and
    whose modulation bias starts at 1/K. With a zero bias the output is zero, and under SimpleGate its gradient too,
    for ever.

    `reach`: offsets above so many features, down or across, see zeros, as outside the picture (`_within`). DCNv4 knows
    no bound, but crops end after a few features: beyond them nothing was ever learned, and tiles could not agree.
    """

    def __init__(self, channels: int, reach: float, group_width: int = 32, kernel_size: int = 3) -> None:
        super().__init__()
        if channels % group_width:
            raise ValueError(f"{channels} channels cannot be split into groups of {group_width}")
        self.kernel_size = kernel_size
        self.reach = reach
        self.groups = channels // group_width
        taps = kernel_size * kernel_size
        self.offset_modulation = nn.Conv2d(channels, self.groups * taps * 3, 1)
        with torch.no_grad():
            self.offset_modulation.weight.zero_()
            bias = torch.zeros(self.groups, taps * 3)
            bias[:, 2 * taps :] = 1.0 / taps
            cast(Tensor, self.offset_modulation.bias).copy_(bias.flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        taps = self.kernel_size**2
        # Layout per group, as in DCNv4: 2K interleaved (x, y) offsets, then K modulations.
        both = self.offset_modulation(x).reshape(batch, self.groups, 3 * taps, height, width)
        offset = both[:, :, : 2 * taps].reshape(batch, self.groups, taps, 2, height, width)
        modulation = both[:, :, 2 * taps :] * _within(offset, self.reach)
        return deformable_aggregate(x, offset, modulation, self.kernel_size)


def _within(offset: Tensor, reach: float) -> Tensor:
    """[B, G, K, 2, H, W] -> [B, G, K, H, W]: 1 up to `reach`, 0 from one feature farther on, linear between, as
    bilinear sampling ends at the picture's border.
    """
    return (reach + 1 - offset.abs()).clamp(0, 1).prod(dim=3)
