"""The example workflows and the blueprint fit the schema of the nodes, are readable, and need no other pack.

No host is needed for this.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .graphs import NOT_EXECUTED, to_prompt, widget_inputs

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
OWN, CORE = (
    json.loads((ROOT / "tests" / "golden" / name).read_text(encoding="utf-8"))
    for name in ("object_info.json", "core_object_info.json")
)
SCHEMA = {**OWN, **CORE}
SHIPPED = "rddm-lite.safetensors [included]"
TITLE = 30
"""Height of a node's title, which lies above its position."""
STAGES = ["RDDMDefocusMap", "RDDMPreDeblur", "RDDMSampler", "RDDMResidualMerge"]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def takes(node: str, name: str) -> list[str]:
    """Types that an input accepts."""
    inputs = SCHEMA[node]["input"]
    return next(group[name][0] for group in inputs.values() if name in group).split(",")


def box(item: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node."""
    (x, y), (width, height) = item["pos"], item["size"]
    return x, y - TITLE, x + width, y + height


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == [
        "1-deblur-in-one-node",
        "2-four-stages",
        "3-map-by-hand-subject-only",
        "4-samples-and-uncertainty",
        "5-deblur-then-upscale",
        "6-batch-or-video",
        "7-classical-and-rddm",
        "8-deblur-then-refocus",
    ]


def test_every_node_of_the_pack_is_shown_somewhere() -> None:
    assert set(OWN) <= {node["type"] for path in WORKFLOWS for node in read(path)["nodes"]}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_fits_the_schema(path: Path) -> None:
    prompt = to_prompt(read(path), SCHEMA)
    for node in prompt.values():
        kind, inputs = node["class_type"], node["inputs"]
        assert set(SCHEMA[kind]["input"]["required"]) <= set(inputs), kind
        for name, value in inputs.items():
            if isinstance(value, list):
                source = prompt[value[0]]["class_type"]
                assert {SCHEMA[source]["output"][value[1]], "*"} & set(takes(kind, name)), (kind, name)
        if kind == "RDDMModelLoader":
            assert inputs["file"] == SHIPPED
        if kind == "LoadImage":
            assert (ROOT / "examples" / inputs["image"]).is_file()
        if kind == "RDDMExamplePhoto":
            assert (ROOT / "examples" / f"{inputs['name']}.blur.jpg").is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nothing_lies_over_anything_else(path: Path) -> None:
    for one, other in combinations(read(path)["nodes"], 2):
        (left, top, right, bottom), (x, y, x_end, y_end) = box(one), box(other)
        assert left >= x_end or x >= right or top >= y_end or y >= bottom, (one["type"], other["type"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_explains_itself_and_starts_from_the_example_photo(path: Path) -> None:
    types = [node["type"] for node in read(path)["nodes"]]
    assert NOT_EXECUTED & set(types) and "RDDMExamplePhoto" in types and "RDDMCompare" in types
    assert "LoadImage" not in types


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_has_a_picture(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 300
    assert path.with_suffix(".jpg").stat().st_size < 200_000


def test_left_over_values_are_noticed() -> None:
    workflow = read(ROOT / "example_workflows" / "2-four-stages.json")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "RDDMSampler")
    sampler["widgets_values"].append(512)
    with pytest.raises(ValueError, match="left over"):
        to_prompt(workflow, SCHEMA)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_blueprints_fit_the_schema(path: Path) -> None:
    blueprint = read(path)
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    (node,) = blueprint["nodes"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == path.stem == node["title"]
    inside = {inner["id"]: inner for inner in subgraph["nodes"]}
    assert [inner["type"] for inner in inside.values()] == STAGES
    for inner in inside.values():
        schema = {name: rest for group in SCHEMA[inner["type"]]["input"].values() for name, (_, *rest) in group.items()}
        for name, value in widget_inputs(inner, SCHEMA).items():
            assert schema[name][0].get("default", value) == value  # what a new node of that kind has
    for side in ("inputs", "outputs"):
        assert [slot["type"] for slot in node[side]] == [slot["type"] for slot in subgraph[side]]
    for link in subgraph["links"]:
        origin, target = inside.get(link["origin_id"]), inside.get(link["target_id"])
        outputs = SCHEMA[origin["type"]]["output"] if origin else [slot["type"] for slot in subgraph["inputs"]]
        assert outputs[link["origin_slot"]] == link["type"]
        if target is None:
            assert subgraph["outputs"][link["target_slot"]]["type"] == link["type"]
            continue
        slot = target["inputs"][link["target_slot"]]
        assert slot["link"] == link["id"] and link["type"] in takes(target["type"], slot["name"])
    for identity, widget in node["properties"]["proxyWidgets"]:
        assert widget in SCHEMA[inside[int(identity)]["type"]]["input_order"]["required"]


def test_there_is_a_blueprint() -> None:
    assert [path.stem for path in BLUEPRINTS] == ["RDDM Four Stages"]
