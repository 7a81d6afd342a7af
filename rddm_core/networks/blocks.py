"""Building blocks: NAFBlock (Chen et al. 2022), the paper's pre-deblur block and RDD block (Eq. 11)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Mixer
from .deformable import DeformableConv


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W], eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def simple_gate(x: Tensor) -> Tensor:
    """SimpleGate of NAFNet: the product of the two channel halves, [B, 2C, H, W] -> [B, C, H, W]."""
    a, b = x.chunk(2, dim=1)
    return a * b


class ChannelAttention(nn.Module):
    """Simplified channel attention over cells of `cell` x `cell` features instead of the whole input.

    The mean of every cell passes a 1x1 convolution and is interpolated bilinearly between cell centres, so that the
    output at a pixel depends on the neighbouring cells alone: a tile whose origin lies on the cell grid sees the same
    statistics as the whole image. [B, C, H, W] -> attention [B, C, H, W], or [B, C, 1, 1] where one cell covers all.
    """

    def __init__(self, channels: int, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height <= self.cell and width <= self.cell:
            return self.conv(x.mean(dim=(2, 3), keepdim=True, dtype=torch.float32).to(x.dtype))
        if height % self.cell or width % self.cell:
            raise ValueError(f"a feature map of {height}x{width} is no multiple of the attention cell {self.cell}")
        attention = self.conv(F.avg_pool2d(x, self.cell))
        return F.interpolate(attention, size=(height, width), mode="bilinear", align_corners=False)


def make_mixer(mixer: Mixer, channels: int, cell: int, group_width: int) -> nn.Module:
    """The spatial mixer of a block: depthwise 3x3 convolution (NAFBlock) or DCNv4 (pre-deblur block, RDD block), which
    looks no farther than the attention does."""
    if mixer == "deformable":
        return DeformableConv(channels, cell, group_width)
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class RDDBlock(nn.Module):
    """Residual diffusion deblur block; with fewer inputs it is the NAFBlock or the pre-deblur block.

    - mixer="depthwise", no time, no guidance: NAFBlock.
    - mixer="deformable", no time, no guidance: the paper's pre-deblur block.
    - with `time_width` and `guidance_width`: the RDD block. The time embedding scales and shifts the first norm;
      the guidance is concatenated after channel attention, before the 1x1 convolution (Eq. 11), whose two halves are
      applied one by one: that of the guidance does not depend on t (`project_guidance`).

    beta and gamma start at zero, so that a fresh block is the identity.
    """

    def __init__(
        self,
        channels: int,
        cell: int,
        mixer: Mixer = "depthwise",
        group_width: int = 32,
        time_width: int = 0,
        guidance_width: int = 0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.norm1 = LayerNorm2d(channels)
        self.time = nn.Linear(time_width, 2 * channels) if time_width else None
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.mixer = make_mixer(mixer, 2 * channels, cell, group_width)
        self.attention = ChannelAttention(channels, cell)
        self.project = nn.Conv2d(channels + guidance_width, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.feed_in = nn.Conv2d(channels, 2 * channels, 1)
        self.feed_out = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def project_guidance(self, guidance: Tensor) -> Tensor:
        """[B, guidance_width, h, w] -> its share [B, C, h, w] of the 1x1 convolution, at any size."""
        return F.conv2d(guidance, self.project.weight[:, self.channels :])

    def forward(self, x: Tensor, time: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], time [B, time_width], guidance [B, C, H, W] from `project_guidance` -> [B, C, H, W]."""
        modulation = None if self.time is None or time is None else self.time(time)[:, :, None, None].chunk(2, dim=1)

        def mix(x: Tensor) -> Tensor:
            y = self.norm1(x)
            if modulation is not None:
                scale, shift = modulation
                y = torch.addcmul(shift.to(y.dtype), y, 1 + scale.to(y.dtype))
            return simple_gate(self.mixer(self.expand(y)))

        def combine(x: Tensor, y: Tensor, *guidance: Tensor) -> Tensor:
            y = F.conv2d(y, self.project.weight[:, : self.channels], self.project.bias)
            for share in guidance:
                y = y + share.to(y.dtype)
            x = torch.addcmul(x, y.to(x.dtype), self.beta.to(x))
            y = self.feed_out(simple_gate(self.feed_in(self.norm2(x))))
            return torch.addcmul(x, y.to(x.dtype), self.gamma.to(x))

        rows = strip_rows(x, 2 * x.shape[1])
        # A deformable convolution looks too far around.
        y = mix(x) if isinstance(self.mixer, DeformableConv) else in_strips(mix, rows, 1, x)
        attention = self.attention(y).to(y.dtype)
        y = y * attention if torch.is_grad_enabled() else y.mul_(attention)
        return in_strips(combine, rows, 0, x, y, *(() if guidance is None else (guidance,)))


STRIP_ELEMENTS = 2**20
"""Elements of the widest intermediate tensor of a strip: a few MB, so that it stays in a CPU's cache."""


def strip_rows(x: Tensor, channels: int) -> int:
    """Rows of a strip of [B, `channels`, rows, W]: all of them on a GPU and in training, which needs every value."""
    batch, _, height, width = x.shape
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return height
    return min(height, max(1, STRIP_ELEMENTS // (batch * channels * width)))


def in_strips(function: Callable[..., Tensor], rows: int, halo: int, *inputs: Tensor) -> Tensor:
    """`function(*inputs)` in strips of `rows` rows, with `halo` rows around each of which the function looks.

    Inputs and result [B, C, H, W] have the same height. The wide tensors inside the function are then never as large
    as the picture: they stay in the cache, and peak memory falls.
    """
    height = inputs[0].shape[-2]
    if rows >= height:
        return function(*inputs)
    result = None
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        start = max(0, top - halo)
        part = function(*(x[..., start : bottom + halo, :] for x in inputs))
        if result is None:
            shape = (*part.shape[:2], height, part.shape[-1])
            result = torch.empty(shape, dtype=part.dtype, memory_format=torch.channels_last)
        result[..., top:bottom, :] = part[..., top - start : bottom - start, :]
    assert result is not None
    return result


def unshuffled(x: Tensor, factor: int) -> Tensor:
    """Pixel unshuffle into channels_last, in which depthwise convolutions and norms run several times as fast."""
    planes = rearrange(x, "b c (h r) (w s) -> b (c r s) h w", r=factor, s=factor)
    return planes.contiguous(memory_format=torch.channels_last)


def shuffled(x: Tensor, factor: int) -> Tensor:
    """Pixel shuffle into planes, as pictures lie; torch's own keeps channels_last, in half the speed."""
    return rearrange(x, "b (c r s) h w -> b c (h r) (w s)", r=factor, s=factor)


def conv_unshuffled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of the pixel-unshuffled x, without unshuffling it: a convolution of blocks side by side."""
    block = math.isqrt(conv.in_channels // x.shape[1])
    weight = conv.weight.reshape(conv.out_channels, x.shape[1], block, block)
    # Several times as fast as on planes, and the result is in channels_last as well.
    x = x.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, conv.bias, stride=block).contiguous(memory_format=torch.channels_last)


class Downsample(nn.Module):
    """2x2 convolution with stride 2: [B, C, H, W] -> [B, out, H/2, W/2]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """1x1 convolution, then pixel shuffle (Shi et al. 2016): [B, C, H, W] -> [B, out, 2H, 2W]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep, then two linear layers: t [B] in 0..T -> [B, width].

    Raises ValueError unless the width is even: half of it are sines, half cosines.
    """

    def __init__(self, width: int, timesteps: int) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"time_width must be an even number from 2 on, not {width}")
        self.width, self.timesteps = width, timesteps
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(1e4) / half))
        phase = t.float()[:, None] * (1000.0 / self.timesteps) * frequency
        embedding = torch.cat((phase.cos(), phase.sin()), dim=1).to(dtype)
        return self.out(F.silu(self.hidden(embedding)))
