"""The slider of RDDM Compare, as a user handles it, in both ways of drawing nodes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import FrontEnd, screenshots
from PIL import Image

from .mock_host import MockHost

SIZE = (300, 200)
RED, BLUE, GREEN, GREY = (200, 20, 20), (20, 20, 200), (20, 180, 20), (100, 100, 100)
BEFORE, AFTER = [RED, GREY], [BLUE, GREEN]
NODE = "app.graph.nodes.find((node) => node.type === 'RDDMCompare')"
KEPT = f"JSON.parse(sessionStorage.getItem(`rddm.compare/${{app.rootGraph.id}}/${{{NODE}.id}}`))"
FORGET = "() => { app.nodeOutputs = {}; }"
"""Results: the front end keeps them by the node's id when another workflow takes the place of the open one."""
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"
READY = "[...document.querySelectorAll('.rddm-compare-ready img')].every((image) => image.complete)"


@pytest.fixture
def names(mock_host: MockHost) -> dict[str, list[dict[str, str]]]:
    """What the node sends: two pairs, each picture of one colour, with a grey square in the corner of all."""
    output: dict[str, list[dict[str, str]]] = {}
    for side, colours in (("before", BEFORE), ("after", AFTER)):
        output[f"rddm_{side}"] = []
        for i, colour in enumerate(colours):
            picture = Image.new("RGB", SIZE, colour)
            picture.paste(GREY, (0, 0, 40, 40))
            picture.save(mock_host.files / f"{side}_{i}.png")
            output[f"rddm_{side}"].append({"filename": f"{side}_{i}.png", "subfolder": "", "type": "temp"})
    return output


@pytest.fixture
def compare(front_end: FrontEnd, mock_host: MockHost, names: dict[str, Any]) -> FrontEnd:
    """A page in which RDDM Compare has run."""
    front_end.errors.clear()
    front_end.page.evaluate(FORGET)
    front_end.load(workflow())
    mock_host.results = {"1": names}
    front_end.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; }")
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait(f"document.querySelector('.rddm-compare-ready') && {READY}")
    front_end.pause(100)
    return front_end


def show(front_end: FrontEnd, mock_host: MockHost, output: dict[str, Any]) -> None:
    """Run once more, with other results."""
    before, mock_host.results = len(mock_host.prompts), {"1": output}
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait_for(lambda: len(mock_host.prompts) > before)
    front_end.pause(800)
    front_end.wait(READY)


def workflow(properties: dict[str, Any] | None = None) -> dict[str, Any]:
    """The node alone; the stand-in runs a prompt whatever is in it."""
    slots = [{"name": name, "type": "IMAGE", "link": None} for name in ("before", "after")]
    node = {"id": 1, "type": "RDDMCompare", "pos": [300, 120], "size": [500, 520], "flags": {}, "order": 0, "mode": 0}
    node |= {"inputs": slots, "outputs": [], "properties": properties or {}}
    return {"last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [], "version": 0.4}


def box(front_end: FrontEnd, name: str = "stage") -> dict[str, float]:
    """Place and size of a part of the widget on the screen."""
    found = front_end.page.locator(f".rddm-compare-{name}").bounding_box()
    assert found is not None
    return found


def colour(front_end: FrontEnd, x: float, y: float = 0.5) -> tuple[int, ...]:
    """What is seen at a fraction of the stage."""
    area = box(front_end)
    shot = Image.open(io.BytesIO(front_end.page.screenshot(clip=area))).convert("RGB")
    pixel = shot.getpixel((int(x * (shot.width - 1)), int(y * (shot.height - 1))))
    assert isinstance(pixel, tuple)
    return pixel


def near(seen: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """The same colour, up to the browser's rounding."""
    return bool(np.abs(np.subtract(seen, wanted)).max() <= 6)


def drag(front_end: FrontEnd, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse, in fractions of the stage."""
    area, mouse = box(front_end), front_end.page.mouse
    points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)]
    mouse.move(*points[0])
    mouse.down()
    mouse.move(*points[1], steps=4)
    mouse.up()
    front_end.pause(100)


def state(front_end: FrontEnd) -> dict[str, Any]:
    """What is kept of the view."""
    found = front_end.page.evaluate(f"() => {KEPT}.view ?? {{}}")
    assert isinstance(found, dict)
    return found


def press(front_end: FrontEnd, *keys: str) -> None:
    """With the stage in focus."""
    front_end.page.locator(".rddm-compare-stage").focus()
    for key in keys:
        front_end.page.keyboard.press(key)
    front_end.pause(100)


def test_before_is_left_and_after_right_of_the_divider(compare: FrontEnd) -> None:
    assert near(colour(compare, 0.3), RED) and near(colour(compare, 0.7), BLUE)
    drag(compare, (0.5, 0.5), (0.1, 0.5))
    assert near(colour(compare, 0.3), BLUE) and near(colour(compare, 0.05), RED)
    assert state(compare)["position"] == pytest.approx(0.1, abs=0.02)
    press(compare, "ArrowRight", "ArrowRight")
    assert state(compare)["position"] == pytest.approx(0.14, abs=0.02)
    stage = compare.page.locator(".rddm-compare-stage")
    assert stage.get_attribute("aria-valuenow") == "14" and stage.get_attribute("role") == "slider"
    press(compare, "End")
    assert near(colour(compare, 0.9), RED)
    assert not compare.errors


def test_batch(compare: FrontEnd) -> None:
    counter = compare.page.locator(".rddm-compare-counter")
    assert counter.text_content() == "1 / 2"
    press(compare, "PageDown")
    compare.wait(READY)
    compare.pause(200)
    assert counter.text_content() == "2 / 2"
    assert near(colour(compare, 0.3), GREY) and near(colour(compare, 0.7), GREEN)
    press(compare, "PageDown")  # stays at the last
    assert counter.text_content() == "2 / 2"
    compare.page.get_by_title("Previous pair (Page Up)").click()
    assert counter.text_content() == "1 / 2" and state(compare)["index"] == 0
    assert not compare.errors


@pytest.mark.parametrize("graph_scale", [1.0, 0.7])
def test_at_100_percent_a_pixel_is_a_pixel_of_the_screen(compare: FrontEnd, graph_scale: float) -> None:
    compare.page.evaluate("(scale) => { app.canvas.ds.scale = scale; app.canvas.setDirty(true, true); }", graph_scale)
    compare.pause(400)
    press(compare, "1")
    compare.pause(200)
    assert box(compare, "frame")["width"] == pytest.approx(SIZE[0], abs=1)
    compare.page.get_by_role("button", name="200 %").click()
    compare.pause(200)
    frame, stage = box(compare, "frame"), box(compare)
    assert frame["width"] == pytest.approx(2 * SIZE[0], abs=2)
    assert frame["width"] > stage["width"]
    before = frame["x"]
    drag(compare, (0.8, 0.3), (0.6, 0.3))  # away from the divider: pans
    moved = before - box(compare, "frame")["x"]
    assert moved == pytest.approx(0.2 * stage["width"], abs=6) or box(compare, "frame")["x"] + frame["width"] <= (
        stage["x"] + stage["width"] + 3
    )
    assert moved > 5 and state(compare).get("position", 0.5) == 0.5
    drag(compare, (0.5, 0.5), (0.8, 0.5))  # the divider itself
    assert state(compare)["position"] == pytest.approx(0.8, abs=0.02)
    press(compare, "0")
    compare.pause(200)
    assert box(compare, "frame")["width"] <= stage["width"] + 1
    assert not compare.errors


def test_difference(compare: FrontEnd) -> None:
    press(compare, "d")
    compare.pause(200)
    expected = tuple(min(255, 4 * abs(a - b)) for a, b in zip(RED, BLUE, strict=True))
    assert near(colour(compare, 0.3), expected) and near(colour(compare, 0.7), expected)
    frame, stage = box(compare, "frame"), box(compare)
    corner = [(frame[axis] - stage[axis] + 12) / stage[size] for axis, size in (("x", "width"), ("y", "height"))]
    assert near(colour(compare, corner[0] + 0.01, corner[1] + 0.07), (0, 0, 0))  # the same in both
    compare.page.get_by_role("button", name="Difference").click()
    compare.pause(200)
    assert near(colour(compare, 0.3), RED)
    assert not compare.errors


def survives_resize(front_end: FrontEnd) -> None:
    front_end.page.evaluate(f"() => {{ {NODE}.setSize([700, 640]); app.canvas.setDirty(true, true); }}")


def survives_collapsing(front_end: FrontEnd) -> None:
    for hidden in (True, False):
        front_end.page.evaluate(f"() => {{ {NODE}.collapse(true); app.canvas.setDirty(true, true); }}")
        front_end.pause(500)
        assert front_end.page.locator(".rddm-compare-stage").is_visible() is not hidden


def survives_reloading(front_end: FrontEnd) -> None:
    saved, _ = front_end.graph()
    front_end.load(saved)


def survives_reloading_the_page(front_end: FrontEnd) -> None:
    saved, _ = front_end.graph()
    front_end.page.reload(wait_until="domcontentloaded")
    front_end.wait("window.app?.graph && window.LiteGraph?.registered_node_types['RDDMCompare']")
    front_end.pause(1000)
    front_end.page.keyboard.press("Escape")
    front_end.load(saved)


def survives_undo(front_end: FrontEnd) -> None:
    front_end.page.evaluate(f"() => {{ {NODE}.title = 'edited'; {TRACKER}.captureCanvasState(); }}")
    front_end.page.evaluate(f"() => {TRACKER}.undo()")
    assert front_end.page.evaluate(f"() => {NODE}.title") != "edited"


@pytest.mark.parametrize(
    "happens",
    [survives_resize, survives_collapsing, survives_reloading, survives_reloading_the_page, survives_undo],
    ids=lambda function: function.__name__.removeprefix("survives_"),
)
def test_survives(compare: FrontEnd, happens: Callable[[FrontEnd], None]) -> None:
    drag(compare, (0.5, 0.5), (0.25, 0.5))
    press(compare, "PageDown")
    before = state(compare)
    happens(compare)
    compare.page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; }")
    compare.pause(800)
    compare.wait(f"document.querySelector('.rddm-compare-ready') && {READY}")
    assert state(compare) == before and before["index"] == 1
    assert near(colour(compare, 0.1), GREY) and near(colour(compare, 0.5), GREEN)
    stage, widget = box(compare), box(compare, "bar")
    assert widget["y"] >= stage["y"] + stage["height"] and stage["width"] > 300 and stage["height"] > 200
    assert not compare.errors


def test_a_copy_starts_afresh_and_leaves_nothing_running(compare: FrontEnd) -> None:
    """The host clones a node to copy it, and that clone comes into no graph."""
    compare.page.evaluate(
        """() => {
          const [frame, observe] = [window.requestAnimationFrame, ResizeObserver.prototype.observe];
          window.steps = new Set();  // of the loops that asked for another frame
          window.requestAnimationFrame = (step) => { if (step.name === "watch") steps.add(step); return frame(step); };
          window.observed = 0;
          ResizeObserver.prototype.observe = function (element, ...rest) {
            observed += element.classList.contains("rddm-compare-stage");
            return observe.call(this, element, ...rest);
          };
        }"""
    )

    def running(loops: int, observers: int) -> bool:
        """Whether so many loops run before long, and so many observers have begun since the last look."""
        for _ in range(20):
            compare.page.evaluate("() => steps.clear()")
            compare.pause(300)
            if compare.page.evaluate("() => [steps.size, observed]") == [loops, observers]:
                compare.page.evaluate("() => { observed = 0; }")
                return True
        return False

    assert running(1, 0)
    sources = compare.page.evaluate(
        f"""() => {{
          window.original = {NODE};
          const copy = original.clone();
          const {{ element }} = copy.widgets.find(({{ name }}) => name === "compare");
          return [...element.querySelectorAll("img")].map((image) => image.getAttribute("src"));
        }}"""
    )
    assert sources == [None, None] and running(1, 0)
    compare.page.evaluate("() => { app.canvas.selectNode(original); app.canvas.copyToClipboard(); }")
    compare.page.evaluate("() => { app.canvas.pasteFromClipboard(); }")
    assert running(2, 1)
    message = compare.page.locator(".rddm-compare:not(.rddm-compare-ready) .rddm-compare-message")
    assert "Run the workflow" in (message.text_content() or "")
    compare.page.evaluate("() => { window.kept = app.graph.nodes.find((node) => node !== original); }")
    compare.page.evaluate("() => { app.graph.remove(original); app.graph.remove(kept); }")
    assert running(0, 0)
    compare.page.evaluate("() => { app.graph.add(kept); }")  # as when something else put it back
    assert running(1, 1)
    assert not compare.errors


def test_in_a_subgraph_it_leaves_nothing_running(compare: FrontEnd) -> None:
    """Where a whole graph goes, the host says nothing to the nodes inside subgraphs."""
    compare.page.evaluate(f"() => {{ app.graph.convertToSubgraph(new Set([{NODE}])); }}")
    saved = json.loads(compare.page.evaluate("() => JSON.stringify(app.graph.serialize())"))  # undefined is no null
    compare.page.evaluate(
        """() => {
          const frame = window.requestAnimationFrame;
          window.steps = new Set();
          window.requestAnimationFrame = (step) => { if (step.name === "watch") steps.add(step); return frame(step); };
        }"""
    )
    for _ in range(3):
        compare.load(saved)
    compare.pause(500)
    compare.page.evaluate("() => steps.clear()")
    compare.pause(500)
    assert compare.page.evaluate("() => steps.size") == 1
    assert not compare.errors


def test_nothing_shows_through_where_a_picture_is_transparent(
    compare: FrontEnd, mock_host: MockHost, names: dict[str, Any]
) -> None:
    picture = Image.new("RGBA", SIZE, (*BLUE, 255))
    picture.paste((*BLUE, 0), (220, 0, *SIZE))
    picture.paste((*BLUE, 128), (0, 0, 100, SIZE[1]))
    picture.save(mock_host.files / "cut.png")
    cut = [{"filename": "cut.png", "subfolder": "", "type": "temp"}]
    show(compare, mock_host, {"rddm_before": names["rddm_before"][:1], "rddm_after": cut})
    assert near(colour(compare, 0.3), RED) and near(colour(compare, 0.6), BLUE)
    assert near(colour(compare, 0.85), (0, 0, 0))
    show(compare, mock_host, {"rddm_before": cut, "rddm_after": [dict(cut[0], type="input")]})
    press(compare, "d")
    compare.pause(200)
    assert all(near(colour(compare, x), (0, 0, 0)) for x in (0.2, 0.6, 0.85))
    press(compare, "d")


def test_the_ring_of_the_focus_lies_over_the_picture(compare: FrontEnd) -> None:
    at = 2.5 / box(compare)["width"]
    compare.page.get_by_role("button", name="200 %").click()
    assert near(colour(compare, at), RED)
    press(compare, "2")
    assert not near(colour(compare, at), RED)


def test_pictures_of_another_day_are_not_asked_for(front_end: FrontEnd, mock_host: MockHost) -> None:
    front_end.errors.clear()
    asked: list[str] = []
    front_end.page.on("request", lambda request: asked.append(request.url))
    front_end.page.evaluate(FORGET)
    gone = [{"filename": "gone.png", "subfolder": "", "type": "temp"}]
    front_end.load(workflow({"rddm_compare": {"before": gone, "after": gone, "view": {"position": 7, "zoom": "x"}}}))
    message = front_end.page.locator(".rddm-compare-message")
    assert message.is_visible() and "Run the workflow" in (message.text_content() or "")
    assert not [url for url in asked if "gone.png" in url]
    assert front_end.page.locator(".rddm-compare-stage").get_attribute("aria-valuenow") == "100"
    assert not front_end.errors


def test_the_wheel_zooms_the_graph_as_elsewhere(compare: FrontEnd) -> None:
    scale = "() => app.canvas.ds.scale"
    factors = []
    stage = box(compare)
    for x, y in ((60, 700), (stage["x"] + 100, stage["y"] + 100)):  # beside the node, and on the slider
        before = compare.page.evaluate(scale)
        compare.page.mouse.move(x, y)
        compare.page.mouse.wheel(0, 120)
        compare.pause(500)
        factors.append(compare.page.evaluate(scale) / before)
    assert factors[0] < 1 and factors[1] == pytest.approx(factors[0], rel=1e-3)


def test_the_middle_button_moves_the_graph_as_elsewhere(compare: FrontEnd) -> None:
    area, mouse = box(compare), compare.page.mouse
    before = compare.page.evaluate("() => [...app.canvas.ds.offset]")
    mouse.move(area["x"] + 100, area["y"] + 100)
    mouse.down(button="middle")
    mouse.move(area["x"] + 130, area["y"] + 90, steps=3)
    mouse.move(area["x"] + 160, area["y"] + 80, steps=3)
    mouse.up(button="middle")
    compare.pause(300)
    after = compare.page.evaluate("() => [...app.canvas.ds.offset]")
    assert np.subtract(after, before) == pytest.approx([60, -20], abs=12) and state(compare).get("position", 0.5) == 0.5
    compare.page.evaluate("() => { app.canvas.ds.offset = [0, 0]; }")


def test_one_picture_goes_with_each_of_the_other_side(
    compare: FrontEnd, mock_host: MockHost, names: dict[str, Any]
) -> None:
    show(compare, mock_host, {"rddm_before": names["rddm_before"][:1], "rddm_after": names["rddm_after"]})
    for expected in (AFTER[0], AFTER[1]):
        assert near(colour(compare, 0.25), BEFORE[0]) and near(colour(compare, 0.75), expected)
        press(compare, "PageDown")
        compare.wait(READY)
        compare.pause(100)


def test_panning_follows_the_hand(compare: FrontEnd) -> None:
    compare.page.get_by_role("button", name="200 %").click()
    compare.pause(200)
    start = state(compare)
    drag(compare, (0.9, 0.5), (0.9, 0.5 - 8 / box(compare)["height"]))
    assert state(compare)["y"] >= start["y"]
    drag(compare, (0.9, 0.5), (0.9 - 20 / box(compare)["width"], 0.5))
    dragged = state(compare)
    assert dragged["x"] > start["x"]
    press(compare, "Shift+ArrowLeft")
    assert state(compare)["x"] < dragged["x"]
    press(compare, "Shift+ArrowRight")
    assert state(compare)["x"] == pytest.approx(dragged["x"], abs=0.02)
    area = box(compare)
    compare.page.mouse.dblclick(area["x"] + 0.9 * area["width"], area["y"] + 0.3 * area["height"])
    assert state(compare) | {"position": 0.5, "x": 0.5, "y": 0.5} == state(compare)


def test_pictures_that_are_gone_are_said_so(compare: FrontEnd, mock_host: MockHost) -> None:
    gone = [{"filename": "none.png", "subfolder": "", "type": "temp"}]
    front = compare.page.get_by_text("no longer on the server").first
    mock_host.results = {"1": {"rddm_before": gone, "rddm_after": gone}}
    compare.page.evaluate("() => app.queuePrompt(0, 1)")
    front.wait_for(timeout=20_000)
    assert not compare.page.evaluate(
        "() => document.querySelector('.rddm-compare-stage').contains(document.querySelector('.rddm-compare-message'))"
    ), "not read out inside a slider"


def test_nothing_of_it_is_queued_or_counted_as_a_value(compare: FrontEnd) -> None:
    saved, prompt = compare.graph()
    assert prompt["1"]["inputs"] == {}
    assert not saved["nodes"][0].get("widgets_values")


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_screenshots(compare: FrontEnd, palette: str, tmp_path: Path) -> None:
    """For looking at; that something was drawn is all that is asserted."""
    compare.set("Comfy.ColorPalette", palette)
    compare.pause(500)
    renderer = compare.renderer.replace(" ", "")  # type: ignore[attr-defined]
    path = compare.shoot(screenshots(tmp_path) / f"compare-{renderer}-{palette}.png")
    compare.set("Comfy.ColorPalette", "dark")
    assert np.asarray(Image.open(path).convert("L")).std() > 10
