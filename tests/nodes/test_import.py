"""Loading the pack costs next to nothing and works from any folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE_HOST = Path(__file__).parent / "fake_host"

LOAD = """
import asyncio, importlib.util, json, sys
root = sys.argv[1]
import folder_paths
folder_paths.models_dir = sys.argv[2]
name = root.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
extension = asyncio.run(module.comfy_entrypoint())
asyncio.run(extension.on_load())
schemas = [node.define_schema() for node in asyncio.run(extension.get_node_list())]
import torch
print(json.dumps({
    "nodes": [schema.node_id for schema in schemas],
    "own": sorted(key[len(name) + 1:] for key in sys.modules if key.startswith(name + ".")),
    "others": sorted({key.split(".")[0] for key in sys.modules}),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.mark.parametrize("folder", ["plain", "with space, ä and 北"])
def test_loading_imports_no_network(folder: str, tmp_path: Path) -> None:
    link = tmp_path / folder / "custom_nodes" / "pack.v1"
    link.parent.mkdir(parents=True)
    link.symlink_to(ROOT, target_is_directory=True)
    # The working directory must not help: the host's is its own.
    command = [sys.executable, "-c", LOAD, str(link), str(tmp_path)]
    environment = {"PYTHONPATH": str(FAKE_HOST), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert len(loaded["nodes"]) == 14
    assert not {"transformers", "timm", "torchvision", "rddm_core", "nodes"} & set(loaded["others"])
    assert not [module for module in loaded["own"] if module.startswith("rddm_core.")]
    assert not loaded["cuda"]
