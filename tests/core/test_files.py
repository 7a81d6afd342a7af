"""Files appear whole or not at all, and what a killed writer leaves is found and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rddm_core.files import atomic_target, remove_abandoned, remove_own_partials

ROOT = Path(__file__).parents[2]
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from rddm_core.files import atomic_target

with atomic_target(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "a.txt")]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    (partial,) = os.listdir(tmp_path)
    assert partial.endswith(".partial")
    assert remove_abandoned(tmp_path) is False
    assert os.listdir(tmp_path) == []


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with atomic_target(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
        assert remove_abandoned(tmp_path) is True
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert remove_abandoned(tmp_path) is False and os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_whose_partial_was_removed_fails_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_target(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        remove_own_partials(tmp_path)
    assert os.listdir(tmp_path) == []


def test_only_partials_of_this_package_are_removed(tmp_path: Path) -> None:
    others = [".a.partial", f".{os.getpid()}.partial", "a.partial", f".{os.getpid()}-{'0' * 31}.partial", "a.png"]
    for name in others:
        (tmp_path / name).touch()
    foreign = tmp_path / f".1-{'0' * 32}.partial"
    foreign.touch()
    remove_own_partials(tmp_path)
    assert foreign.exists()
    assert remove_abandoned(tmp_path) is False
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    assert remove_abandoned(tmp_path / "none") is False
