"""The nodes around the chain: one-node deblurring, classical methods, statistics, refocusing, figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from live_tensors import Peak
from torch import Tensor

from rddm_core import metrics, sharpness
from rddm_core.classical import deconvolve, edge_defocus_map
from rddm_core.refocus import Lens, refocus

FULL = {"working_size": "full"}
WIENER = {"method": "wiener", "noise": 0.01}


def deblur(pack: SimpleNamespace, model: Any, image: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    inputs = {"seed": 3, "steps": 2, "strength": 1.0, "working_size": FULL, **changes}
    return pack.nodes["RDDMDeblur"].execute(model=model, image=image, **inputs).result


def sample(pack: SimpleNamespace, model: Any, guess: Tensor, defocus_map: Tensor, **changes: Any) -> Tensor:
    inputs = {"seed": 3, "steps": 2, "eta": 0.0, "samples": 1, "tiling": {"tiling": "auto"}, **changes}
    return pack.nodes["RDDMSampler"].execute(model=model, pre_deblurred=guess, map=defocus_map, **inputs).result[0]


def test_deblur_gives_the_chains_pixels(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    defocus_map, _ = pack.nodes["RDDMDefocusMap"].execute(model=model, image=photo).result
    (guess,) = pack.nodes["RDDMPreDeblur"].execute(model=model, image=photo, map=defocus_map).result
    residual = sample(pack, model, guess, defocus_map)
    merge = {"strength": 1.0, "protect_sharp": 0.0, "reduction": {"reduction": "first"}}
    parts = {"original": photo, "pre_deblurred": guess, "residual": residual}
    (expected,) = pack.nodes["RDDMResidualMerge"].execute(**parts, **merge).result
    image, seen = deblur(pack, model, photo)
    assert torch.equal(image, expected) and torch.equal(seen, defocus_map)
    assert (image - photo).abs().mean() > 0.01


def test_deblur_keeps_alpha_and_what_the_mask_spares(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    with_alpha = torch.cat((photo, photo[..., :1] * 0.5), dim=-1)
    mask = torch.zeros(1, 70, 90)
    mask[:, :, 45:] = 1
    image, _ = deblur(pack, model, with_alpha, mask=mask)
    assert torch.equal(image[..., 3], with_alpha[..., 3])
    assert torch.equal(image[:, :, :45, :3], photo[:, :, :45])
    assert not torch.equal(image[:, :, 45:, :3], photo[:, :, 45:])


def test_every_picture_is_deblurred_where_its_own_mask_is(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    mask = torch.stack((torch.zeros(70, 90), torch.ones(70, 90)))
    image, _ = deblur(pack, model, photo, mask=mask, steps=1)
    assert torch.equal(image[0], photo[0]) and not torch.equal(image[1], photo[1])


def test_shared_noise_keeps_equal_frames_equal(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    frames = photo[:1].expand(2, -1, -1, -1)
    own, _ = deblur(pack, model, frames)
    shared, _ = deblur(pack, model, frames, batch_noise="shared")
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], own[0]) and not torch.equal(own[0], own[1])
    flat = torch.ones(1, 70, 90)
    residual = sample(pack, model, frames, flat, batch_noise="shared")
    assert torch.equal(residual[0], residual[1])


def test_frames_of_shared_noise_share_their_working_size(
    pack: SimpleNamespace, model: Any, submodule: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, maps = torch.rand(2, 30, 1200, 3), torch.stack((torch.zeros(30, 1200), torch.ones(30, 1200)))
    core, sizes = submodule("rddm_core.pipeline"), []
    original = core.pre_deblur

    def pre_deblur(networks: Any, picture: Tensor, *args: Any, **options: Any) -> Tensor:
        sizes.append(picture.shape[-1])
        return original(networks, picture, *args, **options)

    monkeypatch.setattr(core, "pre_deblur", pre_deblur)
    for batch_noise in ("own", "shared"):
        deblur(pack, model, frames, map=maps, working_size={"working_size": "auto"}, batch_noise=batch_noise)
    assert sizes[0] == 1200 and len(set(sizes[1:])) == 1 and sizes[1] < 1200


def test_schedule_matters_from_two_steps(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    flat = torch.ones(1, 70, 90)
    for steps, same in ((1, True), (2, False)):
        uniform, quadratic = (
            sample(pack, model, photo[:1], flat, steps=steps, schedule=schedule)
            for schedule in ("uniform", "quadratic")
        )
        assert torch.equal(uniform, quadratic) is same


def test_of_an_example_the_second_picture_is_the_sharp_one(pack: SimpleNamespace) -> None:
    pictures = pack.nodes["RDDMExamplePhoto"].execute(name="sign").result
    blurred, sharp = (sharpness.tenengrad(image[0, 200:500, 300:700].movedim(-1, 0)) for image in pictures)
    assert sharp > 1.5 * blurred


def test_example_photos(pack: SimpleNamespace) -> None:
    blurred, sharp = pack.nodes["RDDMExamplePhoto"].execute(name="sign").result
    assert blurred.shape == sharp.shape == (1, 768, 1024, 3) and not torch.equal(blurred, sharp)
    with pytest.raises(ValueError, match="choose one of market, sign"):
        pack.nodes["RDDMExamplePhoto"].execute(name="../sign")


def test_statistics(pack: SimpleNamespace) -> None:
    residual = torch.zeros(1, 2, 3, 4, 40)
    residual[0, 0, :, :, :20] = 0.04  # two samples 0.04 apart: standard deviation 0.04 / sqrt(2)
    mean, uncertainty, coloured = pack.nodes["RDDMResidualStatistics"].execute(residual=residual, full_scale=0.1).result
    assert mean.shape == (1, 1, 3, 4, 40) and torch.allclose(mean[..., :20], torch.tensor(0.02))
    assert torch.allclose(uncertainty[..., :20], torch.tensor(0.4 / 2**0.5)) and not uncertainty[..., 20:].any()
    assert coloured.shape[1] > 4
    with pytest.raises(ValueError, match="raise samples in RDDM Sampler"):
        pack.nodes["RDDMResidualStatistics"].execute(residual=residual[:, :1], full_scale=0.1)


def test_statistics_are_coloured_by_the_uncertainty(
    pack: SimpleNamespace, submodule: Callable[[str], ModuleType]
) -> None:
    residual = torch.zeros(1, 2, 3, 4, 40)
    residual[0, 0, :, :, :20] = 0.04
    _, uncertainty, shown = pack.nodes["RDDMResidualStatistics"].execute(residual=residual, full_scale=0.1).result
    assert torch.equal(shown[:, :4], submodule("nodes.colours").colourise(uncertainty[:, None]).movedim(1, -1))


def test_residual_preview_tells_signs_apart(pack: SimpleNamespace) -> None:
    residual = torch.tensor([-0.2, 0.0, 0.2]).expand(1, 2, 3, 4, 3)
    (shown,) = pack.nodes["RDDMResidualPreview"].execute(residual=residual, gain=5.0).result
    darker, same, brighter = shown[0, 0]
    assert len(shown) == 2 and darker[2] > darker[0] and brighter[0] > brighter[2]
    assert torch.allclose(same, torch.tensor(0.5))


def test_the_gain_sets_the_ends_of_the_preview_s_scale(
    pack: SimpleNamespace, submodule: Callable[[str], ModuleType]
) -> None:
    darkest, _, same, _, brightest = submodule("nodes.colours").SIGNED_COLOURS
    residual = torch.tensor([-0.2, 0.0, 0.2]).expand(1, 1, 3, 4, 3)
    (shown,) = pack.nodes["RDDMResidualPreview"].execute(residual=residual, gain=5.0).result
    assert torch.allclose(shown[0, 0], torch.tensor((darkest, same, brightest)), atol=1e-5)


def test_previews_of_all_samples_of_the_first_picture_come_first(pack: SimpleNamespace) -> None:
    residual = torch.rand(2, 3, 3, 4, 40, generator=torch.Generator().manual_seed(0)) - 0.5
    execute = pack.nodes["RDDMResidualPreview"].execute
    (both,), (second,) = (execute(residual=given, gain=1.0).result for given in (residual, residual[1:]))
    assert torch.equal(both[3:], second)


@pytest.mark.parametrize("bright_is", ["near", "far"])
def test_every_picture_is_refocused_by_its_depth_and_the_lens(pack: SimpleNamespace, bright_is: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image, depth = torch.rand(2, 24, 32, 3, generator=generator), torch.rand(2, 24, 32, generator=generator)
    options = {"focus": 0.3, "aperture": 5.0, "blades": 6, "bright_is": bright_is}
    found, seen = pack.nodes["RDDMRenderDefocus"].execute(image=image, depth=depth, **options).result
    lens = Lens(0.3, 5.0, 6, near_is_bright=bright_is == "near")
    wanted, wanted_map = refocus(image.movedim(-1, 1), depth[:, None], lens)
    assert torch.equal(found, wanted.movedim(1, -1)) and torch.equal(seen, wanted_map[:, 0])


def test_refocus_blurs_what_is_out_of_focus(pack: SimpleNamespace) -> None:
    image = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    depth = torch.zeros(1, 40, 60)
    depth[..., 30:] = 1
    lens = {"focus": 1.0, "aperture": 4.0, "blades": 0, "bright_is": "near"}
    render = pack.nodes["RDDMRenderDefocus"]
    result, defocus_map = render.execute(image=image, depth=depth, **lens).result
    assert torch.allclose(result[:, :, 40:], image[:, :, 40:], atol=1e-4)
    assert result[:, :, :20].std() < 0.5 * image[:, :, :20].std()
    assert not defocus_map[..., 30:].any() and (defocus_map[..., :30] > 0.8).all()
    as_picture = depth[..., None].expand(-1, -1, -1, 3)
    assert torch.allclose(render.execute(image=image, depth=as_picture, **lens).result[0], result, atol=1e-6)


def test_deconvolve_and_edge_map(pack: SimpleNamespace, photo: Tensor) -> None:
    defocus_map, coloured = pack.nodes["RDDMEdgeDefocusMap"].execute(image=photo).result
    assert defocus_map.shape == (2, 70, 90) and coloured.shape[1] > 70
    node = pack.nodes["RDDMDeconvolve"]
    none = node.execute(image=photo, map=torch.zeros(1, 9, 9), max_radius=8.0, method=WIENER).result[0]
    some = node.execute(image=photo, map=torch.full((1, 9, 9), 0.6), max_radius=8.0, method=WIENER).result[0]
    assert torch.equal(none, photo) and not torch.equal(some, photo)


@pytest.mark.parametrize("max_radius", [1.0, 8.0])
def test_every_picture_is_deconvolved_by_its_map_and_radius(
    pack: SimpleNamespace, photo: Tensor, max_radius: float
) -> None:
    maps = torch.stack((torch.zeros(9, 9), torch.full((9, 9), 0.6)))
    inputs = {"image": photo, "map": maps, "max_radius": max_radius, "method": WIENER}
    (found,) = pack.nodes["RDDMDeconvolve"].execute(**inputs).result
    wanted = deconvolve(photo.movedim(-1, 1), maps[:, None], max_radius=max_radius, noise=WIENER["noise"])
    assert torch.equal(found, wanted.movedim(1, -1))


def test_the_map_of_edges_is_the_core_s(pack: SimpleNamespace, photo: Tensor) -> None:
    defocus_map, _ = pack.nodes["RDDMEdgeDefocusMap"].execute(image=photo).result
    assert torch.equal(defocus_map, edge_defocus_map(photo.movedim(-1, 1))[:, 0])


def test_quality_is_that_of_the_picture_against_the_reference(pack: SimpleNamespace, photo: Tensor) -> None:
    image, reference = photo.movedim(-1, 1)
    _, values = pack.nodes["RDDMImageQuality"].execute(image=photo[:1], reference=photo[1:]).result
    assert json.loads(values) == [
        {
            "psnr": metrics.psnr_8bit(image, reference),
            "ssim": metrics.ssim(image, reference),
            "mae": metrics.mae(image, reference),
            "haarpsi": metrics.haarpsi(image, reference),
            "tenengrad": sharpness.tenengrad(image),
            "laplacian_variance": sharpness.laplacian_variance(image),
            "reference_tenengrad": sharpness.tenengrad(reference),
        }
    ]


def test_the_line_to_read_says_what_the_values_say(pack: SimpleNamespace, photo: Tensor) -> None:
    text, values = pack.nodes["RDDMImageQuality"].execute(image=photo[:1], reference=photo[1:]).result
    (row,) = json.loads(values)
    for label, key, decimals in (
        ("PSNR", "psnr", 2),
        ("SSIM", "ssim", 4),
        ("MAE", "mae", 4),
        ("HaarPSI", "haarpsi", 4),
    ):
        assert f"{label} {row[key]:.{decimals}f}" in text
    assert f"sharpness {row['tenengrad']:.1f} (Tenengrad)" in text


def test_quality(pack: SimpleNamespace, photo: Tensor) -> None:
    node = pack.nodes["RDDMImageQuality"]
    text, values = node.execute(image=photo, reference=photo).result
    rows = json.loads(values)
    assert len(rows) == len(text.splitlines()) == 2 and rows[0]["psnr"] == 100 and rows[1]["ssim"] == pytest.approx(1)
    assert set(json.loads(node.execute(image=photo).result[1])[0]) == {"tenengrad", "laplacian_variance"}
    with pytest.raises(ValueError, match="reference is 80x70, but image is 90x70"):
        node.execute(image=photo, reference=photo[:, :, :80])


def test_results_that_are_not_finite_are_reported(pack: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="residual contains invalid values"):
        pack.nodes["RDDMResidualPreview"].execute(residual=torch.full((1, 1, 3, 4, 4), torch.nan), gain=1.0)


# ---------------------------------------------------------------- the same for every node around the chain


def inputs_for(model: Any, image: Tensor) -> dict[str, dict[str, Any]]:
    """What every node that takes and gives pictures needs, with a mask of another size."""
    small = torch.linspace(0, 1, 30 * 40).reshape(1, 30, 40)
    return {
        "RDDMDeblur": {"model": model, "image": image, "map": small, "seed": 3, "steps": 1, "strength": 1.0}
        | {"working_size": FULL, "batch_noise": "shared"},
        "RDDMDeconvolve": {"image": image, "map": small, "max_radius": 4.0, "method": WIENER},
        "RDDMRenderDefocus": {"image": image, "depth": small, "focus": 0.0, "aperture": 5.0, "blades": 5}
        | {"bright_is": "far"},
    }


PICTURES = ("RDDMDeblur", "RDDMDeconvolve", "RDDMRenderDefocus")


@pytest.mark.parametrize("name", PICTURES)
def test_batch_equals_single_and_alpha_is_kept(pack: SimpleNamespace, model: Any, photo: Tensor, name: str) -> None:
    alpha = torch.linspace(0, 1, 2 * 70 * 90).reshape(2, 70, 90, 1)
    execute = pack.nodes[name].execute
    both = execute(**inputs_for(model, torch.cat((photo, alpha), dim=-1))[name]).result[0]
    assert both.shape == (2, 70, 90, 4) and torch.equal(both[..., 3:], alpha)
    assert not torch.equal(both[..., :3], photo)
    for b in range(2):
        one = execute(**inputs_for(model, photo[b : b + 1])[name]).result[0]
        assert torch.allclose(both[b : b + 1, ..., :3], one, atol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_inputs_are_left_as_they_were(pack: SimpleNamespace, model: Any, photo: Tensor, name: str) -> None:
    """What the host hands in is in its cache, and other nodes get the same."""
    inputs = inputs_for(model, photo)[name]
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
    pack.nodes[name].execute(**inputs)
    assert all(torch.equal(inputs[key], value) for key, value in before.items())


@pytest.mark.parametrize("empty", [True, False])
def test_a_mask_of_nothing_is_told(
    pack: SimpleNamespace, model: Any, photo: Tensor, caplog: pytest.LogCaptureFixture, empty: bool
) -> None:
    """Load Image gives such a mask for every photograph without transparency."""
    mask = torch.full((1, 64, 64), 0.0 if empty else 0.1)
    values = {"model": model, "image": photo, "seed": 1, "steps": 1, "strength": 1.0, "mask": mask}
    result = pack.nodes["RDDMDeblur"].execute(**values, working_size={"working_size": "auto"})
    assert torch.equal(result.result[0], photo) == empty
    assert ("the mask is 0 everywhere, so nothing is changed" in caplog.text) == empty
    assert result.ui == ({"rddm_notices": ["emptyMask"]} if empty else None)


@pytest.mark.parametrize("node", ["RDDMDeblur", "RDDMResidualMerge"])
@pytest.mark.parametrize(("strength", "mask", "share"), [(0.5, None, 0.5), (1.0, 0.25, 0.25), (0.5, 0.5, 0.25)])
def test_strength_and_soft_masks_weigh_the_change(
    pack: SimpleNamespace, model: Any, photo: Tensor, node: str, strength: float, mask: float | None, share: float
) -> None:
    def run(strength: float, mask: Tensor | None) -> Tensor:
        if node == "RDDMDeblur":
            return deblur(pack, model, photo, strength=strength, mask=mask)[0]
        residual = (0.2 * (0.5 - photo)).movedim(-1, 1)[:, None]  # stays within 0..1
        parts = {"original": photo, "pre_deblurred": photo, "residual": residual, "mask": mask}
        merge = {"strength": strength, "protect_sharp": 0.0, "reduction": {"reduction": "first"}}
        return pack.nodes[node].execute(**parts, **merge).result[0]

    whole, some = run(1.0, None), run(strength, None if mask is None else torch.full((1, 8, 8), mask))
    inside = (whole > 0) & (whole < 1)  # where nothing was clipped
    assert inside.any() and not torch.equal(whole, photo)
    assert torch.allclose(some[inside], torch.lerp(photo, whole, share)[inside], atol=1e-5)


@pytest.mark.parametrize("name", ["RDDMDeblur", "RDDMPreDeblur", "RDDMSampler", "RDDMResidualMerge", "RDDMDeconvolve"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_map_of_nothing_is_told(
    pack: SimpleNamespace, model: Any, photo: Tensor, caplog: pytest.LogCaptureFixture, name: str, empty: bool
) -> None:
    sampling = {"seed": 3, "steps": 1, "eta": 0.0, "samples": 1, "tiling": {"tiling": "auto"}}
    inputs = inputs_for(model, photo) | {
        "RDDMPreDeblur": {"model": model, "image": photo},
        "RDDMSampler": {"model": model, "pre_deblurred": photo} | sampling,
        "RDDMResidualMerge": {
            "original": photo,
            "pre_deblurred": photo,
            "residual": torch.zeros(len(photo), 1, 3, *photo.shape[1:3]),
        }
        | {"strength": 1.0, "protect_sharp": 1.0, "reduction": {"reduction": "first"}},
    }
    painted = torch.full((1, 64, 64), 0.0 if empty else 0.1)
    result = pack.nodes[name].execute(**inputs[name] | {"map": painted})
    assert ("the map is 0 everywhere" in caplog.text) == empty
    assert result.ui == ({"rddm_notices": ["emptyMap"]} if empty else None)


def test_a_film_in_colours_is_held_once(submodule: Any) -> None:
    colours = submodule("nodes.colours")
    peaks, checks = [], []
    for count in (1, 2, 12):  # the first fills caches
        maps = torch.rand(count, 1, 40, 64, generator=torch.Generator().manual_seed(0))
        with Peak([maps]) as peak:
            shown = colours.coloured(maps, check=lambda: checks.append(1))
        peaks.append(peak.peak)
    assert peaks[2] - peaks[1] == 10 * shown[0].nbytes and len(checks) == 1 + 2 + 12


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_inputs_are_named(pack: SimpleNamespace, model: Any, photo: Tensor, name: str, bad: float) -> None:
    execute = pack.nodes[name].execute
    good = inputs_for(model, photo)[name]
    where = "depth" if "depth" in good else "map"
    for changes, message in (
        ({"image": photo * bad}, "image contains invalid values"),
        ({where: good[where] * bad}, f"{where} contains invalid values"),
        ({where: good[where].expand(3, -1, -1)}, f"{where} has 3 items, but there are 2 pictures: connect one for all"),
        ({"image": photo[..., :2]}, "image must be pictures with 3 colour channels"),
        ({"image": photo[:0]}, "image is an empty batch: the node that it comes from gave no picture"),
    ):
        with pytest.raises(ValueError, match=message):
            execute(**{**good, **changes})


def test_deblur_leaves_the_original_bit_for_bit(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    none = torch.zeros(1, 7, 5)
    assert torch.equal(deblur(pack, model, photo, steps=1, strength=0.0)[0], photo)
    assert torch.equal(deblur(pack, model, photo, steps=1, mask=none)[0], photo)
    assert not torch.equal(deblur(pack, model, photo, steps=1, mask=none + 0.1)[0], photo)


def test_deblur_works_at_a_smaller_size(pack: SimpleNamespace, model: Any) -> None:
    """The networks see the size that is set, the result keeps that of the photograph."""
    wide = torch.rand(1, 64, 400, 3, generator=torch.Generator().manual_seed(2))
    manual = {"working_size": "manual", "size": 256}
    image, defocus_map = deblur(pack, model, wide, steps=1, working_size=manual)
    assert image.shape == wide.shape and defocus_map.shape == (1, 64, 400)
    assert not torch.equal(image, deblur(pack, model, wide, steps=1)[0])


def test_own_and_shared_noise_from_the_host(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    """RandomNoise draws for a whole batch: shared takes one draw for all of it."""

    class RandomNoise:
        def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
            return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(4))

    frames, flat = photo[:1].expand(2, -1, -1, -1), torch.ones(1, 70, 90)
    own, shared = (
        sample(pack, model, frames, flat, noise=RandomNoise(), samples=2, batch_noise=choice)
        for choice in ("own", "shared")
    )
    assert torch.equal(shared[0], shared[1]) and not torch.equal(shared[0, 0], shared[0, 1])
    assert not torch.equal(own[0], own[1])


def test_seeds_of_a_batch(submodule: Callable[[str], ModuleType]) -> None:
    layout = submodule("nodes.layout")
    assert layout.seeds(5, 3, "own") == (5, 6, 7) and layout.seeds(5, 3, "shared") == (5, 5, 5)


def test_mean_of_samples_merges_as_the_mean(pack: SimpleNamespace, photo: Tensor) -> None:
    residual = torch.rand(2, 3, 3, 70, 90, generator=torch.Generator().manual_seed(5)) - 0.5
    mean = pack.nodes["RDDMResidualStatistics"].execute(residual=residual, full_scale=0.1).result[0]
    merge = pack.nodes["RDDMResidualMerge"].execute
    parts = {"original": photo, "pre_deblurred": photo, "strength": 1.0, "protect_sharp": 0.0}
    by_node = merge(residual=mean, reduction={"reduction": "first"}, **parts).result[0]
    assert torch.equal(by_node, merge(residual=residual, reduction={"reduction": "mean"}, **parts).result[0])


@pytest.mark.parametrize(
    ("node", "options"), [("RDDMResidualPreview", {"gain": 8.0}), ("RDDMResidualStatistics", {"full_scale": 0.1})]
)
@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (torch.full((1, 2, 3, 4, 4), torch.inf), "residual contains invalid values"),
        (torch.zeros(1, 4, 4, 3), "residual must come from RDDM Sampler"),
    ],
)
def test_what_is_no_residual(
    pack: SimpleNamespace, node: str, options: dict[str, float], residual: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack.nodes[node].execute(residual=residual, **options)


def test_deconvolution_methods_differ(pack: SimpleNamespace, photo: Tensor) -> None:
    def run(**method: Any) -> Tensor:
        flat = torch.full((1, 9, 9), 0.6)
        return pack.nodes["RDDMDeconvolve"].execute(image=photo[:1], map=flat, max_radius=8.0, method=method).result[0]

    wiener, smooth = run(**WIENER), run(method="wiener", noise=0.5)
    few, many = (run(method="richardson_lucy", iterations=n) for n in (1, 12))

    def detail(image: Tensor) -> float:
        return float(image.diff(dim=2).abs().mean())

    assert detail(wiener) > detail(smooth) and detail(many) > detail(few)


def test_quality_of_other_counts_and_tiny_pictures(pack: SimpleNamespace, photo: Tensor) -> None:
    execute = pack.nodes["RDDMImageQuality"].execute
    one_for_all = json.loads(execute(image=photo, reference=photo[1:]).result[1])
    assert one_for_all[1]["psnr"] == 100 > one_for_all[0]["psnr"]
    single = execute(image=photo[:1], reference=photo[1:])
    assert json.loads(single.result[1]) == one_for_all[:1] and single.result[0].startswith("PSNR ")
    with pytest.raises(ValueError, match="reference has 3 items, but there are 2 pictures"):
        execute(image=photo, reference=torch.cat((photo, photo[:1])))
    with pytest.raises(ValueError, match="at least 11 pixels a side, the picture has 10x70"):
        execute(image=photo[:, :, :10], reference=photo[:, :, :10])
    with pytest.raises(ValueError, match="image contains invalid values"):
        execute(image=photo * torch.nan)


def test_example_photos_are_those_in_the_folder(pack: SimpleNamespace) -> None:
    _, options = pack.nodes["RDDMExamplePhoto"].define_schema().object_info()["input"]["required"]["name"]
    assert options["options"] == ["market", "sign"] and options["default"] == "sign"


# ---------------------------------------------------------------- the host's manners


@pytest.mark.parametrize("name", [*PICTURES, "RDDMEdgeDefocusMap", "RDDMImageQuality"])
def test_interrupt_and_progress(
    pack: SimpleNamespace,
    model: Any,
    photo: Tensor,
    fake_host: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    inputs = inputs_for(model, photo).get(name, {"image": photo})
    pack.nodes[name].execute(**inputs)
    done = [update[0] / update[1] for update in fake_host.utils.updates]
    assert len(done) >= 2 and done == sorted(done) and done[-1] == 1
    monkeypatch.setattr(fake_host.management, "interrupt_after", 0)
    with pytest.raises(fake_host.management.InterruptProcessingException):
        pack.nodes[name].execute(**inputs)


def test_deblur_tries_smaller_tiles_where_memory_runs_out(
    pack: SimpleNamespace, model: Any, submodule: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, tried = submodule("rddm_core.pipeline"), []
    original = core.deblur

    def limited(*args: Any, settings: Any, **options: Any) -> Any:
        tried.append(settings.tile)
        if settings.tile is None:
            raise torch.OutOfMemoryError("out of memory")
        return original(*args, settings=settings, **options)

    monkeypatch.setattr(core, "deblur", limited)
    wide = torch.rand(1, 64, 400, 3, generator=torch.Generator().manual_seed(2))
    image, _ = deblur(pack, model, wide, steps=1)
    assert tried == [None, 200] and image.shape == wide.shape
