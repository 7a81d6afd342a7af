"""RDDMModelLoader: which files it offers, what it refuses, and what the host's model management gets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rddm_core.checkpoint import default_checkpoint_path

Submodule = Callable[[str], ModuleType]


@pytest.fixture
def loader(pack: SimpleNamespace) -> Any:
    return pack.nodes["RDDMModelLoader"]


@pytest.fixture
def shipped(submodule: Submodule, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped weights."""
    shutil.copyfile(tiny_checkpoint, tmp_path / "rddm-lite.safetensors")
    (tmp_path / "README.md").write_text("no checkpoint")
    monkeypatch.setattr(submodule("nodes.host"), "SHIPPED_WEIGHTS", tmp_path)
    return tmp_path


def offered(loader: Any) -> list[str]:
    return loader.define_schema().object_info()["input"]["required"]["file"][1]["options"]


def test_shipped_weights_come_first_and_pickles_never(loader: Any, shipped: Path) -> None:
    assert offered(loader) == [
        "rddm-lite.safetensors [included]",
        os.path.join("below", "tiny.SAFETENSORS"),
        "elsewhere.safetensors",
        "tiny.safetensors",
    ]


def test_pickles_stay_out_though_another_pack_lists_them(
    loader: Any, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = fake_host.folders.folder_names_and_paths["rddm"][1]
    monkeypatch.setitem(
        fake_host.folders.folder_names_and_paths,
        "rddm",
        (fake_host.folders.get_folder_paths("rddm"), extensions | {".pth"}),
    )
    assert "pickle.pth" in fake_host.folders.get_filename_list("rddm")
    assert "pickle.pth" not in offered(loader)
    with pytest.raises(FileNotFoundError):
        loader.execute(file="pickle.pth", dtype="auto")


def test_the_shipped_folder_is_where_the_core_has_it(submodule: Submodule) -> None:
    assert submodule("nodes.host").SHIPPED_WEIGHTS.resolve() == default_checkpoint_path().parent.resolve()


def test_loads_shipped_and_own_and_extra_paths(loader: Any, shipped: Path) -> None:
    for file in offered(loader):
        (patcher,) = loader.execute(file=file, dtype="auto").result
        assert patcher.model.recommended_steps == 2 and not patcher.model.training


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_dtype(loader: Any, dtype: str, expected: torch.dtype) -> None:
    (patcher,) = loader.execute(file="tiny.safetensors", dtype=dtype).result
    assert {parameter.dtype for parameter in patcher.model.parameters()} == {expected}


@pytest.mark.parametrize("file", ["missing.safetensors", "../tiny.safetensors/..", "missing [included]"])
def test_a_missing_file_names_the_folders(loader: Any, pack: SimpleNamespace, file: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        loader.execute(file=file, dtype="auto")
    message = str(caught.value)
    assert str(pack.models / "rddm") in message and str(pack.extra) in message and ".safetensors" in message


def test_no_way_out_of_the_folders(loader: Any, pack: SimpleNamespace, tiny_checkpoint: Path) -> None:
    outside = os.path.relpath(tiny_checkpoint, pack.models / "rddm")
    assert (pack.models / "rddm" / outside).is_file()
    with pytest.raises(FileNotFoundError):
        loader.execute(file=outside, dtype="auto")


def test_a_wrong_file_is_named(loader: Any, pack: SimpleNamespace) -> None:
    wrong = pack.models / "rddm" / "wrong.safetensors"
    wrong.write_bytes(b"PK\x03\x04 and so on")
    try:
        with pytest.raises(ValueError, match="wrong.safetensors.*pickle"):
            loader.execute(file="wrong.safetensors", dtype="auto")
    finally:
        wrong.unlink()


def test_a_plain_regression_is_not_taken_for_the_method(
    loader: Any, pack: SimpleNamespace, submodule: Submodule, tiny_checkpoint: Path
) -> None:
    plain = pack.models / "rddm" / "plain.safetensors"
    core = submodule("rddm_core.checkpoint")
    model = core.load_checkpoint(tiny_checkpoint)
    recipe = {"recipe": {"stage": "regression"}}
    try:
        core.save_checkpoint(plain, model, provenance=recipe, licence="none")
        with pytest.raises(ValueError, match=r"plain.safetensors holds a plain network .* `regression`, not this meth"):
            loader.execute(file=plain.name, dtype="auto")
    finally:
        plain.unlink(missing_ok=True)


def test_a_replaced_file_is_loaded_again(loader: Any, pack: SimpleNamespace, tiny_checkpoint: Path) -> None:
    copy = pack.models / "rddm" / "copy.safetensors"
    shutil.copyfile(tiny_checkpoint, copy)
    try:
        before = loader.fingerprint_inputs(file="copy.safetensors", dtype="auto")
        assert before == loader.fingerprint_inputs(file="copy.safetensors", dtype="auto")
        os.utime(copy, ns=(1, 1))
        assert before != loader.fingerprint_inputs(file="copy.safetensors", dtype="auto")
    finally:
        copy.unlink()


def test_a_name_from_another_node_does_not_turn_off_caching(loader: Any) -> None:
    """The host does not know it before the graph runs, and takes an error for "always changed"."""
    assert loader.fingerprint_inputs(file=None, dtype="auto") == loader.fingerprint_inputs(file=None, dtype="auto")
