"""The way of somebody who has just installed the pack, in the front end of a real ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chromium import READY, FrontEnd
from real_host import PACK, Host

TEMPLATE = "1-deblur-in-one-node"
VIEWPORT = (1440, 900)


def walk(host: Host, moment: Callable[[str, FrontEnd], None], browser: Any) -> FrontEnd:
    """First visit -> templates of the pack -> first workflow -> Run -> slider.

    `moment` is called with a name at every stage, for pictures. Only clicks and the mouse, as a user has them. Returns
    the page as it is at the end.
    """
    front_end = FrontEnd(browser, host.url, size=VIEWPORT)
    page = front_end.page
    front_end.pause(3000)
    templates = page.get_by_role("dialog")
    if not templates.count():  # they open by themselves on a first visit only
        page.get_by_role("button", name="Templates").click()
    templates.get_by_text(PACK, exact=True).first.click()
    card = page.get_by_test_id(f"template-workflow-{TEMPLATE}")
    card.wait_for()
    front_end.pause(2000)  # their pictures
    moment("templates", front_end)
    card.get_by_text(TEMPLATE).click()
    front_end.wait("app.graph.nodes.some(({ type }) => type === 'RDDMCompare')")
    front_end.pause(2000)
    moment("workflow", front_end)
    before = len(host.get("/history"))
    page.get_by_test_id("queue-button").click()
    front_end.wait_for(lambda: len(host.get("/history")) > before)
    front_end.wait(READY)
    front_end.pause(2000)
    stage = page.locator(".rddm-compare-stage").bounding_box()
    assert stage is not None
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 0.28 * stage["width"], y, steps=6)
    page.mouse.up()
    front_end.pause(500)
    moment("slider", front_end)
    return front_end
