"""The nodes around the chain: one-node deblurring, classical methods, statistics, refocusing, figures."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_shared_noise_keeps_equal_frames_equal(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    frames = photo[:1].expand(2, -1, -1, -1)
    own, _ = deblur(pack, model, frames)
    shared, _ = deblur(pack, model, frames, batch_noise="shared")
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], own[0]) and not torch.equal(own[0], own[1])
    flat = torch.ones(1, 70, 90)
    residual = sample(pack, model, frames, flat, batch_noise="shared")
    assert torch.equal(residual[0], residual[1])


def test_schedule_matters_from_two_steps(pack: SimpleNamespace, model: Any, photo: Tensor) -> None:
    flat = torch.ones(1, 70, 90)
    for steps, same in ((1, True), (2, False)):
        uniform, quadratic = (
            sample(pack, model, photo[:1], flat, steps=steps, schedule=schedule)
            for schedule in ("uniform", "quadratic")
        )
        assert torch.equal(uniform, quadratic) is same


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


def test_residual_preview_tells_signs_apart(pack: SimpleNamespace) -> None:
    residual = torch.tensor([-0.2, 0.0, 0.2]).expand(1, 2, 3, 4, 3)
    (shown,) = pack.nodes["RDDMResidualPreview"].execute(residual=residual, gain=5.0).result
    darker, same, brighter = shown[0, 0]
    assert len(shown) == 2 and darker[2] > darker[0] and brighter[0] > brighter[2]
    assert torch.allclose(same, torch.tensor(0.5))


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
