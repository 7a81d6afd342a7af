"""The subgraph blueprint in the real front end: what it would queue. That a host offers it is tested in tests/host."""

from __future__ import annotations

import json

from chromium import FrontEnd

from .mock_host import ROOT

BLUEPRINT = ROOT / "subgraphs" / "RDDM Four Stages.json"
SET = """(values) => {
  for (const widget of app.graph.nodes[0].widgets) if (widget.name in values) widget.value = values[widget.name];
}"""


def test_it_queues_the_four_stages_with_the_values_shown_outside(front_end: FrontEnd) -> None:
    front_end.errors.clear()
    front_end.load(json.loads(BLUEPRINT.read_text(encoding="utf-8")))
    shown = front_end.page.evaluate("() => app.graph.nodes[0].widgets.map(({ name }) => name)")
    assert [name for name in shown if name != "control_after_generate"] == [
        "seed",
        "steps",
        "strength",
        "protect_sharp",
    ]
    front_end.page.evaluate(SET, {"seed": 77, "strength": 0.5})
    _, prompt = front_end.graph()
    stages = {node["class_type"]: (name, node["inputs"]) for name, node in prompt.items()}
    assert sorted(stages) == ["RDDMDefocusMap", "RDDMPreDeblur", "RDDMResidualMerge", "RDDMSampler"]
    (found, _), (guess, guess_inputs), (sampler, sampler_inputs), (_, merge_inputs) = (
        stages[f"RDDM{stage}"] for stage in ("DefocusMap", "PreDeblur", "Sampler", "ResidualMerge")
    )
    assert sampler_inputs["seed"] == 77 and merge_inputs["strength"] == 0.5
    assert guess_inputs["map"] == sampler_inputs["map"] == merge_inputs["map"] == [found, 0]
    assert sampler_inputs["pre_deblurred"] == merge_inputs["pre_deblurred"] == [guess, 0]
    assert merge_inputs["residual"] == [sampler, 0]
    assert not front_end.errors
