"""What users saved with an earlier release still fits: ids, inputs by name, widget values by position."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GRAPHS = Path(__file__).parents[1] / "golden" / "graphs"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")


def widgets(info: dict[str, Any]) -> list[str]:
    """Inputs with a value of their own, in the order in which a graph stores these."""
    groups = [info["input"].get(group, {}) for group in ("required", "optional")]
    return [name for inputs in groups for name, (kind, _) in inputs.items() if kind in WIDGETS]


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.schema.json")), ids=lambda path: path.stem)
def test_released_schemas_are_prefixes_of_todays(pack: SimpleNamespace, path: Path) -> None:
    for name, released in json.loads(path.read_text(encoding="utf-8")).items():
        info = pack.nodes[name].define_schema().object_info()
        assert widgets(info)[: len(widgets(released))] == widgets(released)
        for group, inputs in released["input"].items():
            assert {key: kind for key, (kind, _) in inputs.items()}.items() <= {
                key: kind for key, (kind, _) in info["input"][group].items()
            }.items()
        # What has come since must be optional, or prompts saved in API form would be refused.
        assert list(info["input"]["required"]) == list(released["input"]["required"])
        assert info["output"][: len(released["output"])] == released["output"]


@pytest.mark.parametrize(
    "path", [p for p in sorted(GRAPHS.glob("*.json")) if ".schema" not in p.name], ids=lambda path: path.stem
)
def test_saved_graphs_load(pack: SimpleNamespace, path: Path) -> None:
    nodes = [n for n in json.loads(path.read_text(encoding="utf-8"))["nodes"] if n["type"].startswith("RDDM")]
    assert nodes
    for node in nodes:
        info = pack.nodes[node["type"]].define_schema().object_info()
        known = {name for group in info["input"].values() for name in group}
        assert {slot["name"].split(".")[0] for slot in node["inputs"]} <= known
        assert [slot["type"] for slot in node["outputs"]] == info["output"][: len(node["outputs"])]
