"""What saved workflows and users rely on: ids, order, types, defaults; tooltips, help pages, translations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NODES = [
    "RDDMModelLoader",
    "RDDMExamplePhoto",
    "RDDMDefocusMap",
    "RDDMEdgeDefocusMap",
    "RDDMPreDeblur",
    "RDDMSampler",
    "RDDMResidualMerge",
    "RDDMResidualStatistics",
    "RDDMResidualPreview",
    "RDDMDeblur",
    "RDDMDeconvolve",
    "RDDMRenderDefocus",
    "RDDMCompare",
    "RDDMImageQuality",
]
FROZEN = ("input", "input_order", "output", "output_name")


@pytest.fixture
def object_info(pack: SimpleNamespace) -> dict[str, Any]:
    """As JSON gives it to the front end."""
    return json.loads(json.dumps({name: node.define_schema().object_info() for name, node in pack.nodes.items()}))


def all_inputs(info: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of every input by its key in translations; those of a choice are `choice_name` there."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}

    def take(groups: dict[str, Any], prefix: str) -> None:
        for group in groups.values():
            for name, (kind, options) in group.items():
                found[prefix + name] = name, kind, options
                if kind == "COMFY_DYNAMICCOMBO_V3":
                    for option in options["options"]:
                        take(option["inputs"], f"{prefix}{name}_")

    take(info["input"], "")
    return found


def frozen(info: dict[str, Any]) -> dict[str, Any]:
    """The part that must never change: texts and the files on this machine are none of it."""

    def without_texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_texts(item) for key, item in value.items() if key != "tooltip"}
        return [without_texts(item) for item in value] if isinstance(value, list) else value

    result = without_texts({key: info[key] for key in FROZEN})
    if "file" in result["input"]["required"]:
        result["input"]["required"]["file"][1]["options"] = []
    return result


def test_ids_order_types_and_defaults_are_frozen(object_info: dict[str, Any]) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text(encoding="utf-8"))
    assert list(object_info) == list(golden) == NODES
    for name in NODES:
        assert frozen(object_info[name]) == golden[name]
        # Saved widget values have positions: the order within the groups counts too, which == does not see.
        for group, names in object_info[name]["input_order"].items():
            assert list(object_info[name]["input"][group]) == names


@pytest.mark.parametrize("name", NODES)
def test_everything_is_explained(object_info: dict[str, Any], name: str) -> None:
    info = object_info[name]
    assert info["category"] == "RDDM defocus deblurring"
    assert len(info["description"]) > 20 and len(info["search_aliases"]) >= 3
    assert all(tooltip and tooltip.endswith(".") for tooltip in info["output_tooltips"])
    for identity, (_, kind, options) in all_inputs(info).items():
        assert options["tooltip"].endswith("."), identity
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], identity


@pytest.mark.parametrize("name", NODES)
def test_help_page_names_every_input_and_output(object_info: dict[str, Any], name: str) -> None:
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    info = object_info[name]
    assert page.startswith(f"# {info['display_name']}\n")
    assert f"]({name}.jpg)" in page and (ROOT / "web" / "docs" / f"{name}.jpg").is_file()
    for identity in [*info["input_order"]["required"], *info["input_order"].get("optional", []), *info["output_name"]]:
        assert f"- **{identity.replace('_', ' ')}**" in page, identity


def skeleton(page: str) -> list[str]:
    """What each line is, and what in it does not depend on the language: pictures and code."""
    lines, in_code = [], False
    for line in page.splitlines():
        fence = line.strip().startswith("```")
        if in_code or fence:
            lines.append(line)
            in_code ^= fence
        else:
            kind = re.match(r"#+ |- \*\*|- |!\[| *(?=.)|", line)
            lines.append((kind.group() if kind else "") + "".join(re.findall(r"\]\(.*?\)", line)))
    return lines


@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize("name", NODES)
def test_help_page_is_translated_whole(object_info: dict[str, Any], name: str, language: str) -> None:
    english = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    page = (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8")
    assert skeleton(page) == skeleton(english)
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[name]
    assert page.startswith(f"# {texts['display_name']}\n")
    outputs = [item["name"] for item in texts.get("outputs", {}).values()]
    shown = re.findall(r"^- \*\*(.+?)\*\*", page, re.MULTILINE)
    for label in [*(item["name"] for item in texts["inputs"].values()), *outputs]:
        assert label in shown, label
    for line in page.splitlines():
        if len(line) > 30 and not line.startswith(("!", "#", " ", "`")):
            assert any(ord(letter) > 0x3000 for letter in line), line


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_translations_are_complete(object_info: dict[str, Any], language: str) -> None:
    """Every text of the English file has one of its own; ids and formulas may stay as they are."""
    english, translated = (
        json.loads((ROOT / "locales" / code / "nodeDefs.json").read_text(encoding="utf-8")) for code in ("en", language)
    )

    def paths(value: Any, prefix: str = "") -> dict[str, str]:
        if isinstance(value, str):
            return {prefix: value}
        return {key: text for name, item in value.items() for key, text in paths(item, f"{prefix}/{name}").items()}

    expected, found = paths(english), paths(translated)
    assert list(found) == list(expected)
    for key, text in found.items():
        assert text.strip() and text == text.strip(), key
        if key.endswith(("tooltip", "description")):
            assert any(ord(letter) > 0x3000 for letter in text), key


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_translations_name_inputs_as_they_are_shown(language: str) -> None:
    """Whoever reads them never sees an input's id."""
    translated = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node, texts in translated.items():
        slots = [*texts["inputs"].values(), *texts["outputs"].values()]
        ids = [key for key, slot in texts["inputs"].items() if slot["name"] != key]
        for text in [texts["description"], *(slot["tooltip"] for slot in slots)]:
            found = re.findall(r"[A-Za-z_][A-Za-z_/.-]*", text)
            assert not set(found) & set(ids), (node, text)


def test_english_texts_are_those_of_the_schema(object_info: dict[str, Any]) -> None:
    translations = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert list(translations) == NODES
    for node, info in object_info.items():
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        assert translations[node] == {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                key: {"name": name.replace("_", " "), "tooltip": options["tooltip"]}
                for key, (name, _, options) in all_inputs(info).items()
            },
            "outputs": {
                str(i): {"name": output.replace("_", " "), "tooltip": tooltip}
                for i, (output, tooltip) in enumerate(outputs)
            },
        }


def test_only_the_v3_entry_point(pack: SimpleNamespace) -> None:
    # The host looks at NODE_CLASS_MAPPINGS first and never at comfy_entrypoint then.
    assert not hasattr(pack.module, "NODE_CLASS_MAPPINGS")
    assert (ROOT / pack.module.WEB_DIRECTORY / "docs").is_dir()


def test_what_the_pages_scripts_need_is_sent_again_when_nothing_runs(pack: SimpleNamespace) -> None:
    """The host keeps quiet about a node whose result is still known, unless it is told otherwise."""
    schemas = {name: node.define_schema() for name, node in pack.nodes.items()}
    assert schemas["RDDMDefocusMap"].has_intermediate_output and schemas["RDDMCompare"].is_output_node
