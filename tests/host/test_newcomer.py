"""A newcomer's first minute on the real host: templates, first workflow, Run, slider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from chromium import screenshots
from newcomer import walk
from real_host import Host


def test_from_the_templates_to_the_slider(host: Host, browser: Any, tmp_path: Path) -> None:
    moments = []
    folder = screenshots(tmp_path)

    def moment(name: str, page: Any) -> None:
        moments.append(name)
        page.shoot(folder / f"newcomer-{name}.png")

    front_end = walk(host, moment, browser)
    assert moments == ["templates", "workflow", "slider"]
    run = list(host.get("/history").values())[-1]
    assert run["status"]["status_str"] == "success", run["status"]["messages"]
    shown = next(output for output in run["outputs"].values() if "rddm_before" in output)
    before, after = (np.asarray(host.view(shown[f"rddm_{side}"][0]), np.float32) for side in ("before", "after"))
    assert before.shape == after.shape and np.abs(before - after).mean() > 0.5
    divider = front_end.page.locator(".rddm-compare-stage").get_attribute("aria-valuenow")
    assert abs(int(divider or 0) - 22) <= 2  # where it was dragged to
    assert not front_end.errors
    front_end.page.close()
