"""Atomic writing, and what killed processes leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rddm_core.files import atomic_target, remove_abandoned, write_text

WRITER = """
import sys, time
from pathlib import Path
from rddm_core.files import atomic_target

with atomic_target(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".partial"]


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """A process in the middle of writing tmp_path/b.png."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "b.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_the_partial_file_of_a_killed_process_goes_at_the_next_write(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    write_text(tmp_path / "a.txt", "a")
    (left,) = partials(tmp_path)
    assert left.read_bytes() == b"half", "of a process that still runs it stays"
    writer.kill()
    writer.wait()
    assert partials(tmp_path) == [left] and not (tmp_path / "b.png").exists()
    write_text(tmp_path / "a.txt", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_ctrl_c_leaves_nothing(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    writer.send_signal(signal.SIGINT)
    writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_partial_files_of_other_machines_go_after_a_day(tmp_path: Path) -> None:
    with atomic_target(tmp_path / "x") as own:
        own.touch()
        space, pid, token = own.name[1:].removesuffix(".partial").split("-")
        assert pid == str(os.getpid())
    other = "0" * 8 if space != "0" * 8 else "1" * 8
    files = {
        "foreign, new": tmp_path / f".{other}-999999999-{token}.partial",
        "foreign, old": tmp_path / f".{other}-999999998-{token}.partial",
        "dead": tmp_path / f".{space}-999999999-{token}.partial",
        "alive": tmp_path / f".{space}-{os.getpid()}-{token}.partial",
        "not ours": tmp_path / ".download.partial",
        "not ours, old": tmp_path / "report.partial",
    }
    for name, path in files.items():
        path.touch()
        if "old" in name:
            os.utime(path, (time.time() - 100_000,) * 2)
    remove_abandoned(tmp_path)
    assert {name for name, path in files.items() if not path.exists()} == {"foreign, old", "dead"}


def test_folders_that_cannot_be_listed_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
