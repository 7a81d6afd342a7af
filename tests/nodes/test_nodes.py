"""The five nodes give what the core gives, in the host's layout, and speak up where inputs do not fit."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rddm_core import pipeline
from rddm_core.checkpoint import load_checkpoint

Submodule = Callable[[str], ModuleType]
AUTO, FIRST = {"tiling": "auto"}, {"reduction": "first"}


@pytest.fixture
def call(pack: SimpleNamespace) -> Callable[..., Any]:
    """Run a node with its defaults, as the host does: every widget is given."""
    defaults: dict[str, dict[str, Any]] = {
        "RDDMSampler": {"seed": 0, "steps": 0, "eta": 0.0, "samples": 1, "tiling": AUTO},
        "RDDMResidualMerge": {"strength": 1.0, "protect_sharp": 0.0, "reduction": FIRST},
    }

    def run(node: str, **inputs: Any) -> Any:
        result = pack.nodes[node].execute(**{**defaults.get(node, {}), **inputs}).result
        return result[0] if len(result) == 1 else result

    return run


@pytest.fixture(scope="session")
def core(tiny_checkpoint: Any) -> Any:
    """The same networks, without any host."""
    return load_checkpoint(tiny_checkpoint)


def chain(call: Callable[..., Any], model: Any, photo: Tensor, **sampler: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Map, first guess, residual, result."""
    defocus_map, _ = call("RDDMDefocusMap", model=model, image=photo)
    guess = call("RDDMPreDeblur", model=model, image=photo, map=defocus_map)
    residual, _ = call("RDDMSampler", model=model, pre_deblurred=guess, map=defocus_map, **sampler)
    result = call("RDDMResidualMerge", original=photo, pre_deblurred=guess, residual=residual)
    return defocus_map, guess, residual, result


# ---------------------------------------------------------------- the same numbers as the core


def test_chain_equals_deblur(call: Callable[..., Any], model: Any, core: Any, photo: Tensor) -> None:
    defocus_map, guess, residual, result = chain(call, model, photo, seed=5, eta=0.5)
    settings = pipeline.DeblurSettings(seed=5, eta=0.5, working_size="full")
    expected = pipeline.deblur(core, photo.movedim(-1, 1), settings=settings)
    assert torch.equal(defocus_map, expected.defocus_map[:, 0])
    assert torch.equal(guess, expected.pre_deblurred.movedim(1, -1))
    assert torch.equal(residual, expected.residual)
    assert torch.equal(result, expected.image.movedim(1, -1))
    assert (result - photo).abs().mean() > 0.01  # or all of this would prove nothing


def test_batch_equals_single_pictures(call: Callable[..., Any], model: Any, photo: Tensor) -> None:
    whole = chain(call, model, photo, seed=3)[3]
    second = chain(call, model, photo[1:], seed=4)[3]
    assert torch.equal(whole[1:], second)


def test_pre_deblur_estimates_a_missing_map(call: Callable[..., Any], model: Any, photo: Tensor) -> None:
    defocus_map, guess, _, _ = chain(call, model, photo)
    assert torch.equal(call("RDDMPreDeblur", model=model, image=photo), guess)
    assert not torch.equal(call("RDDMPreDeblur", model=model, image=photo, map=1 - defocus_map), guess)


def test_a_painted_map_counts(call: Callable[..., Any], model: Any, core: Any, photo: Tensor, painted: Tensor) -> None:
    guess = call("RDDMPreDeblur", model=model, image=photo, map=painted)
    expected = pipeline.pre_deblur(core, photo.movedim(-1, 1), painted[:, None])
    assert torch.equal(guess, expected.movedim(1, -1))
    residual, _ = call("RDDMSampler", model=model, pre_deblurred=guess, map=painted)
    assert torch.equal(residual, pipeline.sample_residual(core, expected, painted[:, None]))
    flat = call("RDDMSampler", model=model, pre_deblurred=guess, map=painted[0])[0]  # some nodes give [H, W]
    assert torch.equal(flat, residual)


def test_samples_and_preview(call: Callable[..., Any], model: Any, photo: Tensor, painted: Tensor) -> None:
    inputs = {"model": model, "pre_deblurred": photo, "map": painted}
    residual, preview = call("RDDMSampler", samples=3, **inputs)
    assert residual.shape == (2, 3, 3, 70, 90) and residual.dtype == torch.float32
    assert preview.shape == (6, 70, 90, 3) and preview.min() >= 0 and preview.max() <= 1
    assert torch.equal(preview[4], (photo[1] + residual[1, 1].movedim(0, -1)).clamp(0, 1))
    assert not torch.equal(residual[:, 0], residual[:, 1])
    assert torch.equal(residual[:, :1], call("RDDMSampler", **inputs)[0])
    assert not torch.equal(residual[:, :1], call("RDDMSampler", seed=9, **inputs)[0])
    assert not torch.equal(residual[:, :1], call("RDDMSampler", steps=4, **inputs)[0])


def test_the_largest_seed(call: Callable[..., Any], model: Any, photo: Tensor, painted: Tensor) -> None:
    residual, _ = call("RDDMSampler", model=model, pre_deblurred=photo, map=painted, seed=2**64 - 1)
    assert torch.isfinite(residual).all()


def test_tiling(
    call: Callable[..., Any], model: Any, submodule: Submodule, monkeypatch: pytest.MonkeyPatch, painted: Tensor
) -> None:
    """Each choice reaches the core as the tile that it means."""
    core_pipeline, seen = submodule("rddm_core.pipeline"), []
    original = core_pipeline.sample_residual

    def watched(*args: Any, tile: int | None, **options: Any) -> Tensor:
        seen.append(tile)
        return original(*args, tile=tile, **options)

    monkeypatch.setattr(core_pipeline, "sample_residual", watched)
    picture = torch.rand(1, 200, 150, 3, generator=torch.Generator().manual_seed(0))
    inputs = {"model": model, "pre_deblurred": picture, "map": painted, "steps": 1}
    for tiling in ({"tiling": "off"}, AUTO, {"tiling": "manual", "tile": 128}):
        call("RDDMSampler", tiling=tiling, **inputs)
    monkeypatch.setattr(submodule("rddm_core.memory"), "AUTO_TILE", 128)
    call("RDDMSampler", tiling=AUTO, **inputs)
    assert seen == [None, None, 128, 128]


class SeededNoise:
    """As core's RandomNoise."""

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.shape = shape

    def generate_noise(self, input_latent: dict[str, Tensor]) -> Tensor:
        shape = self.shape or input_latent["samples"].shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(8))


def test_noise_from_the_host(call: Callable[..., Any], model: Any, core: Any, photo: Tensor, painted: Tensor) -> None:
    inputs = {"model": model, "pre_deblurred": photo, "map": painted}
    residual, _ = call("RDDMSampler", samples=2, noise=SeededNoise(), **inputs)
    noise = SeededNoise((4, 3, 70, 90)).generate_noise({}).reshape(2, 2, 3, 70, 90)
    expected = pipeline.sample_residual(core, photo.movedim(-1, 1), painted[:, None], samples=2, noise=noise)
    assert torch.equal(residual, expected)
    with pytest.raises(ValueError, match="RandomNoise"):
        call("RDDMSampler", noise=SeededNoise((2, 16, 8, 8)), **inputs)


# ---------------------------------------------------------------- layout


def test_alpha_is_kept_everywhere(call: Callable[..., Any], model: Any, photo: Tensor) -> None:
    alpha = torch.linspace(0, 1, 2 * 70 * 90).reshape(2, 70, 90, 1)
    with_alpha = torch.cat((photo, alpha), dim=-1)
    plain = chain(call, model, photo)
    mixed = chain(call, model, with_alpha)
    assert torch.equal(mixed[0], plain[0])
    for with_, without in zip((mixed[1], mixed[3]), (plain[1], plain[3]), strict=True):
        assert torch.equal(with_[..., :3], without) and torch.equal(with_[..., 3:], alpha)
    _, preview = call("RDDMSampler", model=model, pre_deblurred=mixed[1], map=mixed[0], samples=2)
    assert torch.equal(preview[..., 3:], alpha.repeat_interleave(2, dim=0))


def test_half_precision_between_nodes(
    call: Callable[..., Any], model: Any, photo: Tensor, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = chain(call, model, photo)[3]
    monkeypatch.setitem(fake_host.management.intermediates, "dtype", torch.float16)
    defocus_map, guess, residual, result = chain(call, model, photo.half())
    assert {defocus_map.dtype, guess.dtype, result.dtype} == {torch.float16} and residual.dtype == torch.float32
    assert (result.float() - exact).abs().max() < 2 / 255
    untouched = call("RDDMResidualMerge", original=photo.half(), pre_deblurred=guess, residual=residual, strength=0.0)
    assert torch.equal(untouched, photo.half())


def test_slight_overshoot_is_clipped(call: Callable[..., Any], model: Any, photo: Tensor) -> None:
    overshot = photo * 1.1 - 0.05
    assert overshot.min() < 0 and overshot.max() > 1
    clipped = chain(call, model, overshot.clamp(0, 1))
    for result, expected in zip(chain(call, model, overshot), clipped, strict=True):
        assert torch.equal(result, expected)


def test_coloured_map(call: Callable[..., Any], model: Any, photo: Tensor, submodule: Submodule) -> None:
    defocus_map, picture = call("RDDMDefocusMap", model=model, image=photo)
    colours = submodule("nodes.colours")
    assert picture.shape[0] == 2 and picture.shape[2:] == (90, 3) and picture.shape[1] > 70
    assert picture.min() >= 0 and picture.max() <= 1
    assert torch.equal(picture[:, :70], colours.colourise(defocus_map[:, None]).movedim(1, -1))
    ramp = colours.colourise(torch.linspace(0, 1, 101).reshape(1, 1, 1, 101))[0, :, 0]
    luma = torch.tensor([0.299, 0.587, 0.114]) @ ramp
    assert (luma.diff() > 0).all()  # readable without colours
    assert torch.allclose(ramp[:, 0], torch.tensor(colours.COLOURS[0]))
    assert torch.allclose(ramp[:, -1], torch.tensor(colours.COLOURS[-1]))


def test_the_scale_runs_from_in_focus_to_out_of_focus(submodule: Submodule) -> None:
    colours = submodule("nodes.colours")
    bar = colours.coloured(torch.zeros(1, 1, 2, 300))[0, :, 2]  # the first row below the map
    assert torch.allclose(bar[:, 0], torch.tensor(colours.COLOURS[0]))
    assert torch.allclose(bar[:, -1], torch.tensor(colours.COLOURS[-1]))


@pytest.mark.parametrize("width", range(240, 1200, 16))
def test_maps_in_colours_of_even_size_stay_even(submodule: Submodule, width: int) -> None:
    """Videos must be."""
    assert submodule("nodes.colours").coloured(torch.zeros(1, 1, 2, width)).shape[2] % 2 == 0


def test_the_picture_for_the_mask_editor(
    pack: SimpleNamespace, model: Any, photo: Tensor, submodule: Submodule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first photograph, the map its transparency; small, because every run saves one."""
    module, shown = submodule("nodes.defocus_map"), []

    def preview(image: Tensor, cls: Any) -> SimpleNamespace:
        shown.append(image)
        return SimpleNamespace(values=["a file"])

    monkeypatch.setattr(module.ui, "PreviewImage", preview)
    output = pack.nodes["RDDMDefocusMap"].execute(model=model, image=photo)
    assert output.ui == {"rddm_paintable": ["a file"], "rddm_pictures": [2]}
    assert torch.equal(shown[0][..., :3], photo[:1])
    assert torch.allclose(1 - shown[0][..., 3], output.result[0][:1])
    monkeypatch.setattr(module, "PAINTED_SIZE", 45)
    pack.nodes["RDDMDefocusMap"].execute(model=model, image=photo)
    assert shown[1].shape == (1, 35, 45, 4)
    halved = photo[:1].unflatten(2, (45, 2)).unflatten(1, (35, 2)).mean(dim=(2, 4))
    assert (shown[1][..., :3] - halved).abs().mean() < 0.1


def test_one_pixel(call: Callable[..., Any], model: Any) -> None:
    for result in chain(call, model, torch.full((1, 1, 1, 3), 0.5)):
        assert torch.isfinite(result).all()


# ---------------------------------------------------------------- merging


@pytest.fixture(scope="module")
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "original": torch.rand(2, 20, 30, 3, generator=generator),
        "pre_deblurred": torch.rand(2, 20, 30, 3, generator=generator),
        "residual": torch.randn(2, 4, 3, 20, 30, generator=generator) * 0.1,
    }


def test_nothing_changes_at_strength_or_mask_zero(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    assert torch.equal(call("RDDMResidualMerge", **parts, strength=0.0), parts["original"])
    mask = torch.zeros(1, 20, 30)
    assert torch.equal(call("RDDMResidualMerge", **parts, mask=mask), parts["original"])
    mask[:, :, 15:] = 1
    half = call("RDDMResidualMerge", **parts, mask=mask)
    assert torch.equal(half[:, :, :15], parts["original"][:, :, :15])
    assert torch.equal(half[:, :, 15:], call("RDDMResidualMerge", **parts)[:, :, 15:])


def test_strength(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    full = parts["pre_deblurred"] + parts["residual"][:, 0].movedim(1, -1)
    for strength in (0.3, 1.0, 1.7):
        expected = (parts["original"] + strength * (full - parts["original"])).clamp(0, 1)
        assert torch.allclose(call("RDDMResidualMerge", **parts, strength=strength), expected, atol=1e-6)


def test_float_until_the_end(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    result = call("RDDMResidualMerge", **parts)
    assert not torch.allclose(result * 255, (result * 255).round(), atol=1e-3)


def test_protect_sharp(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    defocus_map = torch.linspace(0, 1, 30).expand(1, 20, 30)
    full = call("RDDMResidualMerge", **parts, map=defocus_map)
    assert torch.equal(full, call("RDDMResidualMerge", **parts))  # at 0 the map is not read
    for protect, at_sharp in ((1.0, 0.0), (0.4, 0.6)):
        merged = call("RDDMResidualMerge", **parts, map=defocus_map, protect_sharp=protect)
        expected = call("RDDMResidualMerge", **parts, strength=at_sharp)
        assert torch.allclose(merged[:, :, 0], expected[:, :, 0], atol=1e-6)
        assert torch.allclose(merged[:, :, -1], full[:, :, -1], atol=1e-6)
    mask = torch.zeros(2, 10, 15)  # of another size than the map
    mask[:, :5] = 1
    both = call("RDDMResidualMerge", **parts, map=defocus_map, mask=mask, protect_sharp=1.0)
    assert torch.equal(both[:, 15:], parts["original"][:, 15:])
    assert not torch.equal(both[:, :5], parts["original"][:, :5])
    with pytest.raises(ValueError, match="connect the defocus map"):
        call("RDDMResidualMerge", **parts, protect_sharp=0.5)


def test_a_map_of_another_size_protects(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    small = torch.zeros(1, 10, 15)
    small[..., 8:] = 1
    merged = call("RDDMResidualMerge", **parts, map=small, mask=torch.ones(1, 7, 5), protect_sharp=1.0)
    assert torch.equal(merged[:, :, :14], parts["original"][:, :, :14])
    assert torch.allclose(merged[:, :, 18:], call("RDDMResidualMerge", **parts)[:, :, 18:], atol=1e-6)


def test_every_picture_has_its_own_mask(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    mask = torch.stack((torch.zeros(20, 30), torch.ones(20, 30)))
    merged = call("RDDMResidualMerge", **parts, mask=mask)
    assert torch.equal(merged[0], parts["original"][0])
    assert torch.equal(merged[1], call("RDDMResidualMerge", **parts)[1])


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ({"reduction": "first"}, lambda r: r[:, 0]),
        ({"reduction": "index", "index": 2}, lambda r: r[:, 2]),
        ({"reduction": "mean"}, lambda r: r.mean(1)),
        ({"reduction": "median"}, lambda r: torch.quantile(r, 0.5, dim=1)),
    ],
)
def test_reduction(
    call: Callable[..., Any], parts: dict[str, Tensor], reduction: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    one = {**parts, "residual": expected(parts["residual"])[:, None]}
    merged = call("RDDMResidualMerge", **parts, reduction=reduction)
    assert torch.allclose(merged, call("RDDMResidualMerge", **one), atol=1e-6)
    others = call("RDDMResidualMerge", **{**parts, "residual": parts["residual"][:, 1:2]})
    assert not torch.allclose(merged, others, atol=1e-3)


def test_median_of_an_odd_number(submodule: Submodule, parts: dict[str, Tensor]) -> None:
    three = parts["residual"][:, :3]
    assert torch.equal(submodule("rddm_core.residuals").reduce_samples(three, "median"), three.median(dim=1).values)


def test_an_index_without_a_sample(call: Callable[..., Any], parts: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="only 4 samples"):
        call("RDDMResidualMerge", **parts, reduction={"reduction": "index", "index": 4})


# ---------------------------------------------------------------- inputs that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_deblurred": torch.rand(2, 20, 31, 3)}, "pre_deblurred is 31x20, but original is 30x20"),
        ({"residual": torch.rand(2, 1, 3, 19, 30)}, "residual is 30x19"),
        ({"pre_deblurred": torch.rand(1, 20, 30, 3)}, "pre_deblurred has 1 items, but there are 2 pictures"),
        ({"residual": torch.rand(3, 1, 3, 20, 30)}, "residual has 3 items"),
        ({"mask": torch.rand(3, 20, 30)}, "mask has 3 items, but there are 2 pictures"),
        ({"original": torch.rand(2, 20, 30, 1)}, "original must be pictures with 3 colour channels"),
        ({"original": torch.full((2, 20, 30, 3), torch.nan)}, "original contains invalid values"),
        ({"residual": torch.full((2, 1, 3, 20, 30), torch.inf)}, "residual contains invalid values"),
        ({"mask": torch.full((1, 20, 30), torch.nan)}, "mask contains invalid values"),
    ],
)
def test_merge_says_what_does_not_fit(
    call: Callable[..., Any], parts: dict[str, Tensor], change: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call("RDDMResidualMerge", **{**parts, **change})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_invalid_values_never_pass(call: Callable[..., Any], model: Any, photo: Tensor, bad: float) -> None:
    broken = photo.clone()
    broken[1, 3, 4, 0] = bad
    whole = torch.ones(1, 70, 90)
    with pytest.raises(ValueError, match="image contains invalid values"):
        call("RDDMDefocusMap", model=model, image=broken)
    with pytest.raises(ValueError, match="image contains invalid values"):
        call("RDDMPreDeblur", model=model, image=broken)
    with pytest.raises(ValueError, match="map contains invalid values"):
        call("RDDMPreDeblur", model=model, image=photo, map=whole * bad)
    with pytest.raises(ValueError, match="pre_deblurred contains invalid values"):
        call("RDDMSampler", model=model, pre_deblurred=broken, map=whole)


def test_maps_for_other_pictures(call: Callable[..., Any], model: Any, photo: Tensor) -> None:
    with pytest.raises(ValueError, match="map has 3 items, but there are 2 pictures"):
        call("RDDMPreDeblur", model=model, image=photo, map=torch.zeros(3, 70, 90))
    with pytest.raises(ValueError, match="map must be masks, not a tensor of the shape"):
        call("RDDMSampler", model=model, pre_deblurred=photo, map=torch.zeros(0, 70, 90))
