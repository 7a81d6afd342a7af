"""Many runs in a row on the real host: memory does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from real_host import ROOT, Host

from .graphs import chain

TINY = "tiny.safetensors"
WARM_UP, RUNS = 6, 20
WIDTH, HEIGHT = 640, 480
PICTURE = WIDTH * HEIGHT * 3 * 4
"""Bytes of one picture in float32: what the smallest leak would keep of every run."""


def test_twenty_runs_keep_nothing(host: Host) -> None:
    psutil = pytest.importorskip("psutil")  # one of ComfyUI's own requirements
    process = psutil.Process(host.process.pid)
    with Image.open(ROOT / "examples" / "sign.blur.jpg") as picture:
        photo = host.add_input(picture.crop((0, 0, WIDTH, HEIGHT)), "memory.png")
    used = []
    for seed in range(WARM_UP + RUNS):
        run = host.run(chain(photo, TINY, sampler={"seed": 1000 + seed}))
        assert run.history["status"]["status_str"] == "success", run.history["status"]["messages"]
        assert {"sampler", "merge"} <= run.executed()
        used.append(process.memory_info().rss)
    first, last = np.median(used[WARM_UP : WARM_UP + 5]), np.median(used[-5:])
    between = RUNS - 5
    assert last - first < between * PICTURE / 2, f"MB after each run: {[round(rss / 2**20) for rss in used]}"
