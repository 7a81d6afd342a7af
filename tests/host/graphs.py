"""Prompts in API form: a chain of the five nodes, and the conversion of workflows that the front end saved."""

from __future__ import annotations

from typing import Any

# Kept out of the widget values by the front end, or put behind the value of a seed without being an input.
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
NOT_EXECUTED = {"Note", "MarkdownNote"}


def chain(image: str, file: str, **changes: Any) -> dict[str, Any]:
    """photo -> map -> first guess -> residual -> merged -> saved. `changes`: e.g. sampler={"seed": 3}."""
    inputs: dict[str, tuple[str, dict[str, Any]]] = {
        "photo": ("LoadImage", {"image": image}),
        "loader": ("RDDMModelLoader", {"file": file, "dtype": "auto"}),
        "map": ("RDDMDefocusMap", {"model": ["loader", 0], "image": ["photo", 0]}),
        "guess": ("RDDMPreDeblur", {"model": ["loader", 0], "image": ["photo", 0], "map": ["map", 0]}),
        "sampler": (
            "RDDMSampler",
            {
                "model": ["loader", 0],
                "pre_deblurred": ["guess", 0],
                "map": ["map", 0],
                "seed": 0,
                "steps": 0,
                "eta": 0.0,
                "samples": 1,
                "tiling": "auto",
            },
        ),
        "merge": (
            "RDDMResidualMerge",
            {
                "original": ["photo", 0],
                "pre_deblurred": ["guess", 0],
                "residual": ["sampler", 0],
                "strength": 1.0,
                "protect_sharp": 0.0,
                "reduction": "first",
            },
        ),
        "save": ("SaveImage", {"images": ["merge", 0], "filename_prefix": "chain"}),
    }
    return {
        name: {"class_type": kind, "inputs": {**values, **changes.get(name, {})}}
        for name, (kind, values) in inputs.items()
    }


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A saved workflow (version 0.4, no subgraphs) in API form, as the front end would queue it.

    Widget values are saved by position; their order comes from the schema. An optional input that came after the
    workflow was saved has its default. Raises ValueError where values are left over or missing: the saved workflow and
    the schema no longer fit.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_EXECUTED:
            continue
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": {**widget_inputs(node, object_info), **linked}}
    return prompt


def widget_inputs(node: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the widgets of a saved node hold, by name. Raises ValueError where values are left over or missing."""
    values = list(node.get("widgets_values", []))
    inputs: dict[str, Any] = {}
    for group in ("required", "optional"):
        schema = object_info[node["type"]]["input"].get(group, {})
        _take(schema, "", values, inputs, may_lack=group == "optional")
    if values:
        raise ValueError(f"{node['type']}: widget values are left over: {values}")
    return inputs


def _take(
    schema: dict[str, Any], prefix: str, values: list[Any], inputs: dict[str, Any], *, may_lack: bool = False
) -> None:
    for name, (kind, *rest) in schema.items():
        options = rest[0] if rest else {}
        identity = prefix + name
        if kind == "COMFY_DYNAMICCOMBO_V3":
            inputs[identity] = values.pop(0)
            chosen = next(option for option in options["options"] if option["key"] == inputs[identity])
            for nested in chosen["inputs"].values():
                _take(nested, f"{identity}.", values, inputs)
        elif isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            if not values and may_lack:
                inputs[identity] = options["default"]
                continue
            if not values:
                raise ValueError(f"no value for {identity}")
            inputs[identity] = values.pop(0)
            if options.get("control_after_generate") and values and values[0] in CONTROLS:
                values.pop(0)
            if options.get("image_upload") and values and values[0] == "image":
                values.pop(0)  # the upload button
