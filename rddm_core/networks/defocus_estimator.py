"""The defocus-map estimator g of Algorithm 1: a SegFormer (Xie et al. 2021) with one logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import EstimatorConfig

PAD_MULTIPLE = 32
"""Product of the strides of SegFormer's four stages: a smaller picture would leave the last stage empty."""
STAGES = 4


class DefocusEstimator(nn.Module):
    """transformers' SegFormer, built from a configuration and never downloaded.

    Beside RGB it is shown three focus cues. Trained from nothing on RGB alone it stayed at the loss of a constant map
    for hundreds of steps; with the cues it learns at once.

    It runs at a fixed working size: a larger photograph is reduced first, so that one network serves any
    photograph at a bounded cost, and its map is enlarged again. In eval mode the items of a batch do not
    touch each other. In training mode the head's BatchNorm uses the batch's statistics; the padding to 32
    pixels leaves it at least 64 values per channel, so a batch of one tiny picture is legal.

    Raises ValueError where the configuration does not describe four stages.
    """

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        # Imported here: transformers takes about a second, and only the one who builds a model needs it.
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        for name in ("hidden_sizes", "depths", "heads", "sr_ratios"):
            if (entries := len(getattr(config, name))) != STAGES:
                raise ValueError(f"estimator.{name} must have {STAGES} entries, not {entries}")
        self.config = config
        # All that shapes the function is spelled out: new defaults upstream must not change old weights.
        layout = SegformerConfig(
            num_channels=6,  # RGB and the focus cues
            num_encoder_blocks=STAGES,
            hidden_sizes=list(config.hidden_sizes),
            depths=list(config.depths),
            num_attention_heads=list(config.heads),
            sr_ratios=list(config.sr_ratios),
            decoder_hidden_size=config.decoder_width,
            patch_sizes=[7, 3, 3, 3],
            strides=[4, 2, 2, 2],
            mlp_ratios=[4, 4, 4, 4],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        layout.num_labels = 1
        self.segformer = SegformerForSemanticSegmentation(layout)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in, unless autocast decides otherwise."""
        return next(self.segformer.parameters()).dtype

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, H, W] in 0..1, of any size from one pixel -> logits [B, 1, H, W] in fp32.

        A positive logit says out of focus. `reduce_to` before and `enlarge_to` after may also be called where the
        picture lies: then a large one need not move, nor the network's device know antialiasing or hold its map.
        """
        x = reduce_to(image.float(), self.config.working_size)
        h, w = x.shape[-2:]
        pad_h, pad_w = -h % PAD_MULTIPLE, -w % PAD_MULTIPLE
        x = F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
        pixels = torch.cat(((x - 0.5) / 0.25, focus_cues(x)), dim=1)
        stages = self.segformer.segformer(pixels.to(self.dtype), output_hidden_states=True).hidden_states
        logits = decode(self.segformer.decode_head, stages).float()
        logits = F.interpolate(logits, size=(h + pad_h, w + pad_w), mode="bilinear", align_corners=False)
        return enlarge_to(logits[..., :h, :w], (image.shape[-2], image.shape[-1]))


def decode(head: Any, stages: Sequence[Tensor]) -> Tensor:
    """What transformers' SegFormer head makes of the encoder's stages [B, C_i, h_i, w_i], finest first: [B, 1, h, w].

    The head enlarges every projected stage to the finest, joins them and applies a 1x1 convolution. That commutes with
    enlarging, so here each stage passes both layers in one at its own size, and the results are added: the same up to
    rounding, with less work and without the joined tensor.
    """
    # Called linear_c before transformers 5.14.
    projections = head.linear_projections if hasattr(head, "linear_projections") else head.linear_c
    fuse = head.linear_fuse.weight.flatten(1).chunk(len(stages), dim=1)  # coarsest stage first
    total: Tensor | None = None
    for stage, projection, weight in zip(stages, projections, reversed(fuse), strict=True):
        both = weight @ projection.proj.weight
        stage = stage.contiguous(memory_format=torch.channels_last)  # the sum over channels is twice as fast
        x = F.conv2d(stage, both[:, :, None, None], weight @ projection.proj.bias)
        if total is None:
            total = x
        else:
            total = total + F.interpolate(x, size=total.shape[-2:], mode="bilinear", align_corners=False)
    return head.classifier(head.dropout(head.activation(head.batch_norm(total))))


def focus_cues(image: Tensor) -> Tensor:
    """Log gradient magnitude of the luma and of two re-blurred copies: [B, 3, H, W] in 0..1 -> [B, 3, H, W].

    How much a known blur weakens an edge tells how blurred it was before (Zhuo and Sim 2011).
    """
    luma = image.float().mean(dim=1, keepdim=True)
    cues = []
    for size in (1, 3, 7):
        y = F.avg_pool2d(F.pad(luma, (size // 2,) * 4, mode="replicate"), size, stride=1)
        dx = F.pad(y[..., :, 1:] - y[..., :, :-1], (0, 1, 0, 0))
        dy = F.pad(y[..., 1:, :] - y[..., :-1, :], (0, 0, 0, 1))
        cues.append(torch.log(torch.sqrt(dx * dx + dy * dy + 1e-12) + 2e-3) / 2 + 2)
    return torch.cat(cues, dim=1)


def reduce_to(image: Tensor, long_side: int) -> Tensor:
    """Reduce [B, C, H, W], antialiased, to at most `long_side` pixels; smaller pictures stay as they are."""
    height, width = image.shape[-2:]
    if max(height, width) <= long_side:
        return image
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False)


def enlarge_to(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, 1, h, w] of a picture that `reduce_to` has reduced, at the size (H, W) that it had: [B, 1, H, W]."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
