"""Recipes, objectives, and short runs of the training loop on a miniature collection."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniature import flat, write_recipe
from PIL import Image

from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint, read_info
from rddm_core.config import DenoiserConfig, GuidanceConfig, config_to_dict, lite, nafnet, override, preset
from rddm_core.data.sources import MaskedPhoto, PhotoPair, photo_pairs
from rddm_core.data.stream import MixtureConfig, Sources, draw_sample
from rddm_core.data.synthetic import RenderConfig
from rddm_core.diffusion import make_alpha_bars, q_sample
from rddm_core.evaluation.rows import peer_method
from rddm_core.networks.deformable import DeformableConv
from rddm_core.networks.model import RDDM
from rddm_core.optics import scale_map
from rddm_core.pipeline import estimate_defocus_map, pre_deblur
from rddm_core.regression import is_regression, regress
from rddm_core.training import validate
from rddm_core.training.logs import RunLog
from rddm_core.training.losses import estimate_training_map, joint_loss, sample_timesteps, sample_weights
from rddm_core.training.recipe import DataConfig, Recipe, load_recipe
from rddm_core.training.train import (
    MAP_SCALES,
    MovingAverage,
    Objective,
    build_model,
    check_common_step,
    check_crop,
    check_folder,
    estimate_pair_maps,
    learning_rate,
    leave_out,
    measure_residual_scale,
    open_sources,
    precision_for,
    run,
    select_trainable,
    set_training_mode,
    transfer_weights,
)
from rddm_core.training.validate import open_validation, validate_estimator, validate_joint, validate_pairs

RECIPES = Path(__file__).parents[2] / "rddm_core" / "training" / "recipes"


def run_until_step_two(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops after the second step as a kill would: the state is that after the first."""

    def stop(log: RunLog, step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rddm_core.training.train.RunLog.step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)


NARROW_RUN = """
import itertools, json, os, sys, time
from pathlib import Path
from types import SimpleNamespace
from rddm_core.config import config_from_dict
from rddm_core.training import train

train.preset = lambda _: config_from_dict(json.loads(sys.argv[2]))
if os.environ.get("RANK") == "1":
    # A clock that runs away: if this process stopped or validated by it, the other one would wait for it.
    ahead = itertools.count(step=3600)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + next(ahead), process_time=time.process_time)
    train.time = clock
train.run(Path(sys.argv[1]), minutes=30, resume="resume" in sys.argv)
"""


def subprocess_environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


class TestRecipes:
    @pytest.mark.parametrize("path", sorted(RECIPES.glob("*.json")), ids=lambda p: p.stem)
    def test_the_shipped_recipes_are_valid(self, path):
        assert load_recipe(path).name == path.stem

    def test_wrong_keys_name_file_and_key(self, tmp_path):
        path = tmp_path / "r.json"
        path.write_text('{"name": "x", "stage": "joint", "mixture": {"crops": 3}}')
        with pytest.raises(ValueError, match=r"r\.json: recipe\.mixture has unknown keys: crops"):
            load_recipe(path)

    def test_broken_json_names_the_file(self, tmp_path):
        path = tmp_path / "r.json"
        path.write_text("{")
        with pytest.raises(ValueError, match=r"r\.json"):
            load_recipe(path)

    def test_fp16_is_refused_with_what_to_take_instead(self, tmp_path):
        path = tmp_path / "r.json"
        path.write_text('{"name": "x", "stage": "joint", "precision": "fp16"}')
        with pytest.raises(ValueError, match=r"r\.json: precision fp16 cannot be trained in.*bf16"):
            load_recipe(path)

    def test_data_must_be_named(self, monkeypatch):
        monkeypatch.delenv("RDDM_DATA", raising=False)
        with pytest.raises(ValueError, match="set RDDM_DATA"):
            Recipe("x", "joint").data.resolved_root()


class TestNetworks:
    def test_a_recipe_changes_the_preset(self):
        radii = {"denoiser": {"deconvolution_radii": [2], "decoder_mixers": ["depthwise"] * 4}}
        model = build_model(Recipe("x", "joint", network=radii))
        assert model.config.denoiser.deconvolution_radii == (2.0,)
        assert not any(isinstance(m, DeformableConv) for m in model.denoiser.modules())
        assert any(isinstance(m, DeformableConv) for m in model.pre_deblur.modules()), "the rest is the preset's"

    def test_the_first_recipe_keeps_the_network_of_its_time(self):
        recipe = load_recipe(RECIPES / "lite-estimator.json")
        config = override(preset(recipe.preset), recipe.network)
        assert config.denoiser == DenoiserConfig() and config.guidance == GuidanceConfig()

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            ({"denoisers": {}}, "config has unknown keys: denoisers"),
            ({"denoiser": {"mixers": []}}, "config.denoiser has unknown keys: mixers"),
            ({"denoiser": {"decoder_mixers": ["round"]}}, r"decoder_mixers\[0\] must be one of"),
            ({"denoiser": 3}, "config.denoiser must be a mapping"),
            (3, "recipe.network must be a mapping"),
        ],
    )
    def test_what_no_network_has_is_refused(self, tmp_path, network, message):
        path = tmp_path / "r.json"
        path.write_text(json.dumps({"name": "x", "stage": "joint", "network": network}))
        with pytest.raises(ValueError, match=f"r.json: .*{message}"):
            load_recipe(path)

    @pytest.mark.parametrize(
        ("field", "value", "bounds"),
        [
            ("recommended_steps", 0, "between 1 and 1300"),
            ("recommended_steps", 2000, "between 1 and 1300"),
            ("ema", 1.5, "between 0 and 1"),
            ("batch", 0, "at least 1"),
        ],
    )
    def test_numbers_out_of_range_are_refused_before_the_work(self, field, value, bounds):
        with pytest.raises(ValueError, match=f"{field} must be {bounds}, not {value}"):
            Recipe("x", "joint", **{field: value})

    @pytest.mark.parametrize(
        ("part", "values", "message"),
        [
            ("mixture", {"synthetic": -0.5}, "mixture.synthetic must be at least 0, not -0.5"),
            ("mixture", {"crop": 0}, "mixture.crop must be at least 1, not 0"),
            ("mixture", {"synthetic": 0, "real": 0, "identity": 0}, "one of mixture.synthetic, .* must be above 0"),
            ("data", {"pack_count": 0}, "data.pack_count must be at least 1, not 0"),
        ],
    )
    def test_so_are_those_of_the_mixture_and_the_data(self, part, values, message):
        make = {"mixture": MixtureConfig, "data": DataConfig}[part]
        with pytest.raises(ValueError, match=message):
            Recipe("x", "joint", **{part: make(**values)})

    def test_lists_of_a_wrong_length_are_refused(self):
        with pytest.raises(ValueError, match="compare its lists with the preset's"):
            build_model(Recipe("x", "joint", network={"denoiser": {"decoder_mixers": ["depthwise"]}}))

    def test_a_checkpoint_keeps_its_own_network_unless_rebuilt(self):
        for changes in ({"network": {"denoiser": {"overlap": False}}}, {"parts": ("estimator",)}):
            with pytest.raises(ValueError, match="need rebuild"):
                Recipe("x", "joint", start_from="shipped", **changes)

    def test_the_state_of_a_common_encoder_cannot_be_silenced(self):
        network = {"denoiser": {"state_entry": "encoder", "deconvolution_radii": []}}
        with pytest.raises(ValueError, match="state_entry 'decoder'"):
            build_model(Recipe("x", "joint", network=network, silent=("state",)))

    def test_parts_are_taken_from_a_checkpoint(self, tiny_checkpoint, narrow_networks):
        recipe = Recipe("x", "joint", start_from=str(tiny_checkpoint), rebuild=True, parts=("estimator",), seed=7)
        given, built = load_checkpoint(tiny_checkpoint).state_dict(), build_model(recipe).state_dict()
        fresh = build_model(replace(recipe, start_from="", parts=())).state_dict()
        for key, value in built.items():
            assert torch.equal(value, (given if key.startswith("estimator.") else fresh)[key]), key

    def test_a_fresh_network_is_drawn_by_the_recipe_s_seed(self, narrow_networks):
        first, second = (build_model(Recipe("x", "joint", seed=seed)) for seed in (0, 1))
        assert not torch.equal(first.denoiser.intro.weight, second.denoiser.intro.weight)

    def test_a_fresh_network_gets_the_backbone_that_the_recipe_names(self, narrow_networks, monkeypatch):
        loaded = []
        monkeypatch.setattr("rddm_core.training.train.load_backbone_weights", lambda *given: loaded.append(given))
        model = build_model(Recipe("x", "joint", backbone_weights="package"))
        assert loaded == [(model.guidance, "package")]

    def test_a_checkpoint_s_own_network_is_silenced_too(self, tiny_checkpoint):
        model = build_model(Recipe("x", "joint", start_from=str(tiny_checkpoint), silent=("guidance",))).eval()
        assert not any(stage.any() for stage in model.guidance(torch.rand(1, 3, 64, 64)))

    def test_the_shipped_weights_are_a_start(self):
        model = build_model(Recipe("x", "joint", start_from="shipped"))
        assert torch.equal(
            model.denoiser.intro.weight, load_checkpoint(default_checkpoint_path()).denoiser.intro.weight
        )


def batch_of(count: int) -> dict[str, torch.Tensor]:
    """Random pictures that are out of focus everywhere, as their maps say."""
    generator = torch.Generator().manual_seed(0)
    return {
        "blurred": torch.rand(count, 3, 64, 64, generator=generator),
        "sharp": torch.rand(count, 3, 64, 64, generator=generator),
        "map": torch.ones(count, 1, 64, 64),
        "map_known": torch.ones(count, 1),
        "index": torch.arange(count),
    }


class TestObjective:
    @pytest.fixture
    def losses(self, monkeypatch) -> list[tuple]:
        """Losses of a joint run that are known; the arguments that they were asked for with."""
        asked: list[tuple] = []

        def known(*arguments) -> dict[str, torch.Tensor]:
            asked.append(arguments)
            return {"residual": torch.tensor(1.0), "anchor": torch.tensor(10.0), "spectrum": torch.tensor(100.0)}

        monkeypatch.setattr("rddm_core.training.train.joint_loss", known)
        return asked

    def test_the_loss_is_the_sum_that_the_recipe_weighs(self, tiny_config, losses):
        objective = Objective(RDDM(tiny_config), Recipe("x", "joint", anchor=0.3, spectrum=0.5))
        assert float(objective(batch_of(1))["loss"]) == pytest.approx(1 + 3 + 50)

    def test_samples_are_balanced_where_the_recipe_says(self, tiny_config, losses):
        batch = batch_of(2)
        for floor in (0.0, 0.01):
            Objective(RDDM(tiny_config), Recipe("x", "joint", balance_floor=floor))(batch)
        without, weights = (arguments[-1] for arguments in losses)
        assert without is None and torch.equal(weights, sample_weights(batch["blurred"], batch["sharp"], 0.01))

    @pytest.mark.parametrize(
        ("stage", "silent", "seen"),
        [("joint", (), 1.0), ("joint", ("estimator",), 0.0), ("pre_deblur", (), 1.0), ("regression", (), 0.0)],
    )
    def test_the_map_is_zero_where_it_is_so_in_use(self, tiny_config, stage, silent, seen):
        """Where true maps are known, a regression and f beside a silent estimator must not see them in training."""
        model, maps = RDDM(tiny_config), []
        model.pre_deblur.register_forward_hook(lambda _, inputs, __: maps.append(inputs[1]))
        Objective(model, Recipe("x", stage, silent=silent))(batch_of(1))
        assert [x.unique().tolist() for x in maps] == [[seen]]

    @pytest.mark.parametrize("processes", [1, 2])
    def test_maps_are_estimated_at_every_scale_in_turn(self, tiny_config, monkeypatch, processes):
        """However many processes share the steps."""
        scales, nothing = [], torch.zeros(2, 1, 64, 64)
        monkeypatch.setattr(
            "rddm_core.training.train.estimate_training_map", lambda _, x, scale: scales.append(scale) or nothing
        )
        objective = Objective(RDDM(tiny_config), Recipe("x", "pre_deblur", batch=2), processes)
        batch = batch_of(2) | {"map_known": torch.zeros(2, 1)}
        for step in range(len(MAP_SCALES)):
            last_process = processes * step + processes - 1
            objective(batch | {"index": torch.arange(2) + 2 * last_process})
        assert scales == list(MAP_SCALES)

    def test_every_sample_has_noise_of_its_own_whatever_its_batch(self, tiny_config, losses):
        objective, batch = Objective(RDDM(tiny_config), Recipe("x", "joint")), batch_of(3)
        objective(batch)
        objective({key: value[2:] for key, value in batch.items()})
        whole, alone = (arguments[5] for arguments in losses)
        assert not torch.equal(whole[0], whole[1]) and torch.equal(alone[0], whole[2])

    def test_the_recipe_says_how_often_training_is_where_sampling_starts(self, tiny_config, losses):
        Objective(RDDM(tiny_config), Recipe("x", "joint", noise_share=1.0))(batch_of(8))
        assert losses[0][4].tolist() == [tiny_config.diffusion.timesteps] * 8


def test_an_estimator_is_in_training_mode_where_it_is_trained_alone(tiny_config):
    model = RDDM(tiny_config)
    for stage, trained in (("estimator", True), ("joint", False)):
        set_training_mode(model, Recipe("x", stage))
        assert model.training and model.estimator.training is trained


@pytest.mark.parametrize(
    ("known", "wanted"),
    [({"avx512_f": True, "avx512_bf16": False}, "no"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")],
)
def test_bf16_is_chosen_where_the_processor_has_it(monkeypatch, known, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert precision_for(Recipe("run", "joint")) == wanted
    assert precision_for(Recipe("run", "joint", precision="no")) == "no"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision_for(Recipe("run", "joint")) == "no"


@pytest.mark.parametrize(
    ("capability", "hip", "wanted"), [((7, 5), None, "no"), ((8, 0), None, "bf16"), ((9, 0), "6.2", "bf16")]
)
def test_bf16_is_chosen_where_the_graphics_card_has_it(monkeypatch, capability, hip, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert precision_for(Recipe("run", "joint")) == wanted


def test_learning_rate_warms_up_stays_and_decays():
    recipe = Recipe("x", "joint", steps=1000, warmup_steps=100, decay_share=0.4, learning_rate=1.0)
    rates = [learning_rate(recipe, s) for s in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[100] == rates[599] == 1.0
    assert rates[800] == pytest.approx(0.5, abs=1e-3) and rates[1000] == pytest.approx(1e-6, rel=0.1)
    assert all(a >= b for a, b in zip(rates[600:], rates[601:], strict=False))


def test_moving_average_is_applied_and_taken_back():
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], 0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(10**6)
    with average.applied():
        assert torch.allclose(parameter, torch.full((3,), 0.1))
    assert torch.equal(parameter, torch.ones(3))


def test_the_first_steps_have_a_short_memory():
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], 0.999)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(0)
    assert torch.allclose(average.values[0], torch.full((3,), 0.9))


def test_timesteps_start_where_sampling_starts():
    t = sample_timesteps(4000, 1300, 0.5, torch.Generator().manual_seed(0))
    assert 1 <= int(t.min()) and int(t.max()) == 1300
    assert float((t == 1300).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(t[t < 1300].float().mean()) == pytest.approx(650, abs=30)


def test_the_noisy_input_is_no_side_channel_for_p():
    """At beta = gamma = 0 and a muted decoder, p is reached through the residual alone, never through x_t."""
    torch.manual_seed(0)
    model = RDDM(lite())
    blurred, sharp = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    seen = []
    original = model.denoiser.forward
    model.denoiser.forward = lambda x, *rest: (seen.append(x.requires_grad), original(x, *rest))[1]
    bars = make_alpha_bars(model.config.diffusion)
    joint_loss(model, blurred, sharp, torch.rand(1, 1, 64, 64), torch.tensor([9]), torch.randn_like(sharp), bars)
    assert seen == [False]


@pytest.fixture
def shown(tiny_config) -> SimpleNamespace:
    """What the networks see of two samples, at the start and in the middle of the diffusion, in Eq. 12."""
    model, batch, bars = RDDM(tiny_config), batch_of(2), make_alpha_bars(tiny_config.diffusion)
    model.residual_scale, t, noise = 3.0, torch.tensor([9, 700]), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.pre_deblur.outro.bias.fill_(0.1)  # or the guess would be the blurred picture
    seen = SimpleNamespace()
    model.guidance.register_forward_hook(lambda _, inputs, __: vars(seen).update(guided_by=inputs[0]))
    model.denoiser.register_forward_hook(lambda _, inputs, __: vars(seen).update(state=inputs[0], t=inputs[1]))
    joint_loss(model, batch["blurred"], batch["sharp"], batch["map"], t, noise, bars)
    seen.guess = model.pre_deblur(batch["blurred"], batch["map"])
    seen.wanted_t, seen.wanted = t, q_sample(3 * (batch["sharp"] - seen.guess), noise, bars[t][:, None, None, None])
    return seen


def test_the_denoiser_sees_the_scaled_residual_noised_to_its_timestep(shown):
    torch.testing.assert_close(shown.state, shown.wanted)
    assert torch.equal(shown.t, shown.wanted_t)


def test_the_guidance_is_that_of_the_first_guess(shown):
    torch.testing.assert_close(shown.guided_by, shown.guess)


def test_an_estimator_and_a_joint_run_end_in_checkpoints(runs, narrow_networks, collection, tmp_path):
    estimator = {"stage": "estimator", "mixture": {"crop": 64, "masks": 1.0, "real": 0.0}, "licence": "CC0"}
    first = run(write_recipe(tmp_path, collection, name="maps", **estimator))
    second = run(write_recipe(tmp_path, collection, start_from="maps"))
    before, after = load_checkpoint(first), load_checkpoint(second)
    for key, value in before.estimator.state_dict().items():
        assert torch.equal(value, after.estimator.state_dict()[key]), "a joint run leaves the estimator alone"
    changed = [
        not torch.equal(a, b)
        for (_, a), (_, b) in zip(before.denoiser.named_parameters(), after.denoiser.named_parameters(), strict=True)
    ]
    assert any(changed)
    info = read_info(second)
    assert info.provenance["step"] == 4 and "steps1_mean" in info.provenance["dev"]
    assert 0 < info.provenance["cpu_hours"] < 0.1
    # The folders of whoever trained are nobody's business; `collection` is an absolute path.
    assert info.provenance["recipe"]["data"]["root"] == collection.name and str(collection) not in str(info.provenance)
    assert math.isfinite(info.residual_scale) and info.residual_scale > 1
    assert [read_info(x).licence for x in (first, second)] == [
        "CC0",
        "not stated by the recipe; begun with the weights of maps, whose terms hold on",
    ]
    assert (runs / "tiny" / "validation.csv").read_text().count("\n") == 2
    for name in ("maps", "tiny"):
        assert [sheet.name for sheet in (runs / name / "sheets").iterdir()] == ["0000004.jpg"]


def test_weights_are_chosen_by_the_steps_that_they_recommend(tiny_checkpoint, collection):
    model = load_checkpoint(tiny_checkpoint)
    model.recommended_steps = 2
    score, figures = validate_joint(model, photo_pairs(collection / "real_pairs", "dev"), None)
    assert score == figures["steps2_mean"] != figures["steps1_mean"]
    assert [key for key in figures if key.endswith("_mean")] == [
        "pre_mean",
        "steps1_mean",
        "steps2_mean",
        "steps3_mean",
    ]


def test_gains_of_pairs_are_over_their_blurred_pictures(tmp_path):
    errors = (10, 30)
    pairs = [PhotoPair(flat(tmp_path / f"b{n}.png", 100), flat(tmp_path / f"s{n}.png", 100 + n), "x") for n in errors]
    figures = validate_pairs(pairs, None, lambda image: ({"brighter": image + 5 / 255, "same": image}, ()))
    large, small = (20 * math.log10(n / (n - 5)) for n in errors)
    assert figures["brighter_mean"] == pytest.approx((large + small) / 2)
    assert figures["brighter_worst"] == pytest.approx(small) and figures["same_mean"] == 0


def test_estimators_are_chosen_by_both_classes(tmp_path, monkeypatch):
    mask = np.zeros((72, 80), np.uint8)
    mask[:, :40] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    photo = MaskedPhoto(flat(tmp_path / "i.png", 9), tmp_path / "m.png")
    monkeypatch.setattr("rddm_core.training.validate.estimate_defocus_map", lambda *_: torch.ones(1, 1, 72, 80))
    score, figures = validate_estimator(None, [photo], None)
    assert score == 0.25 and figures == {"iou_blurred": 0.5, "iou_sharp": 0.0, "mae": 0.5}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    runs, narrow_networks, collection, tmp_path, monkeypatch, optimizer
):
    whole = run(write_recipe(tmp_path, collection, name="whole", optimizer=optimizer))
    part = write_recipe(tmp_path, collection, name="part", optimizer=optimizer)
    run_until_step_two(part, monkeypatch)
    spent = torch.load(runs / "part" / "state.pt", weights_only=True)["cpu_seconds"]
    resumed = run(part, resume=True)
    assert 0 < spent < torch.load(runs / "part" / "state.pt", weights_only=True)["cpu_seconds"]
    a, b = load_checkpoint(whole).state_dict(), load_checkpoint(resumed).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("stage", ["joint", "estimator"])
def test_data_without_a_dev_part_is_refused_before_the_work(runs, collection, tmp_path, monkeypatch, stage):
    monkeypatch.setattr("rddm_core.training.train.build_model", lambda _: pytest.fail("a model was built"))
    root = tmp_path / "data"
    shutil.copytree(collection, root)
    folder = root / ("defocus_masks" if stage == "estimator" else "real_pairs")
    recipe, manifest = write_recipe(tmp_path, root, stage=stage), folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("dev.png", "gone.png").replace("dev_blur.png", "gone.png"))
    with pytest.raises(FileNotFoundError, match=rf"gone\.png of split=dev in {folder} does not exist \(1 in all\)"):
        run(recipe)
    manifest.write_text("".join(line for line in manifest.open() if not line.strip().endswith("dev")))
    with pytest.raises(ValueError, match=f"{folder} has nothing of split=dev.*give some rows"):
        run(recipe)
    assert not (runs / "tiny").exists()


def test_an_existing_run_is_not_overwritten(runs, narrow_networks, collection, tmp_path):
    recipe = write_recipe(tmp_path, collection, steps=1)
    run(recipe)
    with pytest.raises(FileExistsError, match="--resume"):
        run(recipe)


def test_a_run_without_its_state_is_not_begun_anew(runs, narrow_networks, collection, tmp_path):
    mixture = {"crop": 64, "masks": 1.0, "real": 0.0}
    recipe = write_recipe(tmp_path, collection, stage="estimator", steps=1, mixture=mixture)
    best, log = run(recipe), runs / "tiny" / "train.csv"
    log.write_text("step\n1\n")
    (runs / "tiny" / "state.pt").unlink()
    weights = best.read_bytes()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"best\.safetensors of a run, but no state\.pt.*remove the folder"):
            run(recipe, resume=resume)
    assert best.read_bytes() == weights and log.read_text() == "step\n1\n"


def test_a_run_that_was_stopped_before_its_first_state_begins_anew(tmp_path, collection):
    recipe = load_recipe(write_recipe(tmp_path, collection))
    folder = tmp_path / "tiny"
    check_folder(folder, recipe, resume=False)
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    with pytest.raises(FileExistsError, match="--resume"):
        check_folder(folder, recipe, resume=False)
    check_folder(folder, replace(recipe, batch=9), resume=True)


def test_a_run_goes_on_by_its_own_recipe_alone(tmp_path, collection):
    recipe = load_recipe(write_recipe(tmp_path, collection, network={"denoiser": {"overlap": False}}))
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"")
    check_folder(folder, recipe, resume=True)  # of a version that wrote no recipe.json
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    check_folder(folder, recipe, resume=True)
    free = {"steps": 9, "workers": 3, "checkpoint_minutes": 1, "validate_minutes": 1, "licence": "MIT"}
    check_folder(folder, replace(recipe, **free), resume=True)
    changed = replace(recipe, batch=9, network={"denoiser": {}}, mixture=replace(recipe.mixture, crop=32))
    with pytest.raises(ValueError, match=r"differs in network\.denoiser\.overlap, mixture\.crop, batch\)"):
        check_folder(folder, changed, resume=True)


def test_a_run_goes_on_from_its_state_alone(runs, narrow_networks, collection, tmp_path, monkeypatch):
    """What it started from may have been deleted, or be of another shape by now."""
    first = run(write_recipe(tmp_path, collection, name="first", steps=1))
    recipe = write_recipe(tmp_path, collection, start_from="first", steps=2)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    run_until_step_two(recipe, monkeypatch)
    shutil.rmtree(first.parent)
    run(recipe, resume=True)
    assert torch.load(runs / "tiny" / "state.pt", weights_only=True)["step"] == 2
    assert (runs / "tiny" / "start.sha256").read_text() == digest


def test_a_state_belongs_to_a_number_of_processes(runs, narrow_networks, collection, tmp_path):
    recipe, path = write_recipe(tmp_path, collection, steps=1), runs / "tiny" / "state.pt"
    run(recipe)
    state = torch.load(path, weights_only=True)
    assert state["processes"] == 1
    torch.save(state | {"processes": 4}, path)
    with pytest.raises(ValueError, match="of a run in 4 processes, this one has 1 .* go on with --num_processes 4"):
        run(recipe, resume=True)
    # That of an earlier version says neither this nor how the networks are built.
    torch.save({key: value for key, value in state.items() if key not in ("processes", "config")}, path)
    run(recipe, resume=True)


def test_processes_that_see_other_states_are_refused():
    def seen_by_both(steps: list[int]) -> SimpleNamespace:
        return SimpleNamespace(num_processes=2, device="cpu", gather=lambda _: torch.tensor(steps))

    check_common_step(seen_by_both([3, 3]), 3)
    with pytest.raises(ValueError, match="from the steps 3, 0: let RDDM_RUNS be a folder that all machines share"):
        check_common_step(seen_by_both([3, 0]), 3)


def test_weights_that_are_newer_than_the_state_count(runs, narrow_networks, collection, tmp_path, monkeypatch):
    """A kill between the two files of a validation must not let worse weights replace the best."""
    recipe, path = write_recipe(tmp_path, collection, steps=1), runs / "tiny" / "state.pt"
    best = run(recipe)
    state, weights = torch.load(path, weights_only=True), best.read_bytes()
    torch.save(state | {"best": -math.inf}, path)
    with monkeypatch.context() as patch:
        validate = open_validation(load_recipe(recipe))
        patch.setattr(
            "rddm_core.training.train.open_validation", lambda _: lambda *args: (state["best"] - 1, validate(*args)[1])
        )
        run(recipe, resume=True)
    assert best.read_bytes() == weights
    assert torch.load(path, weights_only=True)["best"] == state["best"]


def test_a_loss_that_is_never_finite_stops_the_run(runs, narrow_networks, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rddm_core.training.train.estimator_loss", lambda *_: torch.tensor(math.nan, requires_grad=True)
    )
    recipe = write_recipe(
        tmp_path,
        collection,
        stage="estimator",
        steps=100,
        mixture={"crop": 64, "masks": 1.0, "synthetic": 0, "real": 0},
    )
    with pytest.raises(FloatingPointError, match="without a finite loss"):
        run(recipe)


def test_two_processes_learn_what_one_does(runs, collection, tiny_config, tmp_path):
    """The same four samples a step, in one process or shared by two gloo processes of `accelerate launch`, which are
    stopped after a step and go on.

    Adam's first moments are linear in the gradients: they agree but for rounding, and would not for other samples.
    Only the first process's clock counts.
    """
    environment = subprocess_environment() | {"ACCELERATE_USE_CPU": "true"}
    script, moments = tmp_path / "narrow.py", []
    script.write_text(NARROW_RUN)
    for processes, stops in ((1, [2]), (2, [1, 2])):
        # With --cpu there would be one process, whatever --num_processes says.
        launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", *(["--multi_gpu"] if processes > 1 else [])]
        for steps in stops:
            shared = {"batch": 4 // processes, "precision": "no"}
            recipe = write_recipe(tmp_path, collection, name=f"p{processes}", steps=steps, **shared)
            command = [sys.executable, *launcher, str(script), str(recipe), json.dumps(config_to_dict(tiny_config))]
            command += [] if steps == stops[0] else ["resume"]
            subprocess.run(command, check=True, env=environment, timeout=900, cwd=tmp_path)
        stored = torch.load(runs / f"p{processes}" / "state.pt", weights_only=True)
        assert stored["step"] == 2
        state = stored["optimizers"][0]["state"]
        moments.append(torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)]))
    one, two = moments
    assert float((one - two).norm()) < 0.02 * float(one.norm())


def test_the_paper_preset_trains_two_steps_and_resumes(runs, collection, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, collection, preset="paper", batch=1, steps=2, name="paper")
    run_until_step_two(recipe, monkeypatch)
    state = torch.load(runs / "paper" / "state.pt", weights_only=True)
    assert state["step"] == 1 and state["optimizers"][0]["state"]
    run(recipe, resume=True)
    assert torch.load(runs / "paper" / "state.pt", weights_only=True)["step"] == 2


def test_samples_count_by_the_relative_error():
    sharp = torch.zeros(3, 3, 8, 8)
    blurred = torch.stack((torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.04), torch.full((3, 8, 8), 0.2)))
    weights = sample_weights(blurred, sharp, floor=0.01)
    torch.testing.assert_close(weights, torch.tensor([5.0, 1.0, 0.05 / 0.21]))


def test_the_spectrum_term_is_zero_for_a_perfect_prediction(tiny_config):
    model = RDDM(tiny_config)
    with torch.no_grad():
        for parameter in (*model.denoiser.outro.parameters(), *model.denoiser.overlap.parameters()):
            parameter.zero_()  # predicts a residual of zero, which is right where p restores the target
    blurred, bars = torch.rand(1, 3, 64, 64), make_alpha_bars(tiny_config.diffusion)
    known_map = torch.zeros(1, 1, 64, 64)
    with torch.no_grad():
        target = model.pre_deblur(blurred, known_map)
    arguments = (known_map, torch.tensor([9]), torch.randn_like(blurred), bars)
    losses = joint_loss(model, blurred, target, *arguments)
    assert all(float(value) == pytest.approx(0, abs=1e-5) for value in losses.values())
    weighted = joint_loss(model, blurred, target + 0.1, *arguments, weights=torch.tensor([3.0]))
    plain = joint_loss(model, blurred, target + 0.1, *arguments)
    assert plain["spectrum"] > 0
    for name, value in weighted.items():
        assert float(value) == pytest.approx(3 * float(plain[name]), rel=1e-5)


def test_a_rebuilt_network_begins_as_the_old_one_ends(tiny_config):
    old_denoiser = replace(tiny_config.denoiser, deconvolution_radii=(), overlap=False)
    old = RDDM(replace(tiny_config, denoiser=old_denoiser)).eval()
    old.residual_scale, old.recommended_steps = 7.0, 3
    new = RDDM(tiny_config).eval()
    left = transfer_weights(old, new)
    assert left and all(name.startswith(("denoiser.deconvolution_intro", "denoiser.overlap")) for name in left)
    assert (new.residual_scale, new.recommended_steps) == (7.0, 3)
    guess, defocus_map, state = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), torch.randn(1, 3, 64, 64)
    predictions = [
        m.denoiser(state, torch.tensor([9]), m.denoiser.encode_condition(guess, defocus_map, m.guidance(guess)))
        for m in (old, new)
    ]
    torch.testing.assert_close(predictions[0], predictions[1])


def test_blocks_that_join_change_little_and_wake(tiny_config):
    old, deeper = RDDM(tiny_config).eval(), replace(tiny_config.denoiser, decoder_blocks=(2, 1, 1, 1))
    new = RDDM(replace(tiny_config, denoiser=deeper)).eval()
    transfer_weights(old, new)
    guess, defocus_map, state = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), torch.randn(1, 3, 64, 64)
    predictions = [
        m.denoiser(state, torch.tensor([9]), m.denoiser.encode_condition(guess, defocus_map, m.guidance(guess)))
        for m in (old, new)
    ]
    change = float(((predictions[1] - predictions[0]).norm() / predictions[0].norm()).detach())
    assert 0 < change < 0.1
    predictions[1].square().sum().backward()
    joined = list(new.denoiser.decoders[0][1].parameters())
    assert joined and all(float(p.grad.abs().max()) > 0 for p in joined if p.grad is not None)
    assert sum(p.grad is not None for p in joined) > 10


def test_pairs_are_trained_with_the_map_of_the_whole_photograph(tiny_config, collection):
    pairs = photo_pairs(collection / "real_pairs", "train")
    maps = estimate_pair_maps(RDDM(tiny_config), pairs)
    sources = Sources(pack=None, pairs=pairs, sharp=[], masked=[], pair_maps=maps)
    mixture = MixtureConfig(crop=64, synthetic=0, real=1, identity=0, known_map=0.0)
    sample = draw_sample(sources, mixture, 3)
    assert sample["map_known"] == 1 and 0 < sample["map"].min() <= sample["map"].max() < 1
    sources.pair_maps.clear()
    assert draw_sample(sources, mixture, 3)["map_known"] == 0


class FlatEstimator(torch.nn.Module):
    """Sees the same defocus everywhere, in pixels of what it is shown."""

    def forward(self, image, size=None):
        return torch.full((len(image), 1, *(size or image.shape[-2:])), math.log(0.4 / 0.6))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_estimated_maps_count_pixels_of_the_crop_as_in_use(tiny_config, scale):
    """A photograph of 1024 pixels is reduced by half for the estimator, which tells p and f half of its radii."""
    model = RDDM(tiny_config)
    model.estimator, model.pre_deblur = FlatEstimator(), Recorder()
    crop = torch.rand(1, 3, 64, 64)
    trained = estimate_training_map(model, crop, scale)
    photograph = torch.rand(1, 3, 64, round(tiny_config.estimator.working_size / scale))
    pre_deblur(model, photograph, estimate_defocus_map(model, photograph))
    used = model.pre_deblur.maps[0]
    assert float(trained.mean()) == pytest.approx(float(used.mean()), abs=1e-5)
    assert float(trained.std()) < 1e-5 > float(used.std())


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = []

    def forward(self, image, defocus_map):
        self.maps.append(defocus_map)
        return image


def test_the_scaled_residual_has_a_deviation_of_one(tiny_config, tmp_path):
    model = RDDM(tiny_config)
    model.pre_deblur = Recorder()  # changes nothing
    pairs = [PhotoPair(flat(tmp_path / "b.png", 100), flat(tmp_path / "s.png", 151), "x/1")]
    mixture = MixtureConfig(crop=64, synthetic=0, real=1, identity=0, tone=0, channels=0, noise=0, jpeg=0)
    sources = Sources(pack=None, pairs=pairs, sharp=[], masked=[])
    scale = measure_residual_scale(model, sources, Recipe("x", "joint", mixture=mixture), samples=8)
    assert scale == pytest.approx(255 / 51, rel=1e-3)


def test_maps_of_pairs_count_pixels_of_the_crop_as_in_use(tiny_config, collection):
    """The miniature's photographs are 80 pixels wide, and the tiny estimator reduces them to 64."""
    model = RDDM(tiny_config)
    model.estimator = FlatEstimator()
    pairs = photo_pairs(collection / "real_pairs", "train")
    sources = Sources(pack=None, pairs=pairs, sharp=[], masked=[], pair_maps=estimate_pair_maps(model, pairs))
    mixture = MixtureConfig(crop=64, synthetic=0, real=1, identity=0, rescale=1.0)
    seen = {round(float(draw_sample(sources, mixture, i)["map"].mean()), 3) for i in range(20)}
    whole, largest = (float(scale_map(torch.tensor(0.4), factor)) for factor in (80 / 64, 1.3 * 80 / 64))
    assert len(seen) > 5 and min(seen) < whole < max(seen) <= largest + 0.01


def test_maps_of_large_photographs_are_kept_as_small_as_the_estimator_sees_them(tiny_config, tmp_path):
    """Thousands of them would not fit into memory otherwise."""
    pairs = [PhotoPair(flat(tmp_path / "b.png", 90, (256, 128)), flat(tmp_path / "s.png", 90, (256, 128)), "x/1")]
    maps = estimate_pair_maps(RDDM(tiny_config), pairs)
    assert maps[pairs[0].blurred].shape == (1, 32, 64) and tiny_config.estimator.working_size == 64


def test_large_photographs_are_validated_in_tiles(tiny_config, tmp_path, monkeypatch):
    size, pictures = (160, 96), []
    pair = PhotoPair(flat(tmp_path / "b.png", 90, size), flat(tmp_path / "s.png", 95, size), "x/1")
    model = RDDM(tiny_config)
    model.pre_deblur.register_forward_hook(lambda _, inputs, __: pictures.append(tuple(inputs[0].shape[-2:])))
    monkeypatch.setattr("rddm_core.memory.AUTO_TILE", 64)
    for check in (validate.validate_joint, validate.validate_pre_deblur, validate.validate_regression):
        pictures.clear()
        check(model, [pair], None)
        assert len(pictures) > 1 and max(max(p) for p in pictures) <= 128


def test_a_frozen_pre_deblur_module_stays_as_it_was(runs, narrow_networks, collection, tmp_path):
    first = run(write_recipe(tmp_path, collection, name="first"))
    second = run(write_recipe(tmp_path, collection, start_from="first", freeze_pre_deblur=True, rebuild=True))
    before, after = load_checkpoint(first), load_checkpoint(second)
    for key, value in before.pre_deblur.state_dict().items():
        assert torch.equal(value, after.pre_deblur.state_dict()[key]), key
    assert not torch.equal(before.denoiser.intro.weight, after.denoiser.intro.weight)


def test_a_regression_trains_the_network_in_p_s_place_alone(runs, narrow_networks, collection, tmp_path):
    recipe = write_recipe(tmp_path, collection, name="plain", stage="regression", preset="nafnet", steps=3)
    path = run(recipe)
    before, after = build_model(load_recipe(recipe)).state_dict(), load_checkpoint(path).state_dict()
    # Checkpoints are fp16.
    changed = {key.split(".")[0] for key, value in before.items() if not torch.allclose(value, after[key], 1e-3, 2e-4)}
    assert changed == {"pre_deblur"}
    info = read_info(path)
    assert is_regression(info.provenance) and "regression_mean" in info.provenance["dev"]
    image = torch.rand(1, 3, 50, 70)
    assert regress(load_checkpoint(path), image).shape == image.shape
    (row,) = peer_method("plain", path)(image[0]).values()
    assert torch.equal(row, regress(load_checkpoint(path), image)[0])


def test_pre_deblur_is_trained_alone(runs, narrow_networks, collection, tmp_path):
    recipe = write_recipe(tmp_path, collection, name="guess", stage="pre_deblur", steps=3)
    path = run(recipe)
    before, after = build_model(load_recipe(recipe)).state_dict(), load_checkpoint(path).state_dict()
    changed = {key.split(".")[0] for key, value in before.items() if not torch.allclose(value, after[key], 1e-3, 2e-4)}
    assert changed == {"pre_deblur"}
    assert "pre_mean" in read_info(path).provenance["dev"]


def test_the_yardstick_is_about_as_large_as_the_denoiser():
    sizes = [sum(p.numel() for p in part.parameters()) for part in (RDDM(nafnet()).pre_deblur, RDDM(lite()).denoiser)]
    assert 0.6 < sizes[0] / sizes[1] < 1.6
    assert not any(isinstance(m, DeformableConv) for m in RDDM(nafnet()).pre_deblur.modules())


def test_a_share_without_material_is_refused_by_name(runs, collection, tmp_path):
    empty = {"synthetic": "sharp", "real": "pairs", "identity": "sharp", "masks": "masks"}
    for share, field in empty.items():
        mixture = dict.fromkeys(empty, 0.0) | {share: 0.3}
        data = {"root": str(collection), "segments": "", "pack_count": 4}
        stage = "estimator" if share == "masks" else "joint"
        recipe = write_recipe(tmp_path, collection, stage=stage, data=data | {field: ""}, mixture=mixture)
        with pytest.raises(ValueError, match=rf"mixture\.{share} is 0\.3, but data\.{field} \(''\) has nothing"):
            open_sources(load_recipe(recipe))


def test_an_estimator_gets_no_pairs_whose_maps_nobody_knows(runs, collection, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, collection, stage="estimator", mixture={"masks": 1.0, "real": 0.2}))
    with pytest.raises(ValueError, match=r"mixture\.real is 0\.2, but the estimator learns from true maps"):
        open_sources(recipe)


def test_only_an_estimator_learns_from_photographs_without_a_sharp_partner(runs, collection, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, collection, mixture={"masks": 0.2}))
    with pytest.raises(ValueError, match=r"mixture\.masks is 0\.2, but masked photographs have no sharp partner"):
        open_sources(recipe)


@pytest.mark.parametrize(
    ("stage", "mixture", "render", "message"),
    [
        ("joint", {"crop": 200}, {}, "crop must be a multiple of 64 pixels for these networks, not 200"),
        ("joint", {"crop": 320, "synthetic": 0.5}, {}, r"crop is 320, but data\.render\.size 288"),
        ("joint", {"crop": 320, "synthetic": 0.5, "enlarge": 1.2}, {}, None),
        ("joint", {"crop": 320, "synthetic": 0.0}, {}, None),
        ("joint", {"crop": 320, "synthetic": 0.5}, {"size": 320}, None),
        ("estimator", {"crop": 200}, {}, None),
    ],
)
def test_crops_fit_the_networks_and_the_rendered_samples(stage, mixture, render, message):
    recipe = Recipe("x", stage, mixture=MixtureConfig(**mixture), data=DataConfig(render=RenderConfig(**render)))
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_crop(recipe, stride=64)


def test_a_crop_that_cannot_be_is_refused_before_the_work(runs, narrow_networks, collection, tmp_path):
    with pytest.raises(ValueError, match="crop must be a multiple of"):
        run(write_recipe(tmp_path, collection, mixture={"crop": 72}))
    assert not (runs / "tiny").exists()


def test_a_run_has_one_trainer(runs, narrow_networks, collection, tmp_path):
    recipe = write_recipe(tmp_path, collection)
    script = "import sys\nfrom pathlib import Path\nfrom rddm_core.files import lock\n"
    script += "with lock(Path(sys.argv[1])) as free:\n    print(free, flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", script, str(runs / ".tiny.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=subprocess_environment(), **pipes) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(FileExistsError, match="tiny is being trained by another process"):
            run(recipe)
        other.kill()
    run(recipe)


def test_photographs_with_little_sharp_texture_are_rendered_but_no_targets(runs, collection, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(collection, root)
    shutil.copyfile(root / "sharp" / "a.png", root / "sharp" / "b.png")
    (root / "sharp" / "manifest.csv").write_text(
        "file,textured_tile_frac,sharp_tile_frac,split\na.png,1,1,train\nb.png,0.4,1,train\n"
    )
    sources = open_sources(load_recipe(write_recipe(tmp_path, root)))
    assert [photo.path.name for photo in sources.sharp] == ["a.png"]
    assert [photo.path.name for photo in sources.pack.photos] == ["a.png", "b.png"]


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(
    ("stage", "picture", "partner"),
    [("joint", "real_pairs/{}_blur.png", "sharp"), ("estimator", "defocus_masks/{}.png", "mask")],
)
def test_partners_of_unequal_size_are_named(runs, collection, tmp_path, split, stage, picture, partner):
    root = tmp_path / "data"
    shutil.copytree(collection, root)
    first = root / picture.format(split)
    second = first.with_name(f"{split}_{partner}.png")
    Image.new("RGB", (80, 71)).save(second)
    masks = float(stage == "estimator")
    recipe = load_recipe(write_recipe(tmp_path, root, stage=stage, mixture={"masks": masks, "real": 1 - masks}))
    with pytest.raises(ValueError, match=f"{first} is 80x72, but {second} is 80x71"):
        (open_sources if split == "train" else open_validation)(recipe)


def test_a_collection_is_left_out(runs, collection, tmp_path):
    pairs = [PhotoPair(Path(f"{name}.png"), Path("s.png"), f"{name}/1") for name in ("lytro", "phone", "lytro")]
    assert [p.scene for p in leave_out(pairs, "lytro")] == ["phone/1"]
    with pytest.raises(ValueError, match=r"no training pairs of 'leica' to leave out; there are \['lytro', 'phone'\]"):
        leave_out(pairs, "leica")
    recipe = load_recipe(write_recipe(tmp_path, collection, data={"root": str(collection), "leave_out": "leica"}))
    with pytest.raises(ValueError, match="'leica'"):
        open_sources(recipe)


def test_a_collection_that_is_left_out_lends_no_depth_either(collection, tmp_path, monkeypatch):
    monkeypatch.setenv("RDDM_RUNS", str(tmp_path / "runs"))
    root = tmp_path / "data"
    shutil.copytree(collection, root)
    (root / "depth").mkdir()
    (root / "depth" / "manifest.csv").write_text("image,depth,type\na.png,b.png,labels\n")
    Image.new("L", (80, 72)).save(root / "real_pairs" / "i.png")
    (root / "real_pairs" / "manifest.csv").write_text(
        "blur,sharp,scene,split,index_map,n_slices\n"
        "train_blur.png,train_sharp.png,lytro/1,train,i.png,9\n"
        "dev_blur.png,dev_sharp.png,phone/1,train,i.png,9\n"
    )

    def lent(**left_out: str) -> list[str]:
        data = {"root": str(root), "segments": "", "depth": "depth", "pack_count": 4}
        sources = open_sources(load_recipe(write_recipe(tmp_path, collection, data=data | left_out)))
        assert sources.pack is not None
        return [photo.image.name for photo in sources.pack.depths]

    assert lent() == ["train_sharp.png", "dev_sharp.png"]
    assert lent(leave_out="lytro") == ["dev_sharp.png"]
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"pack", "pack-without-lytro"}
    # Of a data set's own layout no depth is known; only manifests name it.
    (root / "real_pairs" / "manifest.csv").unlink()
    for name in ("source", "target"):
        (root / "real_pairs" / "train_c" / name).mkdir(parents=True)
        shutil.copy(root / "real_pairs" / "train_sharp.png", root / "real_pairs" / "train_c" / name / "1.png")
    assert lent(layout="dpdd", pack="pack-dpdd") == []


def test_the_paper_s_mixture_only_crops_flips_and_turns(tmp_path):
    """From DPDD's own layout, whose parts are found by name."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (321, 321, 3), dtype=np.uint8)
    for folder in ("train_c/source", "train_c/target", "val_c/source", "val_c/target"):
        (tmp_path / "DPDD" / folder).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "DPDD" / folder / "1.png")
    recipe = load_recipe(RECIPES / "paper-dpdd.json")
    sources = open_sources(replace(recipe, data=replace(recipe.data, root=str(tmp_path))))
    assert len(sources.pairs) == 1 and sources.pack is None and sources.masked == []
    whole = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    windows = [whole[:, i : i + 320, j : j + 320] for i in (0, 1) for j in (0, 1)]
    turned = [torch.rot90(y, k, (1, 2)) for x in windows for y in (x, x.flip(2)) for k in range(4)]
    for index in range(6):
        sample = draw_sample(sources, recipe.mixture, index)
        assert torch.equal(sample["blurred"], sample["sharp"])
        assert any(torch.allclose(sample["sharp"], x, atol=1e-6) for x in turned)


def test_lfdof_is_trained_on_and_chosen_on_other_scenes(tmp_path, monkeypatch):
    picture = Image.new("RGB", (80, 72))
    for scene in range(10, 31):
        for path in (f"input/{scene}/{scene}_ap1_00.png", f"ground_truth/{scene}.png"):
            (tmp_path / "LFDOF" / "train_data" / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "LFDOF" / "train_data" / path)
    recipe = load_recipe(RECIPES / "paper-dpdd.json")
    recipe = replace(recipe, data=replace(recipe.data, root=str(tmp_path), pairs="LFDOF", layout="lfdof"))
    chosen_on = []
    monkeypatch.setattr(
        "rddm_core.training.validate.validate_joint", lambda _, pairs, __: chosen_on.extend(p.scene for p in pairs)
    )
    open_validation(recipe)(None, None)
    trained_on = {pair.scene for pair in open_sources(recipe).pairs}
    assert chosen_on == ["lfdof/19", "lfdof/29"]
    assert len(trained_on) == 19 and not trained_on & set(chosen_on)


def test_the_paper_s_recipe():
    """What Feng et al. 2025 state."""
    recipe = load_recipe(RECIPES / "paper-dpdd.json")
    assert (recipe.learning_rate, recipe.steps, recipe.batch) == (2e-4, 150_000, 8)
    assert (recipe.weight_decay, recipe.mixture.crop, recipe.decay_share) == (0.01, 320, 1.0)
    assert preset(recipe.preset).diffusion.timesteps == 1300


def test_silent_parts_have_no_effect_and_are_not_trained(tiny_config, narrow_networks):
    recipe = Recipe("x", "joint", silent=("estimator", "pre_deblur", "guidance", "state"))
    image = torch.rand(1, 3, 64, 64)
    model = build_model(recipe).eval()
    assert float(estimate_defocus_map(model, image).detach().max()) < 1e-6
    with torch.no_grad():
        assert torch.equal(model.pre_deblur(image, torch.rand(1, 1, 64, 64)), image)
        assert not any(stage.any() for stage in model.guidance(image))
        condition = model.denoiser.encode_condition(image, image[:, :1], model.guidance(image))
        first, second = (model.denoiser(torch.randn_like(image), torch.ones(1), condition) for _ in range(2))
        assert torch.equal(first, second) and first.any()
    trained = {id(p) for p in select_trainable(model, recipe)}
    state = [p for name, p in model.denoiser.named_parameters() if name.startswith("state_")]
    assert state and trained == {id(p) for p in model.denoiser.parameters()} - {id(p) for p in state}
    full = {id(p) for p in select_trainable(model, replace(recipe, silent=()))}
    assert trained < full
