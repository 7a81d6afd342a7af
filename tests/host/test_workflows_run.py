"""Every example workflow runs on a real ComfyUI as it is shipped, and the blueprint is offered there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from real_host import ROOT, Host, Run

from .graphs import to_prompt

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
TINY = "tiny.safetensors"
ENLARGED = {"5-deblur-then-upscale": 4}
"""How much larger than the photograph the result is, where it is."""
FRAMES = {"6-batch-or-video": 3}
STEP = 1 / 255


@pytest.fixture(scope="module")
def object_info(host: Host) -> dict[str, Any]:
    return host.get("/object_info")


def prompt_of(host: Host, path: Path, object_info: dict[str, Any]) -> dict[str, Any]:
    """The workflow in API form, with what it needs in its place."""
    prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)
    files = object_info["RDDMModelLoader"]["input"]["required"]["file"][1]["options"]
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            host.add_input(ROOT / "examples" / node["inputs"]["image"], node["inputs"]["image"])
        if node["class_type"] == "RDDMModelLoader" and node["inputs"]["file"] not in files:
            node["inputs"]["file"] = TINY  # a checkout without weights
    return prompt


def succeeded(run: Run) -> dict[str, Any]:
    """The results by node."""
    assert run.history["status"]["status_str"] == "success", run.history["status"]["messages"]
    return run.history["outputs"]


def pictures(host: Host, files: list[dict[str, str]]) -> list[np.ndarray]:
    """What a node saved, 0..1."""
    return [np.asarray(host.view(file).convert("RGB"), dtype=np.float32) / 255 for file in files]


def node_of(prompt: dict[str, Any], kind: str) -> str:
    """The only node of that type."""
    (found,) = [name for name, node in prompt.items() if node["class_type"] == kind]
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs(host: Host, object_info: dict[str, Any], path: Path) -> None:
    prompt = prompt_of(host, path, object_info)
    outputs = succeeded(host.run(prompt))
    for name, node in prompt.items():
        if node["class_type"] in ("SaveImage", "PreviewImage", "MaskPreview"):
            assert all(picture.std() > 0.01 for picture in pictures(host, outputs[name]["images"])), node["class_type"]
        if node["class_type"] == "RDDMImageQuality":
            assert "PSNR" in outputs[name]["text"][0]
    compared = outputs[node_of(prompt, "RDDMCompare")]
    before, after = (pictures(host, compared[f"rddm_{side}"]) for side in ("before", "after"))
    assert len(before) == len(after) == FRAMES.get(path.stem, 1)
    photo = prompt[node_of(prompt, "RDDMExamplePhoto")]["inputs"]["name"]
    with Image.open(ROOT / "examples" / f"{photo}.blur.jpg") as original:
        width, height = original.size
    scale = ENLARGED.get(path.stem, 1)
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape == (scale * height, scale * width, 3)
        assert np.abs(one - other).max() > 2 * STEP


def test_only_the_subject_changes(host: Host, object_info: dict[str, Any]) -> None:
    prompt = prompt_of(host, ROOT / "example_workflows" / "3-map-by-hand-subject-only.json", object_info)
    compared = succeeded(host.run(prompt))[node_of(prompt, "RDDMCompare")]
    (before,), (after,) = (pictures(host, compared[f"rddm_{side}"]) for side in ("before", "after"))
    changed = np.abs(after - before).max(axis=-1) > 0
    assert changed[80:540, 50:450].mean() > 0.1
    changed[80:540, 50:450] = False
    assert not changed.any()


def test_shared_noise_gives_equal_frames_the_same_picture(host: Host, object_info: dict[str, Any]) -> None:
    prompt = prompt_of(host, ROOT / "example_workflows" / "6-batch-or-video.json", object_info)
    prompt[node_of(prompt, "RDDMModelLoader")]["inputs"]["file"] = TINY
    compare = node_of(prompt, "RDDMCompare")
    frames = pictures(host, succeeded(host.run(prompt))[compare]["rddm_after"])
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    prompt[node_of(prompt, "RDDMDeblur")]["inputs"]["batch_noise"] = "own"
    frames = pictures(host, succeeded(host.run(prompt))[compare]["rddm_after"])
    assert not np.array_equal(frames[0], frames[1])


CHANGES = [
    ("RDDMSampler", {"seed": 5}),
    ("RDDMSampler", {"steps": 3}),
    ("RDDMResidualMerge", {"strength": 0.5}),
    ("RDDMResidualMerge", {"protect_sharp": 0.5}),
    ("RDDMResidualPreview", {"gain": 4.0}),
]


def test_a_downstream_widget_never_runs_an_upstream_stage_again(host: Host, object_info: dict[str, Any]) -> None:
    prompt = prompt_of(host, ROOT / "example_workflows" / "2-four-stages.json", object_info)
    prompt[node_of(prompt, "RDDMModelLoader")]["inputs"]["file"] = TINY
    succeeded(host.run(prompt))
    for kind, values in CHANGES:
        name = node_of(prompt, kind)
        prompt[name]["inputs"] |= values
        run = host.run(prompt)
        succeeded(run)
        assert run.executed() == downstream(prompt, name), (kind, values)


def downstream(prompt: dict[str, Any], name: str) -> set[str]:
    """A node and all that depends on it."""
    found = {name}
    while True:
        more = {
            other
            for other, node in prompt.items()
            if any(isinstance(value, list) and value[0] in found for value in node["inputs"].values())
        }
        if more <= found:
            return found
        found |= more


def test_the_blueprint_is_offered(host: Host) -> None:
    offered = host.get("/global_subgraphs")
    (identity,) = [key for key, entry in offered.items() if entry["name"] == "RDDM Four Stages"]
    assert offered[identity]["source"] == "custom_node"
    served = json.loads(host.get(f"/global_subgraphs/{identity}")["data"])
    assert served == json.loads((ROOT / "subgraphs" / "RDDM Four Stages.json").read_text(encoding="utf-8"))
