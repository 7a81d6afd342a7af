"""Deformable convolution v4 (Xiong et al. 2024) in standard torch operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    with torch.autocast(value.device.type, enabled=False):
        v = value.float().reshape(batch * groups, channels // groups, height, width)
        d = offset.float().reshape(batch * groups, taps, 2, height, width)
        m = modulation.float().reshape(batch * groups, taps, 1, height, width)
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
    return out.reshape(batch, channels, height, width).to(value.dtype)


class DeformableConv(nn.Module):
    """DCNv4 without its pointwise projections: the 1x1 convolutions around it in a NAFBlock already mix channels.

    [B, C, H, W] -> [B, C, H, W]. Offsets and modulations come from a 1x1 convolution whose weights start at zero and
    whose modulation bias starts at 1/K. With a zero bias the output is zero, and under SimpleGate its gradient too,
    for ever.
    """

    def __init__(self, channels: int, group_width: int = 32, kernel_size: int = 3, ops: Any = nn) -> None:
        super().__init__()
        if channels % group_width:
            raise ValueError(f"{channels} channels cannot be split into groups of {group_width}")
        self.kernel_size = kernel_size
        self.groups = channels // group_width
        taps = kernel_size * kernel_size
        self.offset_modulation = ops.Conv2d(channels, self.groups * taps * 3, 1)
        with torch.no_grad():
            self.offset_modulation.weight.zero_()
            bias = torch.zeros(self.groups, taps * 3)
            bias[:, 2 * taps :] = 1.0 / taps
            self.offset_modulation.bias.copy_(bias.flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        taps = self.kernel_size**2
        # Layout per group, as in DCNv4: 2K interleaved (x, y) offsets, then K modulations.
        both = self.offset_modulation(x).reshape(batch, self.groups, 3 * taps, height, width)
        offset = both[:, :, : 2 * taps].reshape(batch, self.groups, taps, 2, height, width)
        return deformable_aggregate(x, offset, both[:, :, 2 * taps :], self.kernel_size)
