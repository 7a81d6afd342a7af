"""Algorithm 1: sizes, seeds, samples, steps, tiles, working size, merge, callbacks and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rddm_core.config import RDDMConfig, lite
from rddm_core.diffusion import ddim_step, make_alpha_bars
from rddm_core.memory import GUIDANCE_CONTEXT, held_bytes
from rddm_core.networks.blocks import RDDBlock
from rddm_core.networks.deconvolution import CONTEXT
from rddm_core.networks.denoiser import Condition
from rddm_core.networks.model import RDDM
from rddm_core.optics import map_from_radius, scale_map
from rddm_core.orientation import orientation_of_sample, turned, turned_back
from rddm_core.pipeline import (
    MAX_TRAINED_RADIUS,
    MIN_AUTO_SIZE,
    Callbacks,
    DeblurSettings,
    choose_working_size,
    deblur,
    encode_guidance,
    estimate_defocus_map,
    merge_residual,
    pre_deblur,
    sample_residual,
)
from rddm_core.tiling import cut, noise_tile, plan_tiles, plan_windows

TILE_TOLERANCE = 0.1
"""Largest difference between tiled and whole, in standard deviations of the change."""


@pytest.fixture(scope="module")
def model(tiny_config: RDDMConfig) -> RDDM:
    """The shipped structure with narrow layers and blocks that are far from the identity."""
    torch.manual_seed(0)
    model = RDDM(tiny_config).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, RDDBlock):
            nn.init.uniform_(module.beta, -0.5, 0.5)
            nn.init.uniform_(module.gamma, -0.5, 0.5)
    model.pre_deblur.outro.weight.mul_(2)
    model.denoiser.outro.weight.mul_(10)
    model.residual_scale = 12.0
    model.recommended_steps = 2
    return model


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


class Oracle(nn.Module):
    """A model whose p is I_p = 0.5 I_b + 0.2 and whose f knows the residual: the sharp picture is 1 - I_b.

    It records what it was asked.
    """

    class Denoiser(nn.Module):
        def __init__(self, owner: Any) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))
            self.owner = [owner]

        def encode_condition(
            self, pre_deblurred: Tensor, defocus_map: Tensor, guidance: tuple[Tensor, ...], surroundings: Tensor
        ) -> Condition:
            self.owner[0].conditions.append((pre_deblurred, defocus_map))
            return Condition((pre_deblurred,), (guidance,))

        def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            self.owner[0].states.append((int(t), x_t))
            (pre_deblurred,), (guidance,) = condition
            assert x_t.shape == pre_deblurred.shape
            assert torch.allclose(guidance[0], F.avg_pool2d(pre_deblurred, 16), atol=1e-6), "of the picture as it lies"
            sharp = 1 - (pre_deblurred - 0.2) / 0.5
            return self.owner[0].residual_scale * (sharp - pre_deblurred)

    class Guidance:
        strides = (16,)

        def __init__(self) -> None:
            self.asked = 0

        def __call__(self, pre_deblurred: Tensor) -> tuple[Tensor, ...]:
            self.asked += 1
            return (F.avg_pool2d(pre_deblurred, 16),)

    def __init__(self) -> None:
        super().__init__()
        self.config, self.stride, self.residual_scale, self.recommended_steps = lite(), 64, 11.0, 3
        self.denoiser, self.guidance = Oracle.Denoiser(self), Oracle.Guidance()
        self.conditions: list[tuple[Tensor, Tensor]] = []
        self.states: list[tuple[int, Tensor]] = []
        self.estimated: list[Tensor] = []
        self.first_maps: list[Tensor] = []

    def estimator(self, image: Tensor) -> Tensor:
        self.estimated.append(image)
        return image.mean(dim=1, keepdim=True)

    def pre_deblur(self, image: Tensor, defocus_map: Tensor) -> Tensor:
        assert image.shape[-2] % self.stride == 0 and image.shape[-1] % self.stride == 0
        assert defocus_map.shape == (1, 1, *image.shape[-2:])
        self.first_maps.append(defocus_map)
        return 0.5 * image + 0.2


def make_oracle() -> Any:
    """An `Oracle`; untyped, because it is no RDDM."""
    return Oracle()


# --- results


def test_the_estimator_sees_and_gives_pictures_of_its_working_size(model: RDDM) -> None:
    """Its device may lack antialiasing, and no large picture or map need be there. The map is the same to the bit."""
    large, seen = picture(1, 3, 150, 211), []
    with torch.inference_mode():
        expected = torch.sigmoid(model.estimator(large))
    with model.estimator.register_forward_hook(lambda _, inputs, logits: seen.extend((*inputs, logits))):
        assert torch.equal(estimate_defocus_map(model, large), expected)
    assert [x.shape[-2:] for x in seen] == [(45, 64)] * 2


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (31, 32), (64, 64), (65, 37)])
def test_any_size(model: RDDM, size: tuple[int, int]) -> None:
    result = deblur(model, picture(1, 3, *size))
    assert result.image.shape == result.pre_deblurred.shape == (1, 3, *size)
    assert result.defocus_map.shape == (1, 1, *size) and result.residual.shape == (1, 1, 3, *size)
    for part in (result.image, result.defocus_map):
        assert 0 <= float(part.min()) and float(part.max()) <= 1
    assert bool(result.residual.isfinite().all()) and float(result.residual.abs().max()) > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 1300])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("tile", [None, 128])
def test_the_oracle_gives_the_sharp_picture(steps: int, eta: float, tile: int | None) -> None:
    image = picture(1, 3, 150, 70 if steps == 1300 else 201)
    result = deblur(make_oracle(), image, settings=DeblurSettings(steps=steps, eta=eta, tile=tile))
    assert torch.allclose(result.image, 1 - image, atol=1e-5)


def test_the_steps_are_those_of_the_trailing_subsequence() -> None:
    oracle = make_oracle()
    deblur(oracle, picture(1, 3, 64, 64))
    assert [t for t, _ in oracle.states] == [1300, 867, 433]
    field = noise_tile(plan_tiles(64, 64, None, 64)[0], 64, 0, 0, 0)
    assert torch.equal(oracle.states[0][1], field)


def test_the_condition_is_encoded_once_per_tile_and_sample_for_all_steps() -> None:
    oracle = make_oracle()
    deblur(oracle, picture(2, 3, 64, 192), settings=DeblurSettings(steps=4, samples=3, tile=128))
    assert (len(oracle.conditions), oracle.guidance.asked, len(oracle.states)) == (2 * 2 * 3, 2 * 3, 2 * 2 * 3 * 4)
    assert len(oracle.estimated) == 2


@pytest.mark.parametrize("tile", [None, 128])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_oracle_is_right_in_every_orientation(tile: int | None, eta: float) -> None:
    image = picture(1, 3, 150, 201)
    result = deblur(make_oracle(), image, settings=DeblurSettings(samples=9, steps=2, eta=eta, tile=tile))
    assert torch.allclose(result.image, (1 - image).expand(9, -1, -1, -1), atol=1e-5)


def test_samples_see_the_picture_turned(model: RDDM) -> None:
    guess, defocus_map, noise = picture(1, 3, 64, 128), picture(1, 1, 64, 128), picture(1, 9, 3, 64, 128)
    drawn = sample_residual(model, guess, defocus_map, samples=9, steps=2, noise=noise)
    for n in range(9):
        k = orientation_of_sample(n)
        views = (turned(x, k) for x in (guess, defocus_map))
        alone = sample_residual(model, *views, steps=2, noise=turned(noise[:, n : n + 1], k))
        assert torch.allclose(turned_back(alone, k)[:, 0], drawn[:, n], atol=1e-5), k
    again = sample_residual(model, guess, defocus_map, samples=9, steps=2, noise=noise[:, :1].expand(-1, 9, -1, -1, -1))
    assert torch.equal(again[:, 8], again[:, 0]), "the ninth sees what the first saw"
    assert not any(torch.allclose(again[:, n], again[:, 0], atol=1e-5) for n in range(1, 8))


def test_a_batch_equals_its_single_pictures(model: RDDM) -> None:
    images = picture(3, 3, 70, 100)
    settings = DeblurSettings(seed=5, steps=2, eta=1.0, samples=2, working_size=90)
    together = deblur(model, images, settings=settings)
    alone = [deblur(model, images[b : b + 1], settings=replace(settings, seed=5 + b)) for b in range(3)]
    for field in ("image", "defocus_map", "pre_deblurred", "residual"):
        assert torch.equal(getattr(together, field), torch.cat([getattr(r, field) for r in alone])), field
    listed = deblur(model, images, settings=replace(settings, seed=(5, 6, 7)))
    assert torch.equal(listed.image, together.image)


def test_seeds_and_samples(model: RDDM) -> None:
    guess, defocus_map = picture(1, 3, 64, 64), picture(1, 1, 64, 64)

    def draw(**options: Any) -> Tensor:
        return sample_residual(model, guess, defocus_map, **options)

    first = draw(seed=1)
    assert torch.equal(first, draw(seed=1))
    assert not torch.equal(first, draw(seed=2))
    assert not torch.equal(first, draw(seed=1 + 2**32)), "all 64 bits of a seed count"
    several = draw(seed=1, samples=3)
    assert several.shape == (1, 3, 3, 64, 64)
    assert torch.equal(several[:, :1], first)
    assert not torch.equal(several[:, 1], several[:, 0]) and not torch.equal(several[:, 2], several[:, 1])
    state = torch.random.get_rng_state()
    draw(seed=1, eta=1.0)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is not touched"


def test_eta_adds_noise_that_follows_the_seed(model: RDDM) -> None:
    guess, defocus_map = picture(1, 3, 64, 64), picture(1, 1, 64, 64)
    still = sample_residual(model, guess, defocus_map, steps=3)
    moved = sample_residual(model, guess, defocus_map, steps=3, eta=1.0)
    assert not torch.equal(still, moved)
    assert torch.equal(moved, sample_residual(model, guess, defocus_map, steps=3, eta=1.0))
    one = [sample_residual(model, guess, defocus_map, steps=1, eta=eta) for eta in (0.0, 1.0)]
    assert torch.equal(*one), "a single step ends at s = 0 and takes no noise"


def test_every_stochastic_step_takes_fresh_noise() -> None:
    oracle = make_oracle()
    guess = picture(1, 3, 64, 64)
    sample_residual(oracle, guess, picture(1, 1, 9, 9), seed=3, steps=3, eta=1.0)
    alpha_bars = make_alpha_bars(oracle.config.diffusion).tolist()
    x_0 = oracle.residual_scale * (1 - (guess - 0.2) / 0.5 - guess)
    (whole,) = plan_tiles(64, 64, None, 64)
    for i in (0, 1):
        (t, x_t), (s, x_s) = oracle.states[i], oracle.states[i + 1]
        z = noise_tile(whole, 64, 3, 0, i + 1)
        assert torch.allclose(x_s, ddim_step(x_t, x_0, alpha_bars[t], alpha_bars[s], 1.0, z), atol=1e-5)


def test_given_noise_replaces_the_seeded_noise(model: RDDM) -> None:
    guess, defocus_map = picture(2, 3, 128, 64), picture(1, 1, 64, 64)
    (whole,) = plan_tiles(128, 64, None, 64)
    noise = torch.stack([torch.cat([noise_tile(whole, 64, 3 + b, n, 0) for n in (0, 1)]) for b in (0, 1)])
    expected = sample_residual(model, guess, defocus_map, seed=3, samples=2)
    for tile in (None, 128):
        given = sample_residual(model, guess, defocus_map, seed=99, samples=2, noise=noise, tile=tile)
        assert torch.equal(given, expected)
    assert not torch.equal(sample_residual(model, guess, defocus_map, samples=2, noise=-noise), expected)


def test_given_noise_is_cut_into_the_tiles() -> None:
    oracle, noise = make_oracle(), picture(1, 1, 3, 200, 300)
    sample_residual(oracle, picture(1, 3, 200, 300), picture(1, 1, 9, 9), noise=noise, steps=1, tile=128)
    for (_, state), tile in zip(oracle.states, plan_tiles(200, 300, 128, 64), strict=True):
        part = noise[0][tile.outer]
        assert torch.equal(state[..., : part.shape[-2], : part.shape[-1]], part)


def test_stages_chained_by_hand_equal_deblur(model: RDDM) -> None:
    image = picture(2, 3, 100, 70)
    defocus_map = estimate_defocus_map(model, image)
    guess = pre_deblur(model, image, defocus_map)
    guidance = encode_guidance(model, guess)
    residual = sample_residual(model, guess, defocus_map, guidance=guidance, seed=4)
    result = deblur(model, image, settings=DeblurSettings(seed=4))
    assert torch.equal(result.defocus_map, defocus_map) and torch.equal(result.pre_deblurred, guess)
    assert torch.equal(result.residual, residual)
    assert torch.equal(result.image, merge_residual(image, guess, residual[:, 0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_and_pictures(model: RDDM, dtype: torch.dtype) -> None:
    image = picture(1, 3, 64, 64)
    reference = deblur(model, image).image
    half = RDDM(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.residual_scale, half.recommended_steps = model.residual_scale, model.recommended_steps
    result = deblur(half.to(dtype), image)
    assert all(part.dtype == torch.float32 for part in vars(result).values() if part is not None)
    assert float((result.image - reference).abs().max()) < (0.1 if dtype == torch.bfloat16 else 0.02)
    from_half = deblur(model, image.to(dtype))
    assert from_half.image.dtype == torch.float32
    assert torch.equal(from_half.image, deblur(model, image.to(dtype).float()).image)


def test_inputs_are_left_alone(model: RDDM) -> None:
    inputs = picture(1, 3, 64, 65), picture(1, 1, 20, 30), picture(1, 1, 7, 7)
    copies = [x.clone() for x in inputs]
    deblur(model, inputs[0], defocus_map=inputs[1], mask=inputs[2], settings=DeblurSettings(eta=1.0))
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


# --- map and mask


def test_map_order_and_user_map_decide_on_estimates() -> None:
    image = picture(2, 3, 64, 80)
    cases: list[tuple[Any, Tensor | None, int]] = [
        ("text", None, 2),
        ("two_pass", None, 4),
        ("two_pass", picture(1, 1, 5, 9), 0),
    ]
    for order, given, calls in cases:
        oracle = make_oracle()
        result = deblur(oracle, image, defocus_map=given, settings=DeblurSettings(map_order=order))
        assert len(oracle.estimated) == calls
        if order == "two_pass" and given is None:
            assert torch.equal(oracle.estimated[2], 0.5 * image[:1] + 0.2)
            assert torch.allclose(result.defocus_map, torch.sigmoid((0.5 * image + 0.2).mean(1, keepdim=True)))
            assert torch.equal(oracle.conditions[0][1][..., :64, :80], result.defocus_map[:1])


def test_the_second_map_is_that_of_a_picture_in_range() -> None:
    oracle, image = make_oracle(), picture(1, 3, 64, 64)
    oracle.pre_deblur = lambda image, _: 3 * image - 1
    deblur(oracle, image, settings=DeblurSettings(steps=1, map_order="two_pass"))
    assert torch.equal(oracle.estimated[1], (3 * image - 1).clamp(0, 1))


def test_a_user_map_of_any_size_is_resized(model: RDDM) -> None:
    image, small = picture(2, 3, 64, 96), picture(1, 1, 16, 24)
    large = F.interpolate(small, size=(64, 96), mode="bilinear", antialias=True, align_corners=False)
    results = [deblur(model, image, defocus_map=x) for x in (small, large)]
    assert torch.equal(results[0].image, results[1].image)
    assert torch.equal(results[0].defocus_map, large.expand(2, -1, -1, -1))
    assert not torch.equal(results[0].image, deblur(model, image, defocus_map=1 - small).image)


def test_strength_and_mask_zero_return_the_original_bit_for_bit(model: RDDM) -> None:
    image = picture(2, 3, 64, 80)
    assert torch.equal(deblur(model, image, settings=DeblurSettings(strength=0.0)).image, image)
    assert torch.equal(deblur(model, image, mask=torch.zeros(1, 1, 9, 9)).image, image)
    mask = torch.zeros(1, 1, 64, 80)
    mask[..., 40:] = 1
    full, masked = deblur(model, image).image, deblur(model, image, mask=mask).image
    assert torch.equal(masked[..., :40], image[..., :40]) and torch.equal(masked[..., 40:], full[..., 40:])
    assert not torch.equal(full, image)
    masks = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    each = deblur(model, image, mask=masks).image
    assert torch.equal(each[0], image[0]) and torch.equal(each[1], full[1])


def test_merge_is_linear_in_strength_and_mask() -> None:
    original, guess, residual = (picture(2, 3, 9, 11, seed=i) * 0.4 + 0.3 for i in range(3))
    residual = (residual - 0.5) * 0.3
    mask = picture(2, 1, 9, 11)
    merged = merge_residual(original, guess, residual, strength=0.5, mask=mask)
    assert torch.allclose(merged, original + 0.5 * mask * (guess + residual - original), atol=1e-6)
    assert torch.allclose(merge_residual(original, guess, residual), guess + residual, atol=1e-6)
    wild = merge_residual(original, guess, torch.full_like(residual, 9.0))
    assert bool((wild == 1).all())
    huge = torch.full_like(original, 3e38)  # the sum is infinite
    assert torch.equal(merge_residual(original, huge, huge, mask=torch.zeros(1, 1, 1, 1)), original)


# --- tiles


def test_tiles_agree_with_the_whole_picture(model: RDDM) -> None:
    """The tolerance is relative to the size of the change: what is left is the truncated receptive field."""
    image, defocus_map = picture(1, 3, 300, 420), picture(1, 1, 12, 17)
    whole = pre_deblur(model, image, defocus_map)
    tiled = pre_deblur(model, image, defocus_map, tile=256)
    assert float((tiled - whole).abs().max()) < TILE_TOLERANCE * float((whole - image).std())
    residual = sample_residual(model, whole, defocus_map, steps=2, eta=1.0)
    parts = sample_residual(model, whole, defocus_map, steps=2, eta=1.0, tile=256)
    assert not torch.equal(parts, residual)
    assert float((parts - residual).abs().max()) < TILE_TOLERANCE * float(residual.std())
    other = sample_residual(model, whole, defocus_map, steps=2, eta=1.0, seed=1)
    assert float((other - residual).abs().max()) > TILE_TOLERANCE * float(residual.std())


def test_f_sees_what_surrounds_a_tile(model: RDDM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []
    encode = model.denoiser.encode_condition

    def watch(*given: Any) -> Condition:
        seen.append(given)
        return encode(*given)

    monkeypatch.setattr(model.denoiser, "encode_condition", watch)
    guess = picture(1, 3, 64, 256)
    sample_residual(model, guess, picture(1, 1, 9, 9), steps=1, tile=128)
    tiles = plan_tiles(64, 256, 128, 64)
    assert len(tiles) > 1
    for (part, _, _, around), tile in zip(seen, tiles, strict=True):
        assert torch.equal(part, cut(guess, tile)) and torch.equal(around, cut(guess, tile, CONTEXT))


def test_whole_guidance_is_cut_into_tiles(model: RDDM) -> None:
    guess, defocus_map = picture(2, 3, 400, 200), picture(2, 1, 12, 17)
    guidance = encode_guidance(model, guess)
    given = sample_residual(model, guess, defocus_map, guidance=guidance, tile=256)
    made = sample_residual(model, guess, defocus_map, tile=256)
    assert torch.equal(given, made)
    swapped = sample_residual(model, guess, defocus_map, guidance=[g.flip(0) for g in guidance], tile=256)
    assert not torch.equal(swapped, given)


def test_guidance_through_windows_agrees_with_the_whole(model: RDDM, monkeypatch: pytest.MonkeyPatch) -> None:
    guess = picture(2, 3, 600, 500)
    whole = encode_guidance(model, guess)
    monkeypatch.setattr("rddm_core.memory.GUIDANCE_WINDOW", 128)
    differences = []
    for context in (0, 128, 256):
        monkeypatch.setattr("rddm_core.pipeline.GUIDANCE_CONTEXT", context)
        parts = encode_guidance(model, guess)
        assert all(a.shape == b.shape for a, b in zip(parts, whole, strict=True))
        differences.append(max(float((a - b).abs().max() / b.std()) for a, b in zip(parts, whole, strict=True)))
    assert differences[0] > differences[1] > 10 * differences[2], "of random weights; trained ones look less far"


def test_windows_of_guidance_shrink_with_the_tiles() -> None:
    oracle, guess = make_oracle(), picture(1, 3, 64, 1024)
    sample_residual(oracle, guess, picture(1, 1, 9, 9), steps=1, tile=128)
    assert oracle.guidance.asked == len(plan_windows(64, 1024, 256, GUIDANCE_CONTEXT, 64)) > 1


def test_auto_tiles_large_pictures_only() -> None:
    for size, tiles in (((1408, 1408), 1), ((1408, 1409), 2)):
        oracle = make_oracle()
        image = torch.full((1, 3, *size), 0.5)
        deblur(oracle, image, settings=DeblurSettings(steps=1, working_size="full"))
        assert len(oracle.conditions) == tiles


@pytest.mark.parametrize(
    ("samples", "keep", "mean"), [(1, False, False), (1, True, False), (3, False, False), (3, False, True)]
)
def test_tiles_may_take_what_the_picture_leaves_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, samples: int, keep: bool, mean: bool
) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr("rddm_core.pipeline.tile_size", lambda choice, height, width, config, *rest: seen.append(rest))
    for size in ("full", 256):
        settings = DeblurSettings(steps=1, samples=samples, memory=10**9, working_size=size)
        deblur(make_oracle(), picture(1, 3, 64, 512), settings=settings, keep_stages=keep, mean=mean)
    # Enlarged, one sample stands beside the sum of all, and at the reduced size all are held.
    held = held_bytes(64, 512, samples, keep, mean) + (12 * 64 * 512 if mean else 0)
    assert seen == [(10**9, samples, keep, mean), (10**9 - held, samples, keep, False)]


# --- working size


@pytest.mark.parametrize(
    ("width", "working_size", "scale"),
    [(512, "full", 1), (1024, "full", 2), (2048, 1024, 2), (1024, 256, 0.5), (320, 256, 0.8)],
)
def test_p_and_f_are_given_radii_of_the_picture_that_they_see(width: int, working_size: Any, scale: float) -> None:
    """A map counts pixels of the estimator's working size: 512."""
    oracle, half = make_oracle(), torch.full((1, 1, 1, 1), 0.5)
    settings = DeblurSettings(steps=1, working_size=working_size)
    result = deblur(oracle, picture(1, 3, 64, width), settings=settings, defocus_map=half)
    wanted = float(scale_map(torch.tensor(0.5), scale))
    for seen in (oracle.first_maps[0], oracle.conditions[0][1]):
        torch.testing.assert_close(seen, torch.full_like(seen, wanted))
    assert float(result.defocus_map.min()) == 0.5 == float(result.defocus_map.max())


def test_the_second_map_counts_the_same_pixels_as_the_first() -> None:
    """Its picture is the reduced one, which the estimator sees at 256 pixels instead of 512."""
    oracle = make_oracle()
    settings = DeblurSettings(steps=1, working_size=256, map_order="two_pass")
    result = deblur(oracle, torch.full((1, 3, 64, 1024), 0.5), settings=settings)
    seen = oracle.conditions[0][1]
    torch.testing.assert_close(seen, torch.sigmoid(torch.full_like(seen, 0.45)), msg="as estimated")
    expected = scale_map(torch.sigmoid(torch.tensor(0.45)), 2)
    torch.testing.assert_close(result.defocus_map, torch.full_like(result.defocus_map, float(expected)))


@pytest.mark.parametrize("part", ["estimator", "pre_deblur", "denoiser"])
def test_networks_that_give_nan_are_named_with_their_precision(tiny_config: RDDMConfig, part: str) -> None:
    networks = RDDM(tiny_config).eval().requires_grad_(False)
    next(getattr(networks, part).parameters()).fill_(torch.nan)
    what = {"estimator": "defocus map", "pre_deblur": "first guess", "denoiser": "residual"}[part]
    for dtype, cure in ((torch.float32, "damaged"), (torch.bfloat16, "as fp32")):
        with pytest.raises(ValueError, match=f"gave a {what} with NaN.*{dtype}.*{cure}") as error:
            deblur(networks.to(dtype), picture(1, 3, 64, 64), settings=DeblurSettings(steps=1))
        can_be_the_input = part == "denoiser" and dtype == torch.float32
        assert ("pre_deblurred was far" in str(error.value)) == can_be_the_input


def test_a_reduced_working_size_adds_the_enlarged_change() -> None:
    oracle, image = make_oracle(), picture(1, 3, 120, 200)
    settings = DeblurSettings(working_size=100, strength=0.5, samples=2)
    result = deblur(oracle, image, settings=settings)
    assert oracle.conditions[0][0].shape[-2:] == (64, 128), "60 x 100, padded"
    small = F.interpolate(image, size=(60, 100), mode="bilinear", antialias=True, align_corners=False)
    change = F.interpolate(1 - 2 * small, size=(120, 200), mode="bicubic", align_corners=False)
    expected = (image + 0.5 * change).clamp(0, 1)
    assert result.image.shape == (2, 3, 120, 200)
    assert torch.allclose(result.image, expected.expand(2, -1, -1, -1), atol=1e-5)
    for n in (0, 1):
        merged = merge_residual(image, result.pre_deblurred, result.residual[:, n], strength=0.5)
        assert torch.allclose(merged, result.image[n : n + 1], atol=1e-6)


@pytest.mark.parametrize("size", ["full", 200])
@pytest.mark.parametrize("samples", [1, 2])
def test_stages_that_are_not_kept_change_nothing(model: RDDM, size: Any, samples: int) -> None:
    image, mask = picture(2, 3, 300, 320), picture(1, 1, 10, 10)
    settings = DeblurSettings(tile=128, working_size=size, samples=samples, strength=0.7)
    kept, lean = (deblur(model, image, settings=settings, mask=mask, keep_stages=k) for k in (True, False))
    assert torch.equal(lean.image, kept.image) and torch.equal(lean.defocus_map, kept.defocus_map)
    assert lean.pre_deblurred is None and lean.residual is None


@pytest.mark.parametrize("size", ["full", 200])
def test_a_mask_counts_where_it_lies_in_tiles_and_at_a_reduced_size(model: RDDM, size: Any) -> None:
    image, mask = picture(1, 3, 300, 320), torch.linspace(-1, 1, 300).clamp(0, 1).reshape(1, 1, 300, 1)
    settings = DeblurSettings(tile=128, working_size=size, strength=0.7)
    mask = mask.expand(-1, -1, -1, 320)
    result = deblur(model, image, settings=settings, mask=mask)
    merged = merge_residual(image, result.pre_deblurred, result.residual[:, 0], strength=0.7, mask=mask)
    assert torch.allclose(result.image, merged, atol=1e-6) and not torch.equal(result.image, image)
    assert torch.equal(result.image[:, :, :150], image[:, :, :150]), "where the mask is 0"


@pytest.mark.parametrize("size", ["full", 200])
@pytest.mark.parametrize("keep", [True, False])
def test_the_mean_of_samples_is_that_of_the_merged_ones(model: RDDM, size: Any, keep: bool) -> None:
    image, mask = picture(2, 3, 300, 320), picture(1, 1, 10, 10)
    settings = DeblurSettings(tile=128, working_size=size, samples=3, strength=3.0)
    every, mean = (deblur(model, image, settings=settings, mask=mask, keep_stages=keep, mean=m) for m in (False, True))
    assert bool((every.image == 1).any()), "clamped before the mean is taken"
    expected = every.image.unflatten(0, (2, 3)).mean(dim=1)
    torch.testing.assert_close(mean.image, expected, rtol=0, atol=1e-6)
    if keep:
        assert torch.equal(mean.pre_deblurred, every.pre_deblurred) and torch.equal(mean.residual, every.residual)


def test_a_working_size_never_enlarges(model: RDDM) -> None:
    image = picture(1, 3, 64, 80)
    results = [deblur(model, image, settings=DeblurSettings(working_size=s)).image for s in ("full", 80, 999, "auto")]
    assert all(torch.equal(r, results[0]) for r in results)


def choose(radius: float, height: int, width: int) -> int | None:
    """The working size of an evenly blurred picture; radius in pixels of a long side of 512."""
    return choose_working_size(map_from_radius(torch.full((1, 40, 60), radius)), height, width, 512)


def test_auto_working_size_follows_the_map() -> None:
    assert choose(9.0, 1024, 700) is None, "small pictures are never reduced"
    assert choose(0.2, 4000, 6000) is None, "little blur needs no reduction"
    sizes = [choose(r, 4000, 6000) for r in (1.0, 1.5, 2.0, 3.0, 4.0)]
    assert all(s is not None and s % 64 == 0 for s in sizes)
    assert sizes == sorted(sizes, key=lambda s: -(s or 0)) and len(set(sizes)) == len(sizes)
    size = choose(2.0, 4000, 6000)
    assert size is not None and 2.0 / 512 * size == pytest.approx(MAX_TRAINED_RADIUS, rel=0.05)
    assert choose(9.0, 6000, 4000) == MIN_AUTO_SIZE
    mostly_sharp = map_from_radius(torch.zeros(1, 1000, 1500))
    mostly_sharp[:, :40, :40] = 0.99
    assert choose_working_size(mostly_sharp, 4000, 6000, 512) is None
    assert choose_working_size(torch.ones(1, 1, 1, 1), 4000, 6000, 512) == MIN_AUTO_SIZE


@pytest.mark.parametrize(("share", "reduced"), [(0.05, False), (0.2, True)])
def test_a_tenth_of_the_picture_decides_on_its_working_size(share: float, reduced: bool) -> None:
    radius = torch.zeros(1, 1000, 1500)
    radius[:, : round(1000 * share)] = 9.0
    assert (choose_working_size(map_from_radius(radius), 4000, 6000, 512) is not None) == reduced


def test_upright_pictures_are_reduced_like_wide_ones() -> None:
    assert choose(2.0, 6000, 4000) == choose(2.0, 4000, 6000) is not None


def test_no_picture_is_reduced_by_less_than_a_tenth() -> None:
    """The blur of 10.5 pixels would ask for 0.95 of its size."""
    assert choose(10.5 * 512 / 6000, 4000, 6000) is None and choose(12 * 512 / 6000, 4000, 6000) is not None


def test_auto_working_size_is_used() -> None:
    oracle = make_oracle()
    settings = DeblurSettings(steps=1, tile=None)
    image = torch.full((1, 3, 80, 2000), 0.5)
    deblur(oracle, image, defocus_map=torch.ones(1, 1, 1, 1), settings=settings)
    assert oracle.conditions[0][0].shape[-2:] == (64, 1024)


@pytest.mark.parametrize(("same", "widths"), [(False, [2048, 1024]), (True, [1024, 1024])])
def test_frames_of_a_video_may_share_the_smallest_working_size(same: bool, widths: list[int]) -> None:
    oracle = make_oracle()
    settings = DeblurSettings(steps=1, tile=None, same_working_size=same)
    frames = torch.full((2, 3, 64, 2048), 0.5)
    maps = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    deblur(oracle, frames, defocus_map=maps, settings=settings)
    assert [condition[0].shape[-1] for condition in oracle.conditions] == widths


def test_every_picture_has_tiles_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, in focus, keeps its size and is cut; the second is reduced to one tile."""
    monkeypatch.setattr("rddm_core.memory.AUTO_TILE", 320)
    oracle, maps = make_oracle(), torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    deblur(oracle, torch.full((2, 3, 64, 2048), 0.5), defocus_map=maps, settings=DeblurSettings(steps=1))
    assert len(oracle.conditions) == len(oracle.first_maps) == len(plan_tiles(64, 2048, 320, 64)) + 1
    assert oracle.conditions[-1][0].shape[-1] == 1024


# --- callbacks


class Stop(BaseException):
    pass


def stop_after(count: int) -> Callable[[], None]:
    left = [count]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return check


def test_interrupts_pass_through_before_any_evaluation() -> None:
    settings = DeblurSettings(steps=2, tile=128, map_order="two_pass")
    image, seen = picture(1, 3, 64, 192), []
    deblur(make_oracle(), image, settings=settings, callbacks=Callbacks(check_interrupt=lambda: seen.append(0)))
    # Two maps, H, and for each of two tiles: p, the condition, two steps.
    assert len(seen) == 2 + 1 + 2 * (1 + 1 + 2)
    for count in range(len(seen)):
        oracle = make_oracle()
        with pytest.raises(Stop):
            deblur(oracle, image, settings=settings, callbacks=Callbacks(check_interrupt=stop_after(count)))
        # p records nothing: at most `count` evaluations have run.
        assert len(oracle.estimated) + len(oracle.conditions) + len(oracle.states) + oracle.guidance.asked <= count
    with pytest.raises(Stop):
        estimate_defocus_map(make_oracle(), image, callbacks=Callbacks(check_interrupt=stop_after(0)))


@pytest.mark.parametrize("order", ["text", "two_pass"])
@pytest.mark.parametrize("given", [None, torch.ones(1, 1, 1, 1)])
def test_progress_counts_every_evaluation_once(order: Any, given: Tensor | None) -> None:
    reports: list[tuple[int, int]] = []
    settings = DeblurSettings(steps=3, samples=2, tile=128, map_order=order)
    callbacks = Callbacks(progress=lambda done, total: reports.append((done, total)))
    deblur(make_oracle(), picture(2, 3, 192, 192), settings=settings, defocus_map=given, callbacks=callbacks)
    maps = 0 if given is not None else 2
    total = maps + 2 * (4 + 4 * 2 * 3) + (2 if maps and order == "two_pass" else 0)
    # Once more after the maps: only then is the total known.
    assert reports == [(done, total) for done in (*range(1, maps + 1), *range(maps, total + 1))]


def test_progress_of_single_stages() -> None:
    image, defocus_map = picture(2, 3, 192, 192), picture(1, 1, 5, 5)
    reports: list[tuple[int, int]] = []
    callbacks = Callbacks(progress=lambda done, total: reports.append((done, total)))
    pre_deblur(make_oracle(), image, defocus_map, tile=128, callbacks=callbacks)
    assert reports == [(done, 8) for done in range(1, 9)]
    reports.clear()
    estimate_defocus_map(make_oracle(), image, callbacks=callbacks)
    assert reports == [(1, 2), (2, 2)]
    reports.clear()
    sample_residual(make_oracle(), image, defocus_map, tile=128, samples=2, callbacks=callbacks)
    assert reports == [(done, 48) for done in range(1, 49)]


@pytest.mark.parametrize("size", [(1, 1), (100, 192), (50, 1100)])
def test_previews_show_the_first_picture_and_end_with_the_result(size: tuple[int, int]) -> None:
    image = picture(2, 3, *size)
    previews: list[Tensor] = []
    settings = DeblurSettings(steps=2, samples=2, tile=128, working_size="full")
    result = deblur(make_oracle(), image, settings=settings, callbacks=Callbacks(preview=previews.append))
    assert len(previews) == 2 * len(plan_tiles(*size, 128, 64))
    alone: list[Tensor] = []
    callbacks = Callbacks(preview=alone.append)
    sample_residual(make_oracle(), image, picture(1, 1, 9, 9), steps=2, samples=2, tile=128, callbacks=callbacks)
    assert len(alone) == len(previews)
    for preview in previews:
        assert preview.shape[:2] == (1, 3) and max(preview.shape[-2:]) == min(512, max(size))
        assert 0 <= float(preview.min()) and float(preview.max()) <= 1
    expected = F.interpolate(
        result.image[:1], size=previews[-1].shape[-2:], mode="bilinear", antialias=True, align_corners=False
    )
    error = (previews[-1] - expected).abs()
    assert float(error.mean()) < (1e-6 if max(size) <= 512 else 0.03)
    assert not torch.equal(previews[0], previews[-1]) or len(previews) == 2


def test_previews_stay_in_range_where_estimates_do_not() -> None:
    previews: list[Tensor] = []
    guess = 4 * picture(1, 3, 64, 256) - 1.5
    watch = Callbacks(preview=previews.append)
    sample_residual(make_oracle(), guess, picture(1, 1, 9, 9), steps=1, tile=128, callbacks=watch)
    assert len(previews) == len(plan_tiles(64, 256, 128, 64)) > 1
    assert all(0 <= float(preview.min()) and float(preview.max()) <= 1 for preview in previews)


# --- errors


BAD_PICTURES = [
    (torch.zeros(3, 8, 8), r"\[B, 3, H, W\]"),
    (torch.zeros(1, 4, 8, 8), r"\[1, 4, 8, 8\]"),
    (torch.zeros(1, 3, 0, 8), "at least one pixel"),
    ("photo.jpg", "not str"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "255"),
    (torch.full((1, 3, 8, 8), 2.0), "clamp"),
    (torch.full((1, 3, 8, 8), -0.1), "0..1"),
    (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
    (torch.full((1, 3, 8, 8), float("inf")), "infinite"),
]


@pytest.mark.parametrize(("image", "message"), BAD_PICTURES)
def test_bad_pictures(image: Any, message: str) -> None:
    oracle = make_oracle()
    for call in (
        lambda: deblur(oracle, image),
        lambda: estimate_defocus_map(oracle, image),
        lambda: pre_deblur(oracle, image, torch.zeros(1, 1, 8, 8)),
        lambda: merge_residual(image, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["defocus_map", "mask"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1, 8, 8), r"\[B, 1, h, w\]"),
        (torch.zeros(1, 3, 8, 8), r"\[1, 3, 8, 8\]"),
        (torch.zeros(3, 1, 8, 8), "B = 2 or 1"),
        (torch.full((1, 1, 8, 8), 255.0), "0..1"),
        (torch.full((1, 1, 8, 8), float("nan")), "NaN"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.bool), "floating point"),
    ],
)
def test_bad_maps_and_masks(name: str, value: Tensor, message: str) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=message) as error:
        deblur(make_oracle(), torch.zeros(2, 3, 8, 8), **given)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2, 3]}, "3 seeds for a batch of 2"),
        ({"samples": 0}, "samples"),
        ({"steps": -1}, "steps"),
        ({"steps": 1301}, "1300"),
        ({"eta": 1.5}, "eta"),
        ({"tile": 0}, "tile"),
        ({"noise": torch.zeros(2, 3, 8, 8)}, "noise must be"),
        ({"guidance": (torch.zeros(1, 3, 4, 4),)}, r"must be \[\(2, 4, 4\)\], not \[\(1, 4, 4\)\]"),
        ({"guidance": (torch.zeros(2, 3, 5, 4),)}, r"not \[\(2, 5, 4\)\]"),
        # Of half the size it could be stretched over the picture.
        ({"guidance": (torch.zeros(2, 3, 2, 2),)}, r"not \[\(2, 2, 2\)\]"),
        ({"guidance": (torch.zeros(2, 3, 4, 4),) * 2}, "guidance must be that of encode_guidance"),
    ],
)
def test_bad_sampling_options(options: dict[str, Any], message: str) -> None:
    oracle = make_oracle()
    with pytest.raises(ValueError, match=message):
        sample_residual(oracle, torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 8, 8), **options)


def test_steps_beyond_the_schedule_are_refused_before_any_work() -> None:
    oracle = make_oracle()
    with pytest.raises(ValueError, match="between 1 and 1300, not 1301"):
        deblur(oracle, torch.zeros(1, 3, 8, 8), settings=DeblurSettings(steps=1301))
    assert not oracle.estimated and not oracle.first_maps


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"samples": 0},
        {"eta": -0.1},
        {"strength": -1.0},
        {"strength": float("nan")},
        {"tile": 0},
        {"tile": "all"},
        {"working_size": 0},
        {"working_size": "small"},
        {"map_order": "figure"},
    ],
)
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DeblurSettings(**options)


def test_parts_that_do_not_fit_the_original() -> None:
    zeros = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"residual is \[1, 3, 8, 9\]"):
        merge_residual(zeros, zeros, torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="pre_deblurred"):
        merge_residual(zeros, torch.zeros(1, 1, 3, 8, 8), zeros)
    with pytest.raises(ValueError, match="strength"):
        merge_residual(zeros, zeros, zeros, strength=-1.0)
