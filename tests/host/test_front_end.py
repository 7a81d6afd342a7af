"""A workflow of the first release in the real front end, in both render modes, on the real host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import RENDERERS, FrontEnd, screenshots
from real_host import ROOT, Host

from .graphs import to_prompt

WORKFLOW = ROOT / "tests" / "golden" / "graphs" / "template-deblur-0.1.0.json"
TINY = "tiny.safetensors"

SET_WIDGETS = """async (changes) => {
  for (const [type, name, value] of changes) {
    const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}"""


@pytest.fixture(params=list(RENDERERS))
def front_end(request: pytest.FixtureRequest, browser: Any, host: Host, tmp_path: Path) -> Iterator[FrontEnd]:
    """The front end with the workflow loaded; it leaves a picture of its last moment."""
    host.add_input(ROOT / "examples" / "sign.blur.jpg", "sign.blur.jpg")  # before the front end asks what there is
    front_end = FrontEnd(browser, host.url)
    front_end.ready(nodes_2=RENDERERS[request.param])
    front_end.load(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    front_end.pause(1500)
    yield front_end
    name = request.node.name.replace("[", "-").replace("]", "").replace(" ", "")
    front_end.shoot(screenshots(tmp_path) / f"{name}.png")
    front_end.page.close()


def test_the_workflow_runs(front_end: FrontEnd, host: Host) -> None:
    saved, prompt = front_end.graph()
    info = host.get("/object_info")
    queued = {name: {key: node[key] for key in ("class_type", "inputs")} for name, node in prompt.items()}
    assert queued == to_prompt(saved, info) == to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), info)

    if not (ROOT / "rddm_core" / "weights" / "rddm-lite.safetensors").is_file():  # a checkout without weights
        front_end.page.evaluate(SET_WIDGETS, [["RDDMModelLoader", "file", TINY]])
    before = len(host.get("/history"))
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait_for(lambda: len(host.get("/history")) > before)
    run = list(host.get("/history").values())[-1]
    assert run["status"]["status_str"] == "success", run["status"]["messages"]
    front_end.pause(1500)
    shown = "(type) => (app.nodeOutputs[app.graph.nodes.find((node) => node.type === type).id]?.images ?? []).length"
    for kind in ("SaveImage", "PreviewImage"):
        assert front_end.page.evaluate(shown, kind) == 1
    assert not front_end.errors


def test_choices_bring_their_own_inputs_and_survive_saving(front_end: FrontEnd, host: Host) -> None:
    changes = [["RDDMSampler", "tiling", "manual"], ["RDDMSampler", "tiling.tile", 256], ["RDDMSampler", "seed", 77]]
    changes += [["RDDMResidualMerge", "reduction", "index"], ["RDDMResidualMerge", "reduction.index", 3]]
    front_end.page.evaluate(SET_WIDGETS, changes)
    saved, prompt = front_end.graph()
    front_end.load(saved)
    front_end.pause(1000)
    _, again = front_end.graph()
    inputs = {node["class_type"]: node["inputs"] for node in again.values()}
    assert inputs == {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert inputs["RDDMSampler"]["tiling"] == "manual" and inputs["RDDMSampler"]["tiling.tile"] == 256
    assert inputs["RDDMSampler"]["seed"] == 77  # stays: nothing is drawn again without being asked
    assert inputs["RDDMResidualMerge"]["reduction.index"] == 3
    assert to_prompt(saved, host.get("/object_info"))["6"]["inputs"]["tiling.tile"] == 256
    assert not front_end.errors
