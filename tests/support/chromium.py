"""The front end of ComfyUI in Chromium, for the tests that look at the pack in it.

Needs playwright and a Chromium (CHROMIUM names it, otherwise it is looked for). RDDM_SCREENSHOTS names a folder for the
pictures of what the browser showed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
RENDERERS = {"LiteGraph": False, "Nodes 2.0": True}
"""The two ways in which the front end draws nodes -> the setting for them."""
READY = """document.querySelector('.rddm-compare-ready') &&
  [...document.querySelectorAll('.rddm-compare-ready img')].every((image) => image.complete)"""
"""Holds once RDDM Compare shows its pictures."""
OPEN = "(workflow) => app.loadGraphData(workflow, true, true, app.extensionManager.workflow.activeWorkflow)"


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("there is no Chromium: the front end is not tested")
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE)
        yield running
        running.close()


class FrontEnd:
    """A page with the front end in it. `errors` collects what the console said of our files."""

    def __init__(self, browser: Any, url: str, *, size: tuple[int, int] = (1800, 1000)) -> None:
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(url, wait_until="domcontentloaded")
        self.wait("window.app?.graph && window.LiteGraph?.registered_node_types['RDDMSampler']")

    def _hear(self, message: Any) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and "rddm" in text.lower():
            self.errors.append(text)

    def ready(self, *, nodes_2: bool) -> None:
        """Leave the templates of a first visit, choose the renderer, ask for previews."""
        self.wait("document.querySelector('#graph-canvas') && window.app.extensionManager?.setting")
        self.pause(1000)
        self.page.keyboard.press("Escape")
        self.set("Comfy.VueNodes.Enabled", nodes_2)
        self.set("Comfy.Execution.PreviewMethod", "auto")

    def set(self, name: str, value: Any) -> None:
        """Change a setting."""
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow, in the place of the one that is open."""
        self.page.evaluate(OPEN, workflow)
        self.pause(500)

    def graph(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The workflow as it would be saved, and as it would be queued."""
        saved, prompt = self.page.evaluate("async () => [app.graph.serialize(), (await app.graphToPrompt()).output]")
        return saved, prompt

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression holds."""
        self.page.wait_for_function(f"() => !!({condition})")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until something outside the page holds."""
        for _ in range(PATIENCE // 500):
            if condition():
                return
            self.pause(500)
        raise AssertionError("it never happened")

    def pause(self, milliseconds: int) -> None:
        """Let the page draw."""
        self.page.wait_for_timeout(milliseconds)

    def shoot(self, path: Path, **options: Any) -> Path:
        """A picture of the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, **options)
        return path


def screenshots(fallback: Path) -> Path:
    """The folder for pictures of the browser."""
    return Path(os.environ.get("RDDM_SCREENSHOTS", fallback))
