"""The denoising network f of Algorithm 1: predicts the clean residual x_0 from x_t, t and the condition c (Eq. 14)."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import DenoiserConfig
from .blocks import Downsample, RDDBlock, TimeEmbedding, Upsample, conv_unshuffled, shuffled, unshuffled
from .deconvolution import Filters, surrounded, wiener_bank
from .guidance import features_for_level, fitted

MAX_DECONVOLUTION_RADIUS = 32.0


class Condition(NamedTuple):
    """c = (I_p, map, H(Backbone(I_p))) of Eq. 13, as far as it can be computed without t.

    Attributes:
        features: of the encoder's scales, finest first, and of the middle; with ``state_entry="encoder"`` its input
            alone.
        guidance: of every decoder scale, finest first, what each of its blocks adds, at the guidance's own size.
    """

    features: tuple[Tensor, ...]
    guidance: tuple[tuple[Tensor, ...], ...]


class DenoisingNetwork(nn.Module):
    """U-Net: four encoder scales (NAFBlocks, strided convolutions), four decoder scales (pixel shuffle, RDD blocks).

    With ``state_entry="decoder"`` the encoder sees (I_p, map) alone and runs once per image; x_t enters every decoder
    scale through a light pyramid of strided convolutions, gated by the time embedding, so that a step costs the
    decoder only. With ``state_entry="encoder"`` x_t is concatenated at the input and everything runs at every step.

    Raises ValueError for a configuration that no network can be built from.
    """

    def __init__(self, config: DenoiserConfig, guidance_width: int, timesteps: int, attention_cell: int) -> None:
        super().__init__()
        self.config = config
        self.stride = config.unshuffle * 2 ** len(config.widths)
        widths = (*config.widths, config.middle_width)
        pairs = list(zip(widths, widths[1:], strict=False))
        group, time_width = config.deformable_group_width, config.time_width
        pixels = config.unshuffle**2
        state_at_input = config.state_entry == "encoder"

        def cell(level: int) -> int:
            return attention_cell // (config.unshuffle * 2**level)

        self.time = TimeEmbedding(time_width, timesteps)
        self.intro = nn.Conv2d((7 if state_at_input else 4) * pixels, widths[0], 3, padding=1)
        if radii := config.deconvolution_radii:
            if state_at_input or not all(0 < radius <= MAX_DECONVOLUTION_RADIUS for radius in radii):
                raise ValueError(
                    f"deconvolution_radii must be 0 to {MAX_DECONVOLUTION_RADIUS} pixels, with state_entry='decoder'"
                )
            self.kept_filters: Filters = {}
            self.deconvolution_intro = nn.Conv2d(len(radii) * pixels, widths[0], 1, bias=False)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(
                    RDDBlock(widths[level], cell(level), config.encoder_mixers[level], group)
                    for _ in range(config.encoder_blocks[level])
                )
            )
            for level in range(len(config.widths))
        )
        self.downs = nn.ModuleList(Downsample(fine, coarse) for fine, coarse in pairs)
        self.middle = nn.Sequential(
            *(
                RDDBlock(widths[-1], cell(len(config.widths)), config.middle_mixer, group)
                for _ in range(config.middle_blocks)
            )
        )
        self.ups = nn.ModuleList(Upsample(coarse, fine) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(
            nn.ModuleList(
                RDDBlock(widths[level], cell(level), config.decoder_mixers[level], group, time_width, guidance_width)
                for _ in range(config.decoder_blocks[level])
            )
            for level in range(len(config.widths))
        )
        self.outro = nn.Conv2d(widths[0], 3 * pixels, 3, padding=1)
        with torch.no_grad():
            self.outro.weight.mul_(0.1)
            cast(Tensor, self.outro.bias).zero_()
        if config.overlap:
            block = config.unshuffle
            if block % 2:
                raise ValueError(f"overlap=True needs an even unshuffle, not {block}: blocks overlap by half of one")
            self.overlap = nn.ConvTranspose2d(widths[0], 3, 2 * block, stride=block, padding=block // 2, bias=False)
            with torch.no_grad():
                self.overlap.weight.mul_(0.1)
        if not state_at_input:
            self.state_intro = nn.Conv2d(3 * pixels, widths[0], 1)
            self.state_downs = nn.ModuleList(Downsample(fine, coarse) for fine, coarse in pairs[:-1])
            self.state_gates = nn.ModuleList(nn.Linear(time_width, width) for width in config.widths)

    def encode_condition(
        self,
        pre_deblurred: Tensor,
        defocus_map: Tensor,
        guidance: tuple[Tensor, ...],
        surroundings: Tensor | None = None,
    ) -> Condition:
        """What does not depend on t, computed once per image.

        pre_deblurred [B, 3, H, W], defocus_map [B, 1, H, W], H and W multiples of `stride`; guidance from
        `GuidanceNetwork`. `surroundings` is pre_deblurred with `deconvolution.CONTEXT` pixels more on every side, for
        a tile of a larger picture; None replicates the border.
        """
        shares = tuple(
            tuple(block.project_guidance(features_for_level(guidance, level)) for block in cast(Any, blocks))
            for level, blocks in enumerate(self.decoders)
        )
        return Condition(self._features(pre_deblurred, defocus_map, surroundings), shares)

    def _features(self, pre_deblurred: Tensor, defocus_map: Tensor, surroundings: Tensor | None) -> tuple[Tensor, ...]:
        x = torch.cat((pre_deblurred, defocus_map), dim=1).to(next(self.parameters()).dtype)
        x = unshuffled(x, self.config.unshuffle)
        if self.config.state_entry == "encoder":
            return (x,)
        x = self.intro(x)
        if radii := self.config.deconvolution_radii:
            surroundings = surrounded(pre_deblurred) if surroundings is None else surroundings
            bank = wiener_bank(surroundings, radii, self.kept_filters)
            x = x + conv_unshuffled(self.deconvolution_intro, bank.to(x.dtype))
        return self._encode(x)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x_t [B, 3, H, W] (unit-scale residual with noise), t [B] in 1..T -> predicted x_0 [B, 3, H, W] in fp32."""
        dtype = next(self.parameters()).dtype
        time = self.time(t, dtype)
        states: list[Tensor] = []
        features = condition.features
        if self.config.state_entry == "encoder":
            state = unshuffled(x_t.to(dtype), self.config.unshuffle)
            features = self._encode(self.intro(torch.cat((state, features[0]), dim=1)))
            del state
        else:
            states = self._state_pyramid(x_t.to(dtype))
        *skips, x = features
        for level in reversed(range(len(skips))):
            x = self.ups[level](x) + skips[level]
            if states:
                # At t = T the state is pure noise: the gate lets the network close this path per channel.
                x = torch.addcmul(x, states.pop(), self.state_gates[level](time)[:, :, None, None].to(x.dtype))
            for block, share in zip(cast(Any, self.decoders[level]), condition.guidance[level], strict=True):
                x = block(x, time, fitted(share, (x.shape[-2], x.shape[-1])))
        x = F.conv2d(x, self._last_weight(), self.outro.bias, padding=1)
        return shuffled(x, self.config.unshuffle).float()

    def _last_weight(self) -> Tensor:
        """Of `outro` and `overlap` in one: a transposed convolution of twice the block's width, of which every block
        sees its own feature and the neighbours', is a 3x3 convolution before the pixel shuffle.
        """
        if not self.config.overlap:
            return self.outro.weight
        padded = F.pad(self.overlap.weight, (self.config.unshuffle // 2,) * 4)
        taps = rearrange(padded, "c out (y r) (x s) -> (out r s) c y x", y=3, x=3)
        return self.outro.weight + taps.flip(2, 3)

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        return (*skips, self.middle(x))

    def _state_pyramid(self, state: Tensor) -> list[Tensor]:
        features = [conv_unshuffled(self.state_intro, state)]
        for down in self.state_downs:
            features.append(down(F.silu(features[-1])))
        return features
