"""What the tests of short training runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniature import write_collection

from rddm_core.config import RDDMConfig


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature of the image collection, for reading alone: whoever changes it takes a copy."""
    return write_collection(tmp_path_factory.mktemp("data"))


@pytest.fixture
def narrow_networks(monkeypatch: pytest.MonkeyPatch, tiny_config: RDDMConfig) -> None:
    """Runs of this process build the tiny networks instead of the preset's."""
    monkeypatch.setattr("rddm_core.training.train.preset", lambda _: tiny_config)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs."""
    monkeypatch.setenv("RDDM_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("RDDM_DATA", raising=False)
    return tmp_path / "runs"
