"""Makes the pictures of the documentation anew: of the example workflows, of the nodes, of a newcomer's first minute.

    COMFYUI_PATH=/path/to/ComfyUI .venv/bin/python docs/make_pictures.py [--only NAME ...]

Runs every workflow of `example_workflows` in a real ComfyUI, with the shipped weights, and takes pictures of what
Chromium shows. NAME is that of a workflow's file, or "newcomer". Needs the test extra, a Chromium, and the
requirements of that ComfyUI in the same environment (otherwise COMFYUI_PYTHON names its interpreter).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from chromium import FrontEnd, chromium  # noqa: E402
from newcomer import walk  # noqa: E402
from real_host import Host, running  # noqa: E402
from upscaler import NAME as UPSCALER  # noqa: E402
from upscaler import write_upscaler  # noqa: E402

from rddm_core.files import atomic_target  # noqa: E402

WORKFLOWS = ROOT / "example_workflows"
DOCS = ROOT / "docs"
HELP = ROOT / "web" / "docs"
NEWCOMER = "newcomer"
SCALE, ROOM = 0.85, 170
"""Of the graph on the screen; pixels left around it, for the bars of the front end."""
WIDTH, QUALITY = 1000, 72
DIVIDER = 0.25
"""Place of the slider: across the subject of the example photograph `sign`."""

BOUNDS = """() => {
  const boxes = [...app.graph.nodes, ...app.graph.groups].map(({ boundingRect: [x, y, w, h] }) => [x, y, x + w, y + h]);
  return [0, 1, 2, 3].map((i) => (i < 2 ? Math.min : Math.max)(...boxes.map((box) => box[i])));
}"""
SLIDER = """() => {
  const slider = app.graph.nodes.find(({ type }) => type === "RDDMCompare");
  return slider ? [...slider.pos] : null;
}"""
NODES = """() => app.graph.nodes.filter(({ type }) => type.startsWith("RDDM"))
  .map(({ type, boundingRect: [x, y, w, h] }) => [type, x, y, w, h])"""
PLACE = """([x, y, scale]) => {
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(x - left) / scale, (y - top) / scale];
  app.canvas.setDirty(true, true);
}"""


def main() -> None:
    """The command line."""
    names = [path.stem for path in sorted(WORKFLOWS.glob("*.json"))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*names, NEWCOMER], default=[*names, NEWCOMER], metavar="NAME")
    chosen = parser.parse_args().only
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        parser.error("COMFYUI_PATH must name a checkout of ComfyUI")
    workflows = [name for name in chosen if name != NEWCOMER]
    with chromium() as browser:
        if workflows:
            with _host(Path(comfyui)) as host:
                front_end = FrontEnd(browser, host.url)
                front_end.ready(nodes_2=False)
                front_end.set("Comfy.Minimap.Visible", False)
                front_end.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
                shown: set[str] = set()
                for name in workflows:
                    _workflow(front_end, host, WORKFLOWS / f"{name}.json", shown)
        if NEWCOMER in chosen:  # with the pictures made above, and on a host that nobody has visited yet
            with _host(Path(comfyui)) as host:
                walk(host, lambda name, page: _save(page, DOCS / f"{NEWCOMER}-{name}.png"), browser)


@contextmanager
def _host(comfyui: Path) -> Iterator[Host]:
    """A real ComfyUI with all that the workflows ask for."""
    with tempfile.TemporaryDirectory(prefix="rddm-pictures-") as folder:
        write_upscaler(Path(folder) / "models" / "upscale_models" / UPSCALER)
        with running(comfyui, Path(folder)) as host:
            for path in sorted((ROOT / "examples").glob("*.jpg")):
                host.add_input(path, path.name)
            yield host


def _workflow(front_end: FrontEnd, host: Host, path: Path, shown: set[str]) -> None:
    """Run one and save its picture beside it, and for the help pages those of nodes that are not in `shown` yet."""
    front_end.page.evaluate("() => { app.nodeOutputs = {}; }")  # else nodes of the same number show the last pictures
    front_end.load(json.loads(path.read_text(encoding="utf-8")))
    left, top, right, bottom = front_end.page.evaluate(BOUNDS)
    size = {"width": (right - left) * SCALE, "height": (bottom - top) * SCALE}
    front_end.page.set_viewport_size({side: int(length) + 2 * ROOM for side, length in size.items()})
    front_end.pause(1000)
    front_end.page.evaluate(PLACE, [ROOM - left * SCALE, ROOM - top * SCALE, SCALE])
    before = len(host.get("/history"))
    front_end.page.evaluate("() => app.queuePrompt(0, 1)")
    front_end.wait_for(lambda: len(host.get("/history")) > before)
    status = list(host.get("/history").values())[-1]["status"]
    if status["status_str"] != "success":
        raise SystemExit(f"{path.name}: {status['messages']}")
    front_end.pause(2500)
    clip = {"x": ROOM - 12, "y": ROOM - 12} | {side: length + 24 for side, length in size.items()}
    graph = _shot(front_end, clip)
    for name, x, y, width, height in front_end.page.evaluate(NODES):
        if name not in shown:
            place = {"x": ROOM + (x - left) * SCALE, "y": ROOM + (y - top) * SCALE}
            area = place | {"width": width * SCALE, "height": height * SCALE}
            _save_jpeg(_shot(front_end, area, width=round(area["width"])), HELP / f"{name}.jpg")
            shown.add(name)
    sliders = front_end.page.evaluate(SLIDER)
    if sliders:
        front_end.page.set_viewport_size({"width": 1600, "height": 1300})
        front_end.pause(1000)
        front_end.page.evaluate(PLACE, [60 - 2 * sliders[0], 60 - 2 * sliders[1], 2])
        front_end.pause(1000)
        frame = front_end.page.locator(".rddm-compare-frame").bounding_box()
        front_end.page.mouse.click(frame["x"] + DIVIDER * frame["width"], frame["y"] + frame["height"] / 2)
        front_end.pause(500)
        graph = _below(graph, _shot(front_end, frame))
    _save_jpeg(graph, path.with_suffix(".jpg"))


def _save_jpeg(picture: Image.Image, path: Path) -> None:
    with atomic_target(path) as target:
        picture.save(target, "JPEG", quality=QUALITY, optimize=True)
    print(path.relative_to(ROOT), flush=True)


def _shot(front_end: FrontEnd, clip: dict[str, Any] | None = None, width: int = WIDTH) -> Image.Image:
    """What the page shows, that many pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Image.open(front_end.shoot(Path(folder) / "shot.png", clip=clip)).convert("RGB")
    return shot.resize((width, round(shot.height * width / shot.width)), Image.Resampling.LANCZOS)


def _below(graph: Image.Image, slider: Image.Image) -> Image.Image:
    """The graph, and under it as much of the slider as makes a square: the templates are shown in squares."""
    height = min(slider.height, max(WIDTH - graph.height, WIDTH // 3))
    top = (slider.height - height) // 2
    both = Image.new("RGB", (WIDTH, graph.height + height))
    both.paste(graph, (0, 0))
    both.paste(slider.crop((0, top, WIDTH, top + height)), (0, graph.height))
    return both


def _save(front_end: FrontEnd, path: Path) -> None:
    """What the page shows, with few colours."""
    shot = _shot(front_end)
    palette = shot.quantize(256)
    with atomic_target(path) as target:
        shot.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, "PNG", optimize=True)
    print(path.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
