"""The way from RDDM Defocus Map to the host's mask editor and back, in both ways of drawing nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromium import FrontEnd
from PIL import Image

from .mock_host import ROOT, MockHost

BLUEPRINT = ROOT / "subgraphs" / "RDDM Four Stages.json"
SIZE = (96, 64)
NODES = "app.canvas.graph.nodes"
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"
PRESS = f"""() => {{
  const node = {NODES}.find((node) => node.type === "RDDMDefocusMap");
  node.widgets.find((widget) => widget.name === "correct by hand").callback();
}}"""
DELETE = f"""() => {{
  app.canvas.selectNode({NODES}.find((node) => node.type === "LoadImage"));
  app.canvas.deleteSelected();
}}"""
SOURCE = f"""() => {{
  const target = {NODES}.find((node) => node.type === "MaskPreview");
  return target.getInputNode(0)?.type + "/" + target.getInputLink(0)?.origin_slot;
}}"""


@pytest.fixture
def page(front_end: FrontEnd, mock_host: MockHost) -> FrontEnd:
    """A map that goes into a preview; nothing has run."""
    front_end.errors.clear()
    mock_host.results.clear()
    front_end.page.set_default_timeout(20_000)
    front_end.load(workflow())
    return front_end


def workflow() -> dict[str, Any]:
    """RDDM Defocus Map -> Preview Mask."""
    common = {"flags": {}, "mode": 0, "properties": {}}
    inputs = [{"name": "model", "type": "RDDM_MODEL", "link": None}, {"name": "image", "type": "IMAGE", "link": None}]
    outputs = [{"name": "map", "type": "MASK", "links": [1]}, {"name": "coloured", "type": "IMAGE", "links": None}]
    nodes: list[dict[str, Any]] = [
        {
            "id": 1,
            "type": "RDDMDefocusMap",
            "pos": [200, 120],
            "size": [300, 150],
            "inputs": inputs,
            "outputs": outputs,
        },
        {
            "id": 2,
            "type": "MaskPreview",
            "pos": [600, 120],
            "size": [250, 200],
            "inputs": [{"name": "mask", "type": "MASK", "link": 1}],
            "outputs": [],
        },
    ]
    for order, node in enumerate(nodes):
        node.update(common, order=order)
    links = [[1, 1, 0, 2, 0, "MASK"]]
    return {"last_node_id": 2, "last_link_id": 1, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


def run(front_end: FrontEnd, mock_host: MockHost, name: str, node: str = "1", pictures: int | list[int] = 1) -> None:
    """As if that node had estimated maps, of a batch or of several in a list; half of the first photograph is out of
    focus."""
    counts = [pictures] if isinstance(pictures, int) else pictures
    picture = Image.new("RGBA", SIZE, (200, 60, 60, 255))
    picture.paste((200, 60, 60, 0), (0, 0, SIZE[0] // 2, SIZE[1]))
    picture.save(mock_host.files / name)
    file = {"filename": name, "subfolder": "", "type": "temp"}
    mock_host.results = {node: {"rddm_paintable": [file], "rddm_pictures": counts}}
    before = len(mock_host.prompts)
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait_for(lambda: len(mock_host.prompts) > before)
    front_end.wait("Object.values(app.nodeOutputs).some((output) => output?.rddm_paintable)")
    front_end.pause(300)


def save_in_the_editor(front_end: FrontEnd) -> None:
    """Once it is open, without painting."""
    save = front_end.page.locator("[role=dialog] button", has_text="Save")
    save.wait_for(timeout=20_000)
    front_end.pause(1000)  # its canvases are filled
    save.click()


def correct(front_end: FrontEnd, mock_host: MockHost, reloaded: bool = False) -> None:
    """Estimate a map, save it in the editor, and load the workflow anew if asked."""
    run(front_end, mock_host, "map.png")
    front_end.page.evaluate(PRESS)
    save_in_the_editor(front_end)
    front_end.wait(f"({SOURCE})() === 'LoadImage/1'")
    if reloaded:
        saved, _ = front_end.graph()
        front_end.load(saved)


def test_before_a_run_it_says_what_to_do(page: FrontEnd) -> None:
    page.page.evaluate(PRESS)
    page.page.get_by_text("Run the workflow once").first.wait_for()
    assert page.page.evaluate(SOURCE) == "RDDMDefocusMap/0"
    assert page.page.evaluate(f"() => {NODES}.length") == 2
    assert not page.errors


def remade_by_undo(front_end: FrontEnd) -> None:
    front_end.page.evaluate("() => app.graph.nodes.find(({ type }) => type === 'MaskPreview').pos = [700, 120]")
    front_end.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    front_end.page.evaluate(f"() => {TRACKER}.undo()")


def remade_by_loading(front_end: FrontEnd) -> None:
    saved, _ = front_end.graph()
    front_end.load(saved)


def remade_by_changing_the_workflow(front_end: FrontEnd) -> None:
    leave = """async (empty) => {
      window.left = { workflow: app.extensionManager.workflow.activeWorkflow, graph: app.graph.serialize() };
      await app.loadGraphData(empty);
    }"""
    empty = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}
    front_end.page.evaluate(leave, empty)
    front_end.pause(1000)  # the page's address follows
    assert front_end.page.evaluate("() => !Object.keys(app.nodeOutputs).length")
    front_end.page.evaluate("() => app.loadGraphData(left.graph, true, true, left.workflow)")
    front_end.pause(1000)


@pytest.mark.parametrize(
    "happens",
    [remade_by_undo, remade_by_loading, remade_by_changing_the_workflow],
    ids=lambda function: function.__name__.removeprefix("remade_by_"),
)
def test_a_node_made_anew_still_knows_its_map(
    page: FrontEnd, mock_host: MockHost, happens: Callable[[FrontEnd], None]
) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate(f"() => {{ window.before = {NODES}.find((node) => node.type === 'RDDMDefocusMap'); }}")
    happens(page)
    assert page.page.evaluate(f"() => window.before && !{NODES}.includes(window.before)")
    page.page.evaluate(PRESS)
    page.page.locator("[role=dialog] button", has_text="Save").wait_for(timeout=20_000)
    page.page.locator("[role=dialog] button", has_text="Cancel").click()


def test_a_map_that_is_gone_is_said_so(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png")
    (mock_host.files / "map.png").unlink()
    page.page.evaluate(PRESS)
    page.page.get_by_text("no longer on the server").first.wait_for(timeout=20_000)
    assert page.page.evaluate(SOURCE) == "RDDMDefocusMap/0"
    assert page.page.evaluate(f"() => {NODES}.length") == 2  # nothing is left behind


def test_the_mask_editor_opens_with_the_estimated_map(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate(PRESS)
    save = page.page.locator("[role=dialog] button", has_text="Save")
    save.wait_for(timeout=20_000)
    assert page.page.evaluate(SOURCE) == "RDDMDefocusMap/0"  # only opened: nothing has changed yet
    assert "rddm" not in " ".join(page.errors).lower()
    page.page.locator("[role=dialog] button", has_text="Cancel").click()
    page.wait(f"{NODES}.length === 2")  # nothing is left behind


def test_what_was_saved_in_the_editor_takes_the_place_of_the_map(page: FrontEnd, mock_host: MockHost) -> None:
    correct(page, mock_host)
    assert page.page.evaluate(f"() => {NODES}.length") == 3
    _, prompt = page.graph()
    (target,) = [node for node in prompt.values() if node["class_type"] == "MaskPreview"]
    loader = prompt[target["inputs"]["mask"][0]]
    assert loader["class_type"] == "LoadImage" and "painted" in loader["inputs"]["image"]
    assert mock_host.uploads


@pytest.mark.parametrize("reloaded", [False, True], ids=["at once", "after loading"])
def test_pressed_again_it_opens_what_was_corrected(page: FrontEnd, mock_host: MockHost, reloaded: bool) -> None:
    correct(page, mock_host, reloaded)
    picture = f"{NODES}.find(({{ type }}) => type === 'LoadImage').widgets.find(({{ name }}) => name === 'image').value"
    before = page.page.evaluate(f"() => {picture}")
    page.page.evaluate(PRESS)
    cancel = page.page.locator("[role=dialog] button", has_text="Cancel")
    cancel.wait_for(timeout=20_000)
    cancel.click()
    page.pause(1000)
    assert page.page.evaluate(f"() => {NODES}.length") == 3  # the earlier correction stays
    page.page.evaluate(PRESS)
    save_in_the_editor(page)
    page.wait(f"{picture} !== {json.dumps(before)}")
    assert page.page.evaluate(f"() => {NODES}.length") == 3
    assert page.page.evaluate(SOURCE) == "LoadImage/1"


@pytest.mark.parametrize("reloaded", [False, True], ids=["at once", "after loading"])
def test_without_the_corrected_map_the_estimated_one_counts_again(
    page: FrontEnd, mock_host: MockHost, reloaded: bool
) -> None:
    correct(page, mock_host, reloaded)
    page.page.evaluate(DELETE)
    page.wait(f"({SOURCE})() === 'RDDMDefocusMap/0'")
    assert page.page.evaluate(f"() => {NODES}.length") == 2
    page.page.evaluate(PRESS)  # begins anew
    save_in_the_editor(page)
    page.wait(f"({SOURCE})() === 'LoadImage/1'")
    assert page.page.evaluate(f"() => {NODES}.length") == 3


def test_what_was_connected_otherwise_since_then_stays_so(page: FrontEnd, mock_host: MockHost) -> None:
    correct(page, mock_host)
    other = """() => {
      const node = window.LiteGraph.createNode("SolidMask");
      app.canvas.graph.add(node);
      node.connect(0, app.canvas.graph.nodes.find((node) => node.type === "MaskPreview"), 0);
    }"""
    page.page.evaluate(other)
    page.page.evaluate(DELETE)
    page.pause(500)
    assert page.page.evaluate(SOURCE) == "SolidMask/0"


def test_of_a_batch_it_says_that_one_map_serves_all(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png", pictures=3)
    page.page.evaluate(PRESS)
    page.page.get_by_text("first of 3 pictures").first.wait_for(timeout=20_000)
    page.page.locator("[role=dialog] button", has_text="Cancel").click()


def test_of_a_list_of_pictures_too(page: FrontEnd, mock_host: MockHost) -> None:
    """The host joins what a node says in every one of its runs."""
    run(page, mock_host, "map.png", pictures=[1, 1, 2])
    page.page.evaluate(PRESS)
    page.page.get_by_text("first of 4 pictures").first.wait_for(timeout=20_000)
    page.page.locator("[role=dialog] button", has_text="Cancel").click()


@pytest.mark.parametrize("ends", ["Save", "Cancel"])
def test_a_correction_is_one_step_of_undo_or_none(page: FrontEnd, mock_host: MockHost, ends: str) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    steps = page.page.evaluate(f"() => {TRACKER}.undoQueue.length")
    page.page.evaluate(PRESS)
    if ends == "Save":
        save_in_the_editor(page)
        page.wait(f"({SOURCE})() === 'LoadImage/1'")
    else:
        cancel = page.page.locator("[role=dialog] button", has_text="Cancel")
        cancel.wait_for(timeout=20_000)
        page.page.evaluate("() => window.dispatchEvent(new MouseEvent('mouseup'))")  # as every click in the editor
        cancel.click()
        page.wait(f"{NODES}.length === 2")
    page.pause(500)
    page.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
    assert page.page.evaluate(f"() => {TRACKER}.undoQueue.length") == steps + (ends == "Save")
    if ends == "Save":
        page.page.evaluate(f"() => {TRACKER}.undo()")
        page.wait(f"({SOURCE})() === 'RDDMDefocusMap/0'")
        assert page.page.evaluate(f"() => {NODES}.length") == 2
    assert page.page.evaluate(f"() => {TRACKER}.changeCount") == 0


def test_the_corrected_map_lies_over_no_other_node(page: FrontEnd, mock_host: MockHost) -> None:
    crowded = workflow()
    below = {"id": 3, "type": "MaskPreview", "pos": [260, 330], "size": [300, 290], "order": 2}
    below |= {"inputs": [{"name": "mask", "type": "MASK", "link": None}], "outputs": []}
    crowded["nodes"].append(below | {"flags": {}, "mode": 0, "properties": {}})
    page.load(crowded | {"last_node_id": 3})
    run(page, mock_host, "map.png")
    page.page.evaluate(PRESS)
    page.page.locator("[role=dialog] button", has_text="Cancel").wait_for(timeout=20_000)
    top = page.page.evaluate(f"() => {NODES}.find(({{ type }}) => type === 'LoadImage').pos[1]")
    assert top >= 330 + 290 + 30
    page.page.locator("[role=dialog] button", has_text="Cancel").click()


def test_links_keep_the_points_they_are_led_through(page: FrontEnd, mock_host: MockHost) -> None:
    page.page.evaluate("() => { app.graph.createReroute([520, 300], app.graph.links.get(1)); }")
    run(page, mock_host, "map.png")
    page.page.evaluate(PRESS)
    save_in_the_editor(page)
    page.wait(f"({SOURCE})() === 'LoadImage/1'")
    through = f"() => {NODES}.find(({{ type }}) => type === 'MaskPreview').getInputLink(0).parentId"
    assert page.page.evaluate(through) == page.page.evaluate("() => [...app.graph.reroutes.keys()][0]") is not None


def test_a_copy_of_the_node_corrects_a_map_of_its_own(page: FrontEnd, mock_host: MockHost) -> None:
    correct(page, mock_host)
    page.page.evaluate(
        f"""() => {{
          const node = {NODES}.find((node) => node.type === "RDDMDefocusMap");
          app.canvas.selectNode(node);
          app.canvas.copyToClipboard();
          app.canvas.pasteFromClipboard();
          const copy = {NODES}.find((other) => other.type === "RDDMDefocusMap" && other !== node);
          copy.widgets.find((widget) => widget.name === "correct by hand").callback();
        }}"""
    )
    page.page.get_by_text("Run the workflow once").first.wait_for()


def test_a_copy_of_the_corrected_map_does_not_take_its_place(page: FrontEnd, mock_host: MockHost) -> None:
    correct(page, mock_host)
    page.page.evaluate(
        f"""() => {{
          const loader = {NODES}.find((node) => node.type === "LoadImage");
          app.canvas.selectNode(loader);
          app.canvas.copyToClipboard();
          app.canvas.pasteFromClipboard();
          app.graph.remove(loader);
        }}"""
    )
    page.wait(f"({SOURCE})() === 'RDDMDefocusMap/0'")
    assert page.page.evaluate(f"() => {NODES}.length") == 3


PATIENT = """() => {
  const set = window.setTimeout;  // the ten seconds that a picture may take go by at once
  window.setTimeout = (step, wait, ...rest) => set(step, wait === 100 ? 1 : wait, ...rest);
  window.slow = () => { window.setTimeout = set; };
}"""


@pytest.fixture
def slow_line(page: FrontEnd) -> Iterator[None]:
    """No picture comes to a node; the server answers, and the mask editor waits for as long as it takes."""

    def answer(route: Any) -> None:
        wanted = route.request.method == "HEAD" or "channel" in route.request.url
        route.continue_() if wanted else route.abort()

    page.page.route("**/view?*", answer)
    page.page.evaluate(PATIENT)
    yield
    page.page.evaluate("() => slow()")
    page.page.unroute("**/view?*")
    page.errors.clear()  # of the pictures


@pytest.mark.usefixtures("slow_line")
def test_over_a_slow_line_the_editor_opens_all_the_same(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate(PRESS)
    cancel = page.page.locator("[role=dialog] button", has_text="Cancel")
    cancel.wait_for(timeout=20_000)
    cancel.click()
    page.wait(f"{NODES}.length === 2")


@pytest.mark.usefixtures("slow_line")
def test_a_workflow_that_is_opened_meanwhile_is_left_alone(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate("() => slow()")
    page.page.evaluate(PRESS)
    page.wait(f"{NODES}.length === 3")
    other = workflow()
    other["nodes"][1]["id"], other["links"][0][3] = page.page.evaluate(f"() => {NODES}[2].id"), 3
    page.load(other)
    page.page.evaluate(PATIENT)
    page.pause(1500)
    assert page.page.evaluate(f"() => {NODES}.every((node) => app.graph.getNodeById(node.id) === node)")
    assert page.page.locator("[role=dialog]").count() == 0


def test_nothing_watches_a_graph_that_is_gone(page: FrontEnd, mock_host: MockHost) -> None:
    run(page, mock_host, "map.png")
    page.page.evaluate(
        """() => {
          const [set, clear] = [window.setInterval, window.clearInterval];
          window.running = new Set();
          window.setInterval = (step, wait) => {
            const timer = set(step, wait);
            if (wait === 100) running.add(timer);
            return timer;
          };
          window.clearInterval = (timer) => { running.delete(timer); clear(timer); };
        }"""
    )
    page.page.evaluate(PRESS)
    page.page.locator("[role=dialog] button", has_text="Save").wait_for(timeout=20_000)
    assert page.page.evaluate("() => running.size") == 1
    page.page.evaluate("() => app.graph.clear()")
    assert page.page.evaluate("() => running.size") == 0
    page.page.locator("[role=dialog] button", has_text="Cancel").click()


def test_inside_a_subgraph_its_output_follows_too(page: FrontEnd, mock_host: MockHost) -> None:
    page.load(json.loads(BLUEPRINT.read_text(encoding="utf-8")))
    page.page.evaluate("() => app.canvas.setGraph([...app.rootGraph.subgraphs.values()][0])")
    name = page.page.evaluate(f"() => '1:' + {NODES}.find(({{ type }}) => type === 'RDDMDefocusMap').id")
    run(page, mock_host, "map.png", name)
    page.page.evaluate(PRESS)
    save_in_the_editor(page)
    # Where the maps come from that stages inside and nodes outside get.
    sources = """() => [...app.canvas.graph.links.values()].filter(({ type }) => type === "MASK")
      .map(({ origin_id }) => app.canvas.graph.getNodeById(origin_id)?.type).filter((type) => type)"""
    page.wait(f"!({sources})().includes('RDDMDefocusMap')")
    page.pause(500)
    assert set(page.page.evaluate(sources)) == {"LoadImage"}
    slot = "app.canvas.graph.outputs.find(({ name }) => name === 'map')"
    origin = f"() => app.canvas.graph.getNodeById(app.canvas.graph.getLink({slot}.linkIds[0]).origin_id).type"
    assert page.page.evaluate(origin) == "LoadImage"
    page.page.evaluate(DELETE)
    page.pause(500)
    assert set(page.page.evaluate(sources)) == {"RDDMDefocusMap"}
    assert page.page.evaluate(origin) == "RDDMDefocusMap"
    page.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")
