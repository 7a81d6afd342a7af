"""The pack in a real ComfyUI, over HTTP as the front end talks to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_host import PACK, ROOT, Host, Run

from rddm_core import pipeline
from rddm_core.checkpoint import load_checkpoint

from .graphs import chain

NODES = list(json.loads((ROOT / "tests/golden/object_info.json").read_text(encoding="utf-8")))
TINY = "tiny.safetensors"
STEP = 1 / 255


@pytest.fixture(scope="module")
def object_info(host: Host) -> dict[str, Any]:
    return host.get("/object_info")


@pytest.fixture(scope="module")
def photo(host: Host) -> str:
    """A detail of a real photograph, as PNG so that every program reads the same pixels."""
    with Image.open(ROOT / "examples" / "sign.blur.jpg") as picture:
        return host.add_input(picture.crop((80, 60, 400, 300)), "photo.png")


def saved(host: Host, run: Run, node: str = "save") -> list[np.ndarray]:
    """Pictures that a node saved, 0..1."""
    assert run.history["status"]["status_str"] == "success", run.history["status"]["messages"]
    return [np.asarray(host.view(file), dtype=np.float32) / 255 for file in run.history["outputs"][node]["images"]]


def pixels(path: Path) -> torch.Tensor:
    """[1, 3, H, W] in 0..1."""
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).movedim(-1, 0)[None]


# ---------------------------------------------------------------- what the front end is told


def test_object_info_is_the_golden_one(object_info: dict[str, Any]) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text(encoding="utf-8"))

    def without_texts(value: Any) -> Any:
        if isinstance(value, dict):  # the host adds hidden inputs to nodes that show something; no graph saves them
            return {key: without_texts(item) for key, item in value.items() if key not in ("tooltip", "hidden")}
        return [without_texts(item) for item in value] if isinstance(value, list) else value

    for name in NODES:
        frozen = without_texts({key: object_info[name][key] for key in golden[name]})
        if name == "RDDMModelLoader":
            frozen["input"]["required"]["file"][1]["options"] = []
        assert frozen == golden[name]


def test_the_loader_lists_own_and_extra_folders(object_info: dict[str, Any]) -> None:
    files = object_info["RDDMModelLoader"]["input"]["required"]["file"][1]["options"]
    shipped = sorted(path.name for path in (ROOT / "rddm_core" / "weights").glob("*.safetensors"))
    assert files == [f"{name} [included]" for name in shipped] + ["elsewhere.safetensors", TINY]


def test_help_translations_and_templates_are_served(host: Host) -> None:
    for name in NODES:
        page = host.get(f"/extensions/{PACK}/docs/{name}.md")
        assert page == (ROOT / "web" / "docs" / f"{name}.md").read_bytes()
        assert host.get(f"/extensions/{PACK}/docs/{name}/zh.md").startswith(b"# ")
    assert set(NODES) <= set(host.get("/i18n")["en"]["nodeDefs"])
    assert "1-deblur-in-one-node" in host.get("/api/workflow_templates")[PACK]
    assert host.get(f"/api/workflow_templates/{PACK}/1-deblur-in-one-node.json")["nodes"]


# ---------------------------------------------------------------- running


def test_the_chain_gives_the_command_lines_picture(
    host: Host, photo: str, object_info: dict[str, Any], tmp_path: Path
) -> None:
    file = object_info["RDDMModelLoader"]["input"]["required"]["file"][1]["options"][0]
    shipped = file.endswith("[included]")
    model = [] if shipped else ["--model", str(host.base / "models" / "rddm" / TINY)]
    command = [sys.executable, "-m", "rddm_core", "deblur", str(host.base / "input" / photo), "--seed", "7"]
    command += ["-o", str(tmp_path / "cli.png"), "--working-size", "full", "--save-map", *model]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    prompt = chain(photo, file if shipped else TINY, sampler={"seed": 7})
    (nodes,) = saved(host, host.run(prompt))
    expected = pixels(tmp_path / "cli.png")[0].movedim(0, -1).numpy()
    assert np.abs(nodes - expected).max() <= STEP + 1e-6
    blurred = pixels(host.base / "input" / photo)[0].movedim(0, -1).numpy()
    assert np.abs(nodes - blurred).mean() > STEP  # both did something


def test_progress_and_previews(host: Host, photo: str) -> None:
    changes = {"seed": 11, "steps": 4, "samples": 2, "tiling": "manual", "tiling.tile": 128}
    run = host.run(chain(photo, TINY, sampler=changes), previews=True)
    saved(host, run)
    progress = [data for data in run.of_type("progress") if data["node"] == "sampler"]
    values = [data["value"] for data in progress]
    tiles, last = progress[-1]["max"] // 8, progress[-1]
    assert tiles > 4 and last["max"] == 8 * tiles and last["value"] == last["max"]
    assert values == sorted(values) and len(set(values)) > 4
    assert run.previews and all(picture.size == (256, 192) for picture in run.previews)  # --preview-size 256


def test_no_previews_where_they_are_off(host: Host, photo: str) -> None:
    run = host.run(chain(photo, TINY, sampler={"seed": 12}))
    saved(host, run)
    assert not run.previews


def test_interrupt(host: Host, photo: str) -> None:
    sent = []

    def stop(message: dict[str, Any]) -> dict[str, Any] | None:
        if not sent and message["type"] == "progress" and message["data"]["node"] == "sampler":
            sent.append(message["data"]["value"])
            return {"path": "/interrupt", "data": {}}
        return None

    changes = {"seed": 13, "steps": 500, "tiling": "manual", "tiling.tile": 128}
    run = host.run(chain(photo, TINY, sampler=changes), on_message=stop)
    assert run.types()[-1] == "execution_interrupted"
    last = [data for data in run.of_type("progress") if data["node"] == "sampler"][-1]
    assert last["value"] < last["max"] / 2
    saved(host, host.run(chain(photo, TINY, sampler={"seed": 14})))  # and it goes on


def test_only_what_changed_runs_again(host: Host, photo: str) -> None:
    first = host.run(chain(photo, TINY, sampler={"seed": 15}))
    second = host.run(chain(photo, TINY, sampler={"seed": 15}, merge={"strength": 0.5}))
    assert second.executed() == {"merge", "save"}
    third = host.run(chain(photo, TINY, sampler={"seed": 16}, merge={"strength": 0.5}))
    assert third.executed() == {"sampler", "merge", "save"}
    full, half = saved(host, first)[0], saved(host, second)[0]
    blurred = pixels(host.base / "input" / photo)[0].movedim(0, -1).numpy()
    unclipped = (full > 0) & (full < 1)
    assert unclipped.mean() > 0.5 and np.abs(half - (blurred + full) / 2)[unclipped].max() <= 2 * STEP


def test_the_map_to_be_painted_is_sent_again_though_nothing_runs(host: Host, photo: str) -> None:
    shown = []
    for strength in (0.8, 0.9):
        run = host.run(chain(photo, TINY, sampler={"seed": 16}, merge={"strength": strength}))
        saved(host, run)
        (output,) = [data["output"] for data in run.of_type("executed") if data["node"] == "map"]
        shown.append(output["rddm_paintable"])
    assert "map" not in run.executed() and shown[0] == shown[1]


def test_strength_zero_is_the_photo(host: Host, photo: str) -> None:
    (picture,) = saved(host, host.run(chain(photo, TINY, merge={"strength": 0.0})))
    assert np.array_equal(picture, pixels(host.base / "input" / photo)[0].movedim(0, -1).numpy())


def test_a_map_painted_by_hand(host: Host, photo: str) -> None:
    """The mask editor saves what was painted as transparency; here with another size than the photo."""
    alpha = np.full((60, 80), 255, dtype=np.uint8)
    alpha[10:40, 20:70] = 0
    rgba = np.dstack((np.zeros((60, 80, 3), dtype=np.uint8), alpha))
    host.add_input(Image.fromarray(rgba), "painted.png")
    prompt = chain(photo, TINY, guess={"map": ["painted", 1]}, sampler={"map": ["painted", 1], "seed": 4})
    prompt["painted"] = {"class_type": "LoadImage", "inputs": {"image": "painted.png"}}
    (picture,) = saved(host, host.run(prompt))

    networks = load_checkpoint(host.base / "models" / "rddm" / TINY)
    blurred, painted = pixels(host.base / "input" / photo), torch.from_numpy(1 - alpha.astype(np.float32) / 255)
    settings = pipeline.DeblurSettings(seed=4, working_size="full")
    expected = pipeline.deblur(networks, blurred, settings=settings, defocus_map=painted[None, None])
    assert np.abs(picture - expected.image[0].movedim(0, -1).numpy()).max() <= STEP + 1e-6
    estimated = pipeline.deblur(networks, blurred, settings=settings)
    assert np.abs(picture - estimated.image[0].movedim(0, -1).numpy()).max() > 2 * STEP


def test_transparency_batches_and_noise_of_the_host(host: Host, photo: str) -> None:
    prompt = chain(photo, TINY, sampler={"samples": 2, "noise": ["noise", 0]}, merge={"reduction": "mean"})
    prompt |= {
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}},
        "circle": {"class_type": "SolidMask", "inputs": {"value": 0.25, "width": 320, "height": 240}},
        "alpha": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["photo", 0], "alpha": ["circle", 0]}},
        "two": {"class_type": "RepeatImageBatch", "inputs": {"image": ["alpha", 0], "amount": 2}},
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["sampler", 1]}},
    }
    for node, slot in (("map", "image"), ("guess", "image"), ("merge", "original")):
        prompt[node]["inputs"][slot] = ["two", 0]
    run = host.run(prompt)
    pictures, previews = saved(host, run), saved(host, run, "preview")
    assert len(pictures) == 2 and len(previews) == 4
    for picture in (*pictures, *previews):
        assert picture.shape == (240, 320, 4)
        assert np.abs(picture[..., 3] - 0.75).max() <= STEP  # a mask is the opposite of alpha
    assert np.abs(pictures[0] - pictures[1]).max() > STEP  # noise of its own for each


def test_runs_again_after_models_were_unloaded(host: Host, photo: str) -> None:
    before = saved(host, host.run(chain(photo, TINY, sampler={"seed": 20})))[0]
    host.post("/free", {"unload_models": True, "free_memory": True})
    again = host.run(chain(photo, TINY, sampler={"seed": 20}))
    assert {"loader", "sampler", "merge"} <= again.executed()
    assert np.array_equal(before, saved(host, again)[0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision(host: Host, photo: str, dtype: str) -> None:
    exact = saved(host, host.run(chain(photo, TINY, sampler={"seed": 21})))[0]
    half = saved(host, host.run(chain(photo, TINY, loader={"dtype": dtype}, sampler={"seed": 21})))[0]
    assert 0 < np.abs(half - exact).max() < 12 * STEP


def test_errors_reach_the_user(host: Host, photo: str) -> None:
    host.add_input(Image.new("RGB", (300, 200), "grey"), "other.png")
    prompt = chain(photo, TINY, merge={"original": ["other", 0]})
    prompt["other"] = {"class_type": "LoadImage", "inputs": {"image": "other.png"}}
    run = host.run(prompt)
    (error,) = run.of_type("execution_error")
    assert error["node_id"] == "merge"
    assert "pre_deblurred is 320x240, but original is 300x200" in error["exception_message"]
