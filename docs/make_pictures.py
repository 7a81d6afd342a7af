"""Makes the pictures of the documentation anew: those of the example workflows, and a newcomer's first minute.

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
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from chromium import FrontEnd, chromium  # noqa: E402
from newcomer import walk  # noqa: E402
from real_host import Host, running  # noqa: E402
from upscaler import write_upscaler  # noqa: E402

from rddm_core.files import atomic_target  # noqa: E402

WORKFLOWS = ROOT / "example_workflows"
DOCS = ROOT / "docs"
NEWCOMER = "newcomer"
UPSCALER = "RealESRGAN_x4plus.safetensors"
SCALE, ROOM = 0.85, 170
"""Of the graph on the screen; pixels left around it, for the bars of the front end."""
WIDTH, QUALITY = 1200, 85

BOUNDS = """() => {
  const boxes = [...app.graph.nodes, ...app.graph.groups].map(({ boundingRect: [x, y, w, h] }) => [x, y, x + w, y + h]);
  return [0, 1, 2, 3].map((i) => (i < 2 ? Math.min : Math.max)(...boxes.map((box) => box[i])));
}"""
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
    with tempfile.TemporaryDirectory(prefix="rddm-pictures-") as folder, chromium() as browser:
        base = Path(folder)
        (base / "models" / "upscale_models").mkdir(parents=True)
        write_upscaler(base / "models" / "upscale_models" / UPSCALER)
        with running(Path(comfyui), base) as host:
            for path in sorted((ROOT / "examples").glob("*.jpg")):
                host.add_input(path, path.name)
            if NEWCOMER in chosen:  # first: the front end behaves otherwise on a second visit
                walk(host, lambda name, page: _save(page, DOCS / f"{NEWCOMER}-{name}.png"), browser).page.close()
            workflows = [name for name in chosen if name != NEWCOMER]
            if workflows:
                front_end = FrontEnd(browser, host.url)
                front_end.ready(nodes_2=False)
                front_end.set("Comfy.Minimap.Visible", False)
                front_end.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
                for name in workflows:
                    _workflow(front_end, host, WORKFLOWS / f"{name}.json")


def _workflow(front_end: FrontEnd, host: Host, path: Path) -> None:
    """Run one and save its picture beside it."""
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
    _save(front_end, path.with_suffix(".jpg"), {"x": ROOM - 12, "y": ROOM - 12} | {k: v + 24 for k, v in size.items()})


def _save(front_end: FrontEnd, path: Path, clip: dict[str, Any] | None = None) -> None:
    """What the page shows, reduced for the documentation."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Image.open(front_end.shoot(Path(folder) / "shot.png", clip=clip)).convert("RGB")
    if shot.width > WIDTH:
        shot = shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS)
    with atomic_target(path) as target:
        if path.suffix == ".jpg":
            shot.save(target, "JPEG", quality=QUALITY, optimize=True)
        else:
            palette = shot.quantize(256)
            dithered = shot.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            dithered.save(target, "PNG", optimize=True)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
