"""The example workflows fit the schema of the nodes and need no other pack. No host is needed for this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .graphs import to_prompt

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
GOLDEN = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text(encoding="utf-8"))
CORE = {
    "LoadImage": {"input": {"required": {"image": ["COMBO", {"image_upload": True}]}}},
    "PreviewImage": {"input": {"required": {"images": ["IMAGE", {}]}}},
    "SaveImage": {"input": {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {}]}}},
}
SHIPPED = "rddm-lite.safetensors [included]"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["deblur"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_fits_the_schema(path: Path) -> None:
    prompt = to_prompt(read(path), {**GOLDEN, **CORE})
    for node in prompt.values():
        schema = {**GOLDEN, **CORE}[node["class_type"]]
        required = set(schema["input"]["required"])
        assert required <= set(node["inputs"]), node["class_type"]
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = prompt[value[0]]["class_type"]
                wanted = next(group[name][0] for group in schema["input"].values() if name in group)
                outputs = GOLDEN[source]["output"] if source in GOLDEN else ["IMAGE", "MASK"]
                assert outputs[value[1]] == wanted, (node["class_type"], name)
        if node["class_type"] == "RDDMModelLoader":
            assert node["inputs"]["file"] == SHIPPED
        if node["class_type"] == "LoadImage":
            assert (ROOT / "examples" / node["inputs"]["image"]).is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_has_a_picture(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 300
    assert path.with_suffix(".jpg").stat().st_size < 200_000


def test_left_over_values_are_noticed() -> None:
    workflow = read(WORKFLOWS[0])
    sampler = next(node for node in workflow["nodes"] if node["type"] == "RDDMSampler")
    sampler["widgets_values"].append(512)
    with pytest.raises(ValueError, match="left over"):
        to_prompt(workflow, {**GOLDEN, **CORE})
