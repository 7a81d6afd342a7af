"""Shared by all tests: no network, one thread, and a tiny network with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before any library reads them: nothing may be downloaded, and tiny tensors gain nothing from threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from chromium import chromium  # noqa: E402
from tiny import make_tiny_config, write_tiny_checkpoint  # noqa: E402

from rddm_core.config import RDDMConfig  # noqa: E402


@pytest.fixture(scope="session")
def tiny_config() -> RDDMConfig:
    """`lite` with narrow layers: every part of the method is there."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that change a picture visibly; the same bytes in every run."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, one for all tests: a process can drive only one at a time."""
    with chromium() as running:
        yield running
