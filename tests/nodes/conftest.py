"""The pack, loaded as ComfyUI loads it, over a small stand-in for ComfyUI (`fake_host`)."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
FAKE_HOST = Path(__file__).parent / "fake_host"
FAKE_MODULES = ("comfy", "comfy_api", "folder_paths")


@pytest.fixture(scope="session")
def fake_host() -> Iterator[SimpleNamespace]:
    """The stand-in's modules."""
    sys.path.insert(0, str(FAKE_HOST))
    try:
        import comfy.cli_args
        import comfy.model_management
        import comfy.utils
        import folder_paths

        yield SimpleNamespace(
            args=comfy.cli_args.args,
            previews=comfy.cli_args.LatentPreviewMethod,
            management=comfy.model_management,
            utils=comfy.utils,
            folders=folder_paths,
        )
    finally:
        sys.path.remove(str(FAKE_HOST))
        for name in [name for name in sys.modules if name.split(".")[0] in FAKE_MODULES]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def pack(
    fake_host: SimpleNamespace, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The root package under the kind of name that ComfyUI gives it, after `on_load`; nodes by id."""
    models = tmp_path_factory.mktemp("models with ä space")
    (models / "rddm" / "below").mkdir(parents=True)
    shutil.copyfile(tiny_checkpoint, models / "rddm" / "tiny.safetensors")
    shutil.copyfile(tiny_checkpoint, models / "rddm" / "below" / "tiny.SAFETENSORS")
    for name in ("pickle.pth", "notes.txt"):
        (models / "rddm" / name).write_bytes(b"not a checkpoint")
    fake_host.folders.models_dir = str(models)
    # What extra_model_paths.yaml does, before packs are loaded.
    extra = tmp_path_factory.mktemp("extra")
    shutil.copyfile(tiny_checkpoint, extra / "elsewhere.safetensors")
    fake_host.folders.add_model_folder_path("rddm", str(extra))

    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        extension = run(module.comfy_entrypoint())
        run(extension.on_load())
        nodes = {node.define_schema().node_id: node for node in run(extension.get_node_list())}
        yield SimpleNamespace(module=module, name=name, nodes=nodes, models=models, extra=extra)
    finally:
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name.split(".")[0]]:
            del sys.modules[loaded]


@pytest.fixture
def submodule(pack: SimpleNamespace) -> Any:
    """Import a module of the loaded pack, e.g. `submodule("nodes.host")`."""

    def find(path: str) -> ModuleType:
        return importlib.import_module(f"{pack.name}.{path}")

    return find


@pytest.fixture(autouse=True)
def _fresh_host(fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with the host's defaults."""
    fake_host.utils.updates.clear()
    fake_host.management.load_calls.clear()
    monkeypatch.setattr(fake_host.management, "interrupt_after", None)


@pytest.fixture(scope="session")
def model(pack: SimpleNamespace) -> Any:
    """RDDM_MODEL: the tiny checkpoint."""
    return pack.nodes["RDDMModelLoader"].execute(file="tiny.safetensors", dtype="auto").result[0]


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """IMAGE [2, 70, 90, 3]: two pictures of a size that no network likes."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(2, 3, 9, 12, generator=generator)
    return torch.nn.functional.interpolate(small, size=(70, 90), mode="bilinear").clamp(0, 1).movedim(1, -1)


@pytest.fixture(scope="session")
def painted() -> Tensor:
    """MASK [1, 40, 50], painted by hand: hard edges, and another size than the photo."""
    mask = torch.zeros(1, 40, 50)
    mask[:, 10:30, 5:45] = 1
    return mask


def run(coroutine: Any) -> Any:
    """The result of a coroutine, in a thread of its own: the browser of other tests keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
