"""Inputs, outputs and schemas of nodes, and their description for the front end.

`Schema.object_info` gives what the host answers under /object_info. That both agree is tested on the real host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class ControlAfterGenerate(str, Enum):
    """What happens to a seed after each run."""

    fixed = "fixed"
    randomize = "randomize"


class Input:
    """An input: its type and what the front end is told about it, in the order that the host has."""

    def __init__(self, io_type: str, id: str, *, optional: bool = False, **options: Any) -> None:
        self.io_type, self.id, self.optional = io_type, id, optional
        self.options = {key: value for key, value in options.items() if value is not None}

    def as_info(self) -> tuple[str, dict[str, Any]]:
        """As the front end gets it."""
        return self.io_type, self.options


@dataclass
class Output:
    """An output."""

    io_type: str
    id: str
    display_name: str
    tooltip: str


class Type:
    """A type of connection: a namespace that makes inputs and outputs."""

    def __init__(self, io_type: str, **defaults: Any) -> None:
        self.io_type, self.defaults = io_type, defaults

    def Input(self, id: str, **options: Any) -> Input:  # noqa: N802 - the host's name
        """An input of this type."""
        return Input(self.io_type, id, **{**self.defaults, **options})

    def Output(self, id: str, display_name: str, tooltip: str) -> Output:  # noqa: N802 - the host's name
        """An output of this type."""
        return Output(self.io_type, id, display_name, tooltip)


class DynamicCombo(Type):
    """A choice that brings inputs of its own."""

    @dataclass
    class Option:
        """One choice."""

        key: str
        inputs: list[Input]

        def as_info(self) -> dict[str, Any]:
            """As the front end gets it."""
            return {"key": self.key, "inputs": _grouped(self.inputs)}

    def __init__(self) -> None:
        super().__init__("COMFY_DYNAMICCOMBO_V3")

    def Input(self, id: str, *, options: list[Option], **others: Any) -> Input:  # noqa: N802 - the host's name
        """The choice."""
        return super().Input(id, options=[option.as_info() for option in options], **others)


class MultiType:
    """An input that takes several types."""

    @staticmethod
    def Input(id: str, types: list[Type], **options: Any) -> Input:  # noqa: N802 - the host's name
        """An input of these types."""
        return Input(",".join(kind.io_type for kind in types), id, **options)


def Custom(io_type: str) -> Type:  # noqa: N802 - the host's name
    """A type of the pack's own."""
    return Type(io_type)


Image, Mask, Noise = Type("IMAGE"), Type("MASK"), Type("NOISE")
Int, Float, String = Type("INT"), Type("FLOAT"), Type("STRING")
Combo = Type("COMBO", multiselect=False)
DynamicCombo = DynamicCombo()  # type: ignore[assignment,misc]


@dataclass
class Schema:
    """A node as declared."""

    node_id: str
    display_name: str
    category: str
    description: str
    search_aliases: list[str]
    inputs: list[Input]
    outputs: list[Output] = field(default_factory=list)
    is_output_node: bool = False
    has_intermediate_output: bool = False

    def object_info(self) -> dict[str, Any]:
        """The part of the host's /object_info that a pack decides."""
        grouped = _grouped(self.inputs)
        return {
            "input": grouped,
            "input_order": {group: list(inputs) for group, inputs in grouped.items()},
            "output": [output.io_type for output in self.outputs],
            "output_name": [output.display_name for output in self.outputs],
            "output_tooltips": [output.tooltip for output in self.outputs],
            "name": self.node_id,
            "display_name": self.display_name,
            "category": self.category,
            "description": self.description,
            "search_aliases": self.search_aliases,
        }


def _grouped(inputs: list[Input]) -> dict[str, Any]:
    groups: dict[str, Any] = {"required": {}}
    for item in inputs:
        groups.setdefault("optional" if item.optional else "required", {})[item.id] = item.as_info()
    return groups


class NodeOutput:
    """What a node returns."""

    def __init__(self, *values: Any, ui: Any = None) -> None:
        self.result, self.ui = values, ui


class ComfyNode:
    """Base of all nodes."""
