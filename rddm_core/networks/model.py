"""All networks of one checkpoint: g, p, H and f of Algorithm 1."""

from __future__ import annotations

import math

from torch import nn

from ..config import MIN_ATTENTION_CELL, RDDMConfig
from .defocus_estimator import DefocusEstimator
from .denoiser import DenoisingNetwork
from .guidance import GuidanceNetwork
from .pre_deblur import PreDeblurModule


class RDDM(nn.Module):
    """Defocus-map estimator, pre-deblur module, guidance network and denoising network.

    Attributes:
        stride: pre_deblur, guidance and denoiser take heights and widths that are multiples of it, and tiles start at
            multiples of it.
        residual_scale: unit-scale residual = residual_scale * (I - I_p), measured on training data.
        recommended_steps: sampling steps chosen by measurement for these weights.

    Nothing is downloaded. Raises ValueError where the attention cell is no multiple of the networks' strides, or
    below MIN_ATTENTION_CELL.
    """

    def __init__(self, config: RDDMConfig) -> None:
        super().__init__()
        self.config = config
        self.estimator = DefocusEstimator(config.estimator)
        self.pre_deblur = PreDeblurModule(config.pre_deblur, config.attention_cell)
        self.guidance = GuidanceNetwork(config.guidance)
        self.denoiser = DenoisingNetwork(
            config.denoiser, config.guidance.width, config.diffusion.timesteps, config.attention_cell
        )
        self.stride = math.lcm(self.pre_deblur.stride, self.denoiser.stride, *self.guidance.strides)
        if config.attention_cell % self.stride:
            raise ValueError(f"attention_cell {config.attention_cell} must be a multiple of the stride {self.stride}")
        if config.attention_cell < MIN_ATTENTION_CELL:
            raise ValueError(f"attention_cell {config.attention_cell} must be at least {MIN_ATTENTION_CELL}")
        self.stride = config.attention_cell
        self.residual_scale = 1.0
        self.recommended_steps = 1
