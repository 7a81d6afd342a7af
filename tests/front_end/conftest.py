"""The real front end from PyPI over a stand-in for the server: no ComfyUI is needed for these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import RENDERERS, FrontEnd

from .mock_host import MockHost, serve


@pytest.fixture(scope="session")
def mock_host(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockHost]:
    """The server; skips where the front end is not installed."""
    package = pytest.importorskip("comfyui_frontend_package", reason="comfyui-frontend-package is not installed")
    static = Path(next(iter(package.__path__))) / "static"
    with serve(MockHost(static, tmp_path_factory.mktemp("files"))) as host:
        yield host


@pytest.fixture(scope="session", params=list(RENDERERS))
def front_end(request: pytest.FixtureRequest, browser: Any, mock_host: MockHost) -> Iterator[FrontEnd]:
    """The front end, drawing nodes in one of its two ways; `renderer` names it."""
    front_end = FrontEnd(browser, mock_host.url, size=(1400, 900))
    front_end.ready(nodes_2=RENDERERS[request.param])
    front_end.renderer = request.param  # type: ignore[attr-defined]
    yield front_end
    front_end.page.close()
