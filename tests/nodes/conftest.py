"""The pack, loaded as ComfyUI loads it, over a small stand-in for ComfyUI (`fake_host`)."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pack import fake_host_modules, loaded_pack
from torch import Tensor


@pytest.fixture(scope="session")
def fake_host() -> Iterator[SimpleNamespace]:
    """The stand-in's modules."""
    with fake_host_modules() as modules:
        yield modules


@pytest.fixture(scope="session")
def pack(
    fake_host: SimpleNamespace, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The pack beside folders with checkpoints in them (`models` and `extra`)."""
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
    with loaded_pack() as loaded:
        yield SimpleNamespace(**vars(loaded), models=models, extra=extra)


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
