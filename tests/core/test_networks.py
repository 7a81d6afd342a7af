"""Blocks and networks: identities at the start, live gradients, sizes, dtypes and the compute-once condition."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rddm_core.config import (
    MIN_ATTENTION_CELL,
    DenoiserConfig,
    EstimatorConfig,
    GuidanceConfig,
    PreDeblurConfig,
    RDDMConfig,
    config_from_dict,
    config_to_dict,
    lite,
    paper,
    preset,
)
from rddm_core.diffusion import make_alpha_bars
from rddm_core.networks.blocks import (
    ChannelAttention,
    LayerNorm2d,
    RDDBlock,
    conv_unshuffled,
    shuffled,
    simple_gate,
    unshuffled,
)
from rddm_core.networks.deconvolution import CONTEXT, surrounded
from rddm_core.networks.denoiser import DenoisingNetwork
from rddm_core.networks.guidance import fitted
from rddm_core.networks.model import RDDM
from rddm_core.tiling import FEATHER, plan_tiles, plan_windows
from rddm_core.training.losses import estimator_loss, joint_loss


def small(config: RDDMConfig) -> RDDMConfig:
    """The same structure with narrow layers, for tests that need no particular width."""
    widths = (16, 16, 32, 32)
    return replace(
        config,
        estimator=EstimatorConfig(hidden_sizes=(8, 16, 16, 16), heads=(1, 2, 2, 2), depths=(1,) * 4, decoder_width=16),
        guidance=replace(config.guidance, width=8),
        pre_deblur=replace(
            config.pre_deblur, widths=widths[: len(config.pre_deblur.widths)], deformable_group_width=16
        ),
        denoiser=replace(
            config.denoiser,
            widths=widths,
            middle_width=32,
            encoder_blocks=(1,) * 4,
            middle_blocks=1,
            deformable_group_width=16,
            time_width=16,
        ),
    )


def awaken(model: nn.Module) -> None:
    """beta = gamma = 1 in every block."""
    for module in model.modules():
        if isinstance(module, RDDBlock):
            nn.init.ones_(module.beta)
            nn.init.ones_(module.gamma)


def full_loss(model: RDDM, size: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    blurred, sharp = (torch.rand(2, 3, size, size, generator=generator) for _ in range(2))
    logits = model.estimator(blurred)
    target = (torch.rand(2, 1, size, size, generator=generator) > 0.5).float()
    bars = make_alpha_bars(model.config.diffusion)
    t = torch.tensor([model.config.diffusion.timesteps, 400])
    noise = torch.randn(sharp.shape, generator=generator)
    losses = joint_loss(model, blurred, sharp, torch.sigmoid(logits), t, noise, bars)
    return losses["residual"] + losses["anchor"] + estimator_loss(logits, target)


@pytest.mark.parametrize("name", ["lite", "paper"])
def test_every_trainable_parameter_gets_a_live_gradient(name):
    torch.manual_seed(0)
    model = RDDM(preset(name)).train()
    awaken(model)
    full_loss(model).backward()
    dead = [
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    unsound = [k for k, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert dead == [] and unsound == []
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen and all(key.startswith("guidance.backbone.") for key in frozen)


def test_a_zero_modulation_bias_would_be_dead():
    """The regression that the live-gradient test guards against, shown to be caught."""
    torch.manual_seed(0)
    block = RDDBlock(16, 8, "deformable", 16)
    awaken(block)
    nn.init.zeros_(block.mixer.offset_modulation.bias)
    block(torch.randn(1, 16, 8, 8)).sum().backward()
    assert float(block.mixer.offset_modulation.weight.grad.abs().sum()) == 0


def test_guidance_applied_once_equals_guidance_concatenated():
    """Eq. 11 concatenates it at the block's size; its share is computed at its own size, and enlarged after."""
    torch.manual_seed(0)
    block = RDDBlock(16, 8, time_width=4, guidance_width=6)
    awaken(block)
    x, time, guidance = torch.randn(1, 16, 16, 16), torch.randn(1, 4), torch.randn(1, 6, 8, 8)
    gated = []
    block.attention.register_forward_hook(lambda module, inputs, output: gated.append(inputs[0] * output))
    with torch.no_grad():
        result = block(x, time, fitted(block.project_guidance(guidance), (16, 16)))
        middle = x + block.beta * block.project(torch.cat((gated[0], fitted(guidance, (16, 16))), dim=1))
        first, second = block.feed_in(block.norm2(middle)).chunk(2, dim=1)
        expected = middle + block.gamma * block.feed_out(first * second)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("rows", [1, 5, 16, 31])
def test_strips_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch, rows: int):
    torch.manual_seed(0)
    block = RDDBlock(16, 8, time_width=4, guidance_width=6)
    awaken(block)
    x, time, guidance = torch.randn(2, 16, 32, 24), torch.randn(1, 4), torch.randn(2, 6, 32, 24)
    with torch.no_grad():
        share = block.project_guidance(guidance)
        whole = block(x, time, share)
        monkeypatch.setattr("rddm_core.networks.blocks.STRIP_ELEMENTS", rows * 2 * 32 * 24)
        torch.testing.assert_close(block(x, time, share), whole)


def test_a_convolution_of_blocks_is_that_of_the_unshuffled_picture():
    conv, x = nn.Conv2d(3 * 16, 5, 1), torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(conv_unshuffled(conv, x), conv(unshuffled(x, 4)))
    assert torch.equal(shuffled(unshuffled(x, 4), 4), x) and torch.equal(unshuffled(x, 4), F.pixel_unshuffle(x, 4))


def test_lite_keeps_every_part_and_stays_small():
    config = lite()
    assert "deformable" in config.pre_deblur.mixers
    assert config.denoiser.decoder_mixers.count("deformable") >= 2
    assert len(config.denoiser.widths) == len(config.denoiser.decoder_blocks) == 4
    assert min(config.denoiser.decoder_blocks) >= 1
    assert sum(p.numel() for p in RDDM(config).parameters()) <= 11_500_000


def test_paper_has_the_paper_s_shape():
    config = paper()
    assert config.guidance.backbone == "resnet50" and config.denoiser.unshuffle == 1
    mixers = (*config.denoiser.encoder_mixers, config.denoiser.middle_mixer, *config.denoiser.decoder_mixers)
    assert set(mixers) == set(config.pre_deblur.mixers) == {"deformable"}
    assert config.diffusion.timesteps == 1300


@pytest.mark.parametrize("mixer", ["depthwise", "deformable"])
def test_a_fresh_block_is_the_identity(mixer):
    x = torch.randn(2, 16, 16, 16)
    assert torch.equal(RDDBlock(16, 8, mixer, 16)(x), x)


def test_layer_norm_normalises_over_channels():
    x = torch.randn(2, 6, 3, 5) * 4 + 3
    y = LayerNorm2d(6)(x)
    assert torch.allclose(y.mean(dim=1), torch.zeros(2, 3, 5), atol=1e-5)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(y, expected, atol=1e-5)


def test_simple_gate_multiplies_the_halves():
    x = torch.arange(8.0).reshape(1, 4, 1, 2)
    assert torch.equal(simple_gate(x), torch.tensor([0.0 * 4, 1 * 5, 2 * 6, 3 * 7]).reshape(1, 2, 1, 2))


class TestChannelAttention:
    def test_one_cell_is_the_global_mean(self):
        attention, x = ChannelAttention(4, 8), torch.randn(2, 4, 8, 8)
        assert torch.allclose(attention(x), attention.conv(x.mean(dim=(2, 3), keepdim=True)), atol=1e-6)

    def test_statistics_are_local(self):
        attention, x = ChannelAttention(4, 8), torch.randn(1, 4, 40, 40)
        changed = x.clone()
        changed[..., 32:, 32:] += 5
        a, b = attention(x), attention(changed)
        assert torch.equal(a[..., :24, :24], b[..., :24, :24])
        assert not torch.allclose(a[..., 30:, 30:], b[..., 30:, 30:])

    def test_a_tile_on_the_grid_sees_the_statistics_of_the_whole(self):
        attention, x = ChannelAttention(4, 8), torch.randn(1, 4, 64, 64)
        tile = attention(x[..., 16:48, 16:48])
        assert torch.allclose(tile[..., 8:24, 8:24], attention(x)[..., 24:40, 24:40], atol=1e-6)

    def test_a_size_off_the_grid_is_refused(self):
        with pytest.raises(ValueError, match="multiple of the attention cell"):
            ChannelAttention(4, 8)(torch.zeros(1, 4, 12, 16))


@pytest.fixture(scope="module", params=["lite", "paper"])
def model(request) -> RDDM:
    torch.manual_seed(1)
    network = RDDM(small(preset(request.param))).eval()
    awaken(network)
    return network


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 192), (128, 64)])
def test_shapes_and_condition(model, height, width):
    image, defocus_map = torch.rand(2, 3, height, width), torch.rand(2, 1, height, width)
    with torch.no_grad():
        guess = model.pre_deblur(image, defocus_map)
        guidance = model.guidance(guess)
        condition = model.denoiser.encode_condition(guess, defocus_map, guidance)
        out = model.denoiser(torch.randn(2, 3, height, width), torch.tensor([1300, 5]), condition)
    assert guess.shape == out.shape == image.shape and guess.dtype == out.dtype == torch.float32
    strides = [s * model.config.guidance.reduction for s in (4, 8, 16)]
    assert [tuple(g.shape) for g in guidance] == [(2, 8, height // s, width // s) for s in strides]


def test_the_first_guess_depends_on_the_map(model):
    image, defocus_map = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        one, other = model.pre_deblur(image, defocus_map), model.pre_deblur(image, 1 - defocus_map)
    assert float((one - other).abs().max()) > 1e-3


def test_p_adds_its_correction_to_the_picture(model):
    p, image = copy.deepcopy(model.pre_deblur), torch.rand(1, 3, 64, 64)
    nn.init.zeros_(p.outro.weight)
    with torch.no_grad():
        assert torch.equal(p(image, torch.rand(1, 1, 64, 64)), image)


def test_skips_of_p_pass_by_the_coarser_scales(model):
    """With the way through them closed, the finest one still sees the picture."""
    p = copy.deepcopy(model.pre_deblur)
    nn.init.zeros_(p.ups[0].conv.weight)
    image, defocus_map = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        one, other = (p(x, defocus_map) - x for x in (image, 1 - image))
    assert float((one - other).abs().max()) > 1e-3


def test_every_input_matters(model):
    image, defocus_map, x_t = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), torch.randn(1, 3, 64, 64)

    def predict(image=image, defocus_map=defocus_map, x_t=x_t, t=700, mute=False):
        with torch.no_grad():
            guidance = model.guidance(image)
            guidance = tuple(g * 0 for g in guidance) if mute else guidance
            condition = model.denoiser.encode_condition(image, defocus_map, guidance)
            return model.denoiser(x_t, torch.tensor([t]), condition)

    reference = predict()
    assert torch.equal(predict(), reference)
    for changed in (
        predict(image=1 - image),
        predict(defocus_map=1 - defocus_map),
        predict(x_t=-x_t),
        predict(t=100),
        predict(mute=True),
    ):
        assert float((changed - reference).abs().max()) > 1e-6


def test_the_lite_encoder_does_not_depend_on_the_state():
    config = small(lite())
    denoiser = RDDM(config).denoiser
    calls = []
    denoiser.intro.register_forward_hook(lambda *_: calls.append(1))
    guidance = tuple(torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16))
    condition = denoiser.encode_condition(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), guidance)
    assert len(condition.features) == 5
    assert tuple(len(shares) for shares in condition.guidance) == config.denoiser.decoder_blocks
    for t in (1300, 650):
        denoiser(torch.randn(1, 3, 64, 64), torch.tensor([t]), condition)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def denoiser() -> DenoisingNetwork:
    torch.manual_seed(1)
    network = RDDM(small(lite())).denoiser.eval().requires_grad_(False)
    awaken(network)
    return network


def test_overlapping_blocks_are_a_transposed_convolution(denoiser):
    x, block = torch.randn(1, denoiser.outro.in_channels, 5, 7), denoiser.config.unshuffle
    joined = shuffled(F.conv2d(x, denoiser._last_weight(), denoiser.outro.bias, padding=1), block)
    apart = shuffled(denoiser.outro(x), block) + denoiser.overlap(x)
    torch.testing.assert_close(joined, apart, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", range(5))
def test_features_of_every_scale_reach_the_result(denoiser, level: int):
    image, defocus_map, x_t = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), torch.randn(1, 3, 64, 64)
    guidance = tuple(torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16))
    condition, other = (denoiser.encode_condition(x, defocus_map, guidance) for x in (image, 1 - image))
    features = tuple((other if n == level else condition).features[n] for n in range(len(condition.features)))
    changed = condition._replace(features=features)
    t = torch.tensor([700])
    assert float((denoiser(x_t, t, changed) - denoiser(x_t, t, condition)).abs().max()) > 1e-4


def test_surroundings_reach_the_deconvolutions(denoiser):
    side = 64 + 2 * CONTEXT
    whole, defocus_map = torch.rand(1, 3, side, side), torch.rand(1, 1, 64, 64)
    inner = whole[..., CONTEXT:-CONTEXT, CONTEXT:-CONTEXT]
    guidance = tuple(torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16))
    seen, replicated, none = (
        denoiser.encode_condition(inner, defocus_map, guidance, around).features[0]
        for around in (whole, surrounded(inner), None)
    )
    assert torch.equal(replicated, none) and float((seen - none).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    torch.manual_seed(1)
    full = RDDM(small(lite())).eval()
    image, defocus_map = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = full.pre_deblur(image, defocus_map), full.estimator(image)
        half = full.to(dtype)
        got = half.pre_deblur(image, defocus_map), half.estimator(image)
    for a, b in zip(expected, got, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).abs().max()) < 0.05


def test_state_entry_encoder_runs_everything_per_step():
    config = replace(small(lite()).denoiser, state_entry="encoder", deconvolution_radii=())
    denoiser = DenoisingNetwork(config, 8, 1300, 64)
    assert not hasattr(denoiser, "state_intro")
    guidance = tuple(torch.rand(1, 8, 64 // s, 64 // s) for s in (4, 8, 16))
    condition = denoiser.encode_condition(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), guidance)
    assert len(condition.features) == 1


def test_an_attention_cell_off_the_strides_is_refused():
    with pytest.raises(ValueError, match="multiple of the stride 64"):
        RDDM(replace(small(lite()), attention_cell=96))


def test_guidance_off_the_attention_cells_is_refused():
    """Features of a tile would not begin where the tile does."""
    config = small(lite())
    for reduction in (3, 8):
        with pytest.raises(ValueError, match="attention_cell 64 must be a multiple of the stride"):
            RDDM(replace(config, guidance=replace(config.guidance, reduction=reduction)))


def test_an_attention_cell_within_the_zone_of_tiles_is_refused():
    """Tiles would cover more than their guidance."""
    assert MIN_ATTENTION_CELL == FEATHER
    config = replace(small(paper()), attention_cell=32)
    with pytest.raises(ValueError, match="attention_cell 32 must be at least 64"):
        RDDM(config)
    for length in (96, 160, 700):
        for cell in (MIN_ATTENTION_CELL, 96, 128):
            tiles, windows = plan_tiles(length, length, 320, cell), plan_windows(length, length, 256, 64, cell)
            assert tiles[-1].rows.stop == windows[-1].rows.stop
    assert plan_tiles(96, 96, None, 32)[-1].rows.stop != plan_windows(96, 96, 256, 64, 32)[-1].rows.stop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_width": 15}, "time_width must be an even number from 2 on, not 15"),
        ({"time_width": 0}, "time_width must be an even number from 2 on, not 0"),
        ({"overlap": True, "unshuffle": 3}, "overlap=True needs an even unshuffle, not 3"),
        ({"overlap": True, "unshuffle": 1}, "overlap=True needs an even unshuffle, not 1"),
    ],
)
def test_denoisers_that_could_not_run_are_refused(changes, message):
    config = replace(small(lite()).denoiser, **changes)
    with pytest.raises(ValueError, match=message):
        DenoisingNetwork(config, guidance_width=8, timesteps=10, attention_cell=config.unshuffle * 16)


class TestConfig:
    @pytest.mark.parametrize("config", [lite(), paper(), small(lite())], ids=["lite", "paper", "small"])
    def test_round_trip(self, config):
        assert config_from_dict(config_to_dict(config)) == config

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("diffusion"), "config lacks: diffusion"),
            (lambda c: c.update(colour=1), "unknown keys: colour"),
            (lambda c: c["denoiser"].update(widths="wide"), "config.denoiser.widths must be a list"),
            (lambda c: c["denoiser"].update(middle_width=1.5), "config.denoiser.middle_width"),
            (lambda c: c["denoiser"].update(widths=[1, True]), r"config.denoiser.widths\[1\]"),
            (lambda c: c["guidance"].update(backbone="vgg"), "config.guidance.backbone must be one of"),
            (lambda c: c.update(estimator=3), "config.estimator must be a mapping"),
            (lambda c: c["diffusion"].update(beta_start=0), "diffusion.beta_start must be greater than 0"),
            (lambda c: c["diffusion"].update(beta_end=1.0), "diffusion.beta_end must be .* less than 1, not 1.0"),
            (lambda c: c["diffusion"].update(beta_end=math.nan), "diffusion.beta_end must be .*, not nan"),
        ],
    )
    def test_wrong_values_are_named(self, change, message):
        values = config_to_dict(lite())
        change(values)
        with pytest.raises(ValueError, match=message):
            config_from_dict(values)

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match="'lite', 'paper'"):
            preset("large")

    def test_defaults_are_the_first_lite_preset(self):
        """Checkpoints of format 1 lack the later fields: their defaults must stay what those files meant."""
        first = RDDMConfig("lite", EstimatorConfig(), GuidanceConfig(), PreDeblurConfig(), DenoiserConfig())
        guidance = replace(lite().guidance, reduction=1)
        blocks = {"encoder_blocks": (2, 2, 3, 3), "decoder_blocks": (1, 1, 1, 1)}
        denoiser = replace(lite().denoiser, deconvolution_radii=(), overlap=False, **blocks)
        assert first == replace(lite(), guidance=guidance, denoiser=denoiser)
