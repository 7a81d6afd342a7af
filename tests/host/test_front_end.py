"""The example workflows in the real front end, in both render modes, on the real host.

Needs playwright and a Chromium (CHROMIUM names it, otherwise it is looked for); skipped without. RDDM_SCREENSHOTS
names a folder for the pictures of what the browser showed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_host import ROOT, Host

from .graphs import to_prompt

WORKFLOW = ROOT / "example_workflows" / "deblur.json"
TINY = "tiny.safetensors"
PATIENCE = 300_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]

SET_WIDGETS = """async (changes) => {
  for (const [type, name, value] of changes) {
    const widget = app.graph.nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}"""
GRAPH = "async () => [app.graph.serialize(), (await app.graphToPrompt()).output]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("there is no Chromium: the front end is not tested")
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE)
        yield running
        running.close()


@pytest.fixture(params=[False, True], ids=["LiteGraph", "Nodes 2.0"])
def page(request: pytest.FixtureRequest, browser: Any, host: Host, tmp_path: Path) -> Iterator[Any]:
    """The front end with the example workflow loaded; `page.errors` collects what the console said of our files."""
    host.add_input(ROOT / "examples" / "sign.blur.jpg", "sign.blur.jpg")  # before the front end asks what there is
    page = browser.new_page(viewport={"width": 1800, "height": 1000})
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" and "rddm" in m.text.lower() else None)
    page.goto(host.url, wait_until="domcontentloaded")
    page.wait_for_function("!!(window.app?.graph && window.LiteGraph?.registered_node_types['RDDMSampler'])")
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")  # the templates of a first visit
    setting = "([name, value]) => app.extensionManager.setting.set(name, value)"
    page.evaluate(setting, ["Comfy.VueNodes.Enabled", request.param])
    page.evaluate(setting, ["Comfy.Execution.PreviewMethod", "auto"])
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(1500)
    folder = Path(os.environ.get("RDDM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    name = request.node.name.replace("[", "-").replace("]", "").replace(" ", "")
    page.shoot = lambda moment: page.screenshot(path=folder / f"{name}-{moment}.png")
    yield page
    page.close()


def test_the_workflow_runs(page: Any, host: Host) -> None:
    saved, prompt = page.evaluate(GRAPH)
    info = host.get("/object_info")
    queued = {name: {key: node[key] for key in ("class_type", "inputs")} for name, node in prompt.items()}
    assert queued == to_prompt(saved, info) == to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), info)

    if not (ROOT / "rddm_core" / "weights" / "rddm-lite.safetensors").is_file():  # a checkout without weights
        page.evaluate(SET_WIDGETS, [["RDDMModelLoader", "file", TINY]])
    page.shoot("loaded")
    before = len(host.get("/history"))
    page.evaluate("() => app.queuePrompt(0, 1)")
    _wait(page, lambda: len(host.get("/history")) > before)
    run = list(host.get("/history").values())[-1]
    assert run["status"]["status_str"] == "success", run["status"]["messages"]
    page.wait_for_timeout(1500)
    page.shoot("done")
    shown = "(type) => (app.nodeOutputs[app.graph.nodes.find((node) => node.type === type).id]?.images ?? []).length"
    assert page.evaluate(shown, "SaveImage") == 1 and page.evaluate(shown, "PreviewImage") == 1
    assert not page.errors


def test_choices_bring_their_own_inputs_and_survive_saving(page: Any, host: Host) -> None:
    changes = [["RDDMSampler", "tiling", "manual"], ["RDDMSampler", "tiling.tile", 256], ["RDDMSampler", "seed", 77]]
    changes += [["RDDMResidualMerge", "reduction", "index"], ["RDDMResidualMerge", "reduction.index", 3]]
    page.evaluate(SET_WIDGETS, changes)
    saved, prompt = page.evaluate(GRAPH)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", saved)
    page.wait_for_timeout(1500)
    page.shoot("choices")
    _, again = page.evaluate(GRAPH)
    inputs = {node["class_type"]: node["inputs"] for node in again.values()}
    assert inputs == {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert inputs["RDDMSampler"]["tiling"] == "manual" and inputs["RDDMSampler"]["tiling.tile"] == 256
    assert inputs["RDDMSampler"]["seed"] == 77  # stays: nothing is drawn again without being asked
    assert inputs["RDDMResidualMerge"]["reduction.index"] == 3
    assert to_prompt(saved, host.get("/object_info"))["6"]["inputs"]["tiling.tile"] == 256
    assert not page.errors


def _wait(page: Any, condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE // 500):
        if condition():
            return
        page.wait_for_timeout(500)
    raise AssertionError("the prompt never ended")
