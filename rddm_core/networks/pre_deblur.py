"""The pre-deblur module p of Algorithm 1: a cheap first guess I_p from the blurred image and its defocus map."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..config import PreDeblurConfig
from .blocks import Downsample, RDDBlock, Upsample, conv_unshuffled, shuffled


class PreDeblurModule(nn.Module):
    """Light U-Net of pre-deblur blocks at 1/8 of the resolution (text below Eq. 12).

    Pixel-unshuffled image and map in, pixel-shuffled correction out, added to the image. The last convolution starts
    small, so that I_p is close to I_b before training.
    """

    def __init__(self, config: PreDeblurConfig, attention_cell: int) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        self.stride = config.unshuffle * 2 ** (len(config.widths) - 1)

        def blocks(level: int) -> nn.Sequential:
            cell = attention_cell // (config.unshuffle * 2**level)
            mixer, group = config.mixers[level], config.deformable_group_width
            return nn.Sequential(
                *(RDDBlock(config.widths[level], cell, mixer, group) for _ in range(config.blocks[level]))
            )

        outer, pairs = range(len(config.widths) - 1), list(zip(config.widths, config.widths[1:], strict=False))
        self.intro = nn.Conv2d(4 * config.unshuffle**2, config.widths[0], 1)
        self.encoders = nn.ModuleList(blocks(level) for level in outer)
        self.downs = nn.ModuleList(Downsample(fine, coarse) for fine, coarse in pairs)
        self.middle = blocks(len(config.widths) - 1)
        self.ups = nn.ModuleList(Upsample(coarse, fine) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(blocks(level) for level in outer)
        self.outro = nn.Conv2d(config.widths[0], 3 * config.unshuffle**2, 3, padding=1)
        with torch.no_grad():
            self.outro.weight.mul_(0.1)
            cast(Tensor, self.outro.bias).zero_()

    def forward(self, image: Tensor, defocus_map: Tensor) -> Tensor:
        """image [B, 3, H, W] and defocus_map [B, 1, H, W] in 0..1 -> I_p [B, 3, H, W] in fp32, not clamped.

        H and W must be multiples of `stride` and, above one attention cell, of the cell.
        """
        dtype = next(self.parameters()).dtype
        x = conv_unshuffled(self.intro, torch.cat((image, defocus_map), dim=1).to(dtype))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            x = decoder(up(x) + skips.pop())
        return image.float() + shuffled(self.outro(x), self.unshuffle).float()
