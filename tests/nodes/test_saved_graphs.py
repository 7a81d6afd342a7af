"""What users saved with an earlier release still fits: ids, inputs by name, widget values by position.

`tests/golden/graphs` holds, for every released set of nodes, their schemas (as `tests/golden/object_info.json` was) and
a graph as the front end saves it. Files are added there, never changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GRAPHS = Path(__file__).parents[1] / "golden" / "graphs"
SCHEMAS = sorted(GRAPHS.glob("*.schema.json"))
SAVED = {GRAPHS / path.name.replace(".schema", ""): path for path in SCHEMAS}
# The template that came with the first release; users have it among their own workflows.
SAVED[GRAPHS / "template-deblur-0.1.0.json"] = GRAPHS / "five-nodes-0.1.0.schema.json"
CHOICE = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", CHOICE)
CONTROLS = ("fixed", "increment", "decrement", "randomize")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def inputs_of(groups: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """In the order in which a node shows and a graph stores them."""
    return {name: (kind, opts) for g in ("required", "optional") for name, (kind, opts) in groups.get(g, {}).items()}


def widgets(info: dict[str, Any]) -> list[str]:
    """Inputs with a value of their own, in the order in which a graph stores these."""
    return [name for name, (kind, _) in inputs_of(info["input"]).items() if kind in WIDGETS]


def restore(groups: dict[str, Any], values: list[Any], prefix: str = "") -> dict[str, Any]:
    """Widget values by name, taken from the front of `values` as the front end does when it loads a graph.

    A widget that has come since finds no value and keeps its default. Raises ValueError for values that do not fit.
    """
    restored: dict[str, Any] = {}
    for name, (kind, options) in inputs_of(groups).items():
        if kind not in WIDGETS or not values:
            continue
        value = restored[prefix + name] = values.pop(0)
        check(prefix + name, kind, options, value)
        if options.get("control_after_generate") and values.pop(0) not in CONTROLS:
            raise ValueError(f"no control behind {name}")
        if kind == CHOICE:
            chosen = next(option for option in options["options"] if option["key"] == value)
            restored |= restore(chosen["inputs"], values, f"{prefix}{name}.")
    return restored


def check(name: str, kind: str, options: dict[str, Any], value: Any) -> None:
    """Raise ValueError for what the widget could not hold."""
    if kind in ("INT", "FLOAT"):
        is_number = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
        fits = is_number and options["min"] <= value <= options["max"]
    elif kind in ("COMBO", CHOICE):
        fits = value in [option["key"] if kind == CHOICE else option for option in options["options"]]
    else:
        fits = isinstance(value, bool if kind == "BOOLEAN" else str)
    if not fits:
        raise ValueError(f"{name} cannot hold {value!r}")


@pytest.fixture
def object_info(pack: SimpleNamespace) -> dict[str, Any]:
    """Of today's nodes, as JSON gives it to the front end."""
    return json.loads(json.dumps({name: node.define_schema().object_info() for name, node in pack.nodes.items()}))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_released_schemas_are_prefixes_of_todays(object_info: dict[str, Any], path: Path) -> None:
    for name, released in read(path).items():
        info = object_info[name]
        assert widgets(info)[: len(widgets(released))] == widgets(released)
        for group, inputs in released["input"].items():
            today = info["input"][group]
            assert {key: kind for key, (kind, _) in inputs.items()}.items() <= {
                key: kind for key, (kind, _) in today.items()
            }.items()
            # New inputs stand behind the old ones.
            assert list(today)[: len(inputs)] == list(inputs)
        # What has come since must be optional, or prompts saved in API form would be refused.
        assert list(info["input"].get("required", {})) == list(released["input"].get("required", {}))
        assert info["output"][: len(released["output"])] == released["output"]
        assert info["output_name"][: len(released["output"])] == released["output_name"]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_released_defaults_and_choices_stand(object_info: dict[str, Any], path: Path) -> None:
    """A value that could be set can be set today; a widget left alone means what it meant."""
    for name, released in read(path).items():
        for identity, (kind, before) in inputs_of(released["input"]).items():
            _, now = inputs_of(object_info[name]["input"])[identity]
            assert now.get("default") == before.get("default"), (name, identity)
            if kind in ("INT", "FLOAT"):
                assert now["min"] <= before["min"] and before["max"] <= now["max"], (name, identity)
            if kind == "COMBO":
                assert set(before["options"]) <= set(now["options"]), (name, identity)
            if kind == CHOICE:
                choices = [
                    {option["key"]: list(inputs_of(option["inputs"])) for option in info["options"]}
                    for info in (before, now)
                ]
                assert choices[0].items() <= choices[1].items(), (name, identity)


@pytest.mark.parametrize(("path", "schema"), SAVED.items(), ids=[path.stem for path in SAVED])
def test_saved_graphs_load(object_info: dict[str, Any], path: Path, schema: Path) -> None:
    graph = read(path)
    nodes = {node["id"]: node for node in graph["nodes"] if node["type"].startswith("RDDM")}
    assert {node["type"] for node in nodes.values()} == set(read(schema))
    for node in nodes.values():
        info = object_info[node["type"]]
        values = list(node.get("widgets_values") or [])
        restored = restore(info["input"], values)
        assert not values, f"{node['type']}: values are left over"
        connectable = {name for name, (kind, _) in inputs_of(info["input"]).items() if kind not in WIDGETS}
        saved = {slot["name"] for slot in node["inputs"]}
        assert saved <= connectable | set(restored)
        assert [slot["type"] for slot in node["outputs"]] == info["output"][: len(node["outputs"])]
    for _, source, output, target, slot, kind in graph["links"]:
        if source in nodes:
            assert object_info[nodes[source]["type"]]["output"][output] == kind
        if target in nodes:
            name = nodes[target]["inputs"][slot]["name"]
            assert kind in inputs_of(object_info[nodes[target]["type"]]["input"])[name][0].split(",")


def test_values_return_to_the_widgets_that_they_were_saved_from(object_info: dict[str, Any]) -> None:
    (node,) = [n for n in read(GRAPHS / "fourteen-nodes-0.1.0.json")["nodes"] if n["type"] == "RDDMSampler"]
    assert restore(object_info["RDDMSampler"]["input"], list(node["widgets_values"])) == {
        "seed": 7,
        "steps": 4,
        "eta": 0.5,
        "samples": 8,
        "tiling": "manual",
        "tiling.tile": 768,
        "schedule": "quadratic",
        "batch_noise": "shared",
    }


def test_a_value_in_the_wrong_place_is_seen(object_info: dict[str, Any]) -> None:
    """The check itself: a widget put in front would be found out."""
    with pytest.raises(ValueError, match="tiling cannot hold 1"):
        restore(object_info["RDDMSampler"]["input"], [0, "fixed", 0, 0, 1, 1, "auto"])
