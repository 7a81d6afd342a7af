"""What RDDM Image Quality shows on the node, and what a run tells in the browser, in both ways of drawing nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chromium import FrontEnd

from .mock_host import ROOT, MockHost

TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"
FIGURES = "1: PSNR 30.00 dB, SSIM 0.9000\n2: PSNR 31.00 dB, SSIM 0.9100"
SHOWN = "document.querySelector('.rddm-figures')?.textContent"


@pytest.fixture
def page(front_end: FrontEnd, mock_host: MockHost) -> FrontEnd:
    """RDDM Image Quality alone; nothing has run."""
    front_end.errors.clear()
    front_end.page.set_default_timeout(20_000)
    front_end.page.evaluate("() => { app.nodeOutputs = {}; }")
    slots = [{"name": name, "type": "IMAGE", "link": None} for name in ("image", "reference")]
    outputs = [{"name": name, "type": "STRING", "links": None} for name in ("text", "values")]
    node = {"id": 1, "type": "RDDMImageQuality", "pos": [300, 120], "size": [300, 80], "flags": {}, "order": 0}
    node |= {"mode": 0, "inputs": slots, "outputs": outputs, "properties": {}}
    front_end.load({"last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [], "version": 0.4})
    front_end.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; }")
    return front_end


def run(front_end: FrontEnd, mock_host: MockHost, output: dict[str, Any]) -> None:
    before, mock_host.results = len(mock_host.prompts), {"1": output}
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait_for(lambda: len(mock_host.prompts) > before)


def test_the_figures_are_on_the_node(page: FrontEnd, mock_host: MockHost) -> None:
    page.wait(f"{SHOWN} === 'Run the workflow to measure the picture.'")
    run(page, mock_host, {"text": [FIGURES]})
    page.wait(f"{SHOWN} === {json.dumps(FIGURES)}")
    box = page.page.locator(".rddm-figures").bounding_box()
    assert box is not None and box["height"] >= 80 and box["width"] >= 200
    assert page.page.evaluate("() => app.graph.nodes[0].size[1]") >= 40 + 110, "was saved with 80"
    assert not page.errors


def test_the_figures_are_there_after_undo_and_no_part_of_the_workflow(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, {"text": [FIGURES]})
    page.wait(f"{SHOWN} === {json.dumps(FIGURES)}")
    saved, prompt = page.graph()
    assert "PSNR" not in json.dumps([saved, prompt])
    page.page.evaluate("() => { app.graph.nodes[0].pos = [340, 160]; }")
    page.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    page.page.evaluate(f"() => {TRACKER}.undo()")
    page.wait(f"{SHOWN} === {json.dumps(FIGURES)}")


@pytest.mark.parametrize(("key", "words"), [("emptyMap", "The map is 0 everywhere"), ("emptyMask", "The mask is 0")])
def test_what_was_left_empty_is_told(page: FrontEnd, mock_host: MockHost, key: str, words: str) -> None:
    run(page, mock_host, {"rddm_notices": [key, key]})  # of a list of pictures every one says so
    seen = page.page.locator("[role=alert]:not(.sr-only *)")  # newer front ends write it once more for screen readers
    notice = seen.filter(has_text=words)
    notice.first.wait_for()
    assert notice.count() == 1
    notice.first.wait_for(state="hidden", timeout=20_000)


def test_every_notice_of_the_nodes_has_its_text() -> None:
    layout, texts = ((ROOT / path).read_text("utf-8") for path in ("nodes/layout.py", "web/texts.js"))
    block = layout.split("NOTICES = {")[1].split("\n}\n")[0]
    keys = [line.split('"')[1] for line in block.splitlines() if line.startswith('    "') and '": "' in line]
    assert len(keys) == 2 and all(texts.count(f"    {key}: ") == 3 for key in keys)
