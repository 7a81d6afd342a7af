"""A real ComfyUI with this pack in it, started once for all tests of this folder.

COMFYUI_PATH names a ComfyUI checkout; without it the tests are skipped. Nothing is written outside a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_host import Host, running
from upscaler import NAME, write_upscaler


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The checkout; skips where there is none."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout: not run on a real host")
    if not (Path(path) / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH is {path}, but there is no main.py in it")
    pytest.importorskip("aiohttp")
    return Path(path)


@pytest.fixture(scope="session")
def host(comfyui_path: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """ComfyUI on the CPU with this pack linked into custom_nodes and random weights in models/rddm."""
    base = tmp_path_factory.mktemp("ComfyUI für Fotos")  # users have such folders
    for folder in ("models/rddm", "extra/rddm"):
        (base / folder).mkdir(parents=True)
    shutil.copyfile(tiny_checkpoint, base / "models" / "rddm" / "tiny.safetensors")
    shutil.copyfile(tiny_checkpoint, base / "extra" / "rddm" / "elsewhere.safetensors")
    (base / "models" / "rddm" / "pickle.pth").write_bytes(b"never listed")
    write_upscaler(base / "models" / "upscale_models" / NAME)
    paths = base / "extra_model_paths.yaml"
    paths.write_text(f"test:\n  base_path: {json.dumps(str(base / 'extra'))}\n  rddm: rddm\n", encoding="utf-8")
    with running(comfyui_path, base, "--extra-model-paths-config", str(paths)) as host:
        yield host
