"""Files appear whole or not at all, and what a killed writer leaves is found and removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rddm_core.files import atomic_target, remove_abandoned, remove_own_partials, write_text

ROOT = Path(__file__).parents[2]
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from rddm_core.files import atomic_target

with atomic_target(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


WRITER = """
import signal, sys, time
from pathlib import Path
from rddm_core.files import atomic_target

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
with atomic_target(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".partial"]


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing tmp_path/b.png."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "b.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, sync = tmp_path / "a.txt", [], os.fsync

    def watch(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_text(path, "four")
    assert synced == [(4, False)]


@pytest.mark.parametrize(("code", "written"), [(errno.EIO, False), (errno.ENOSPC, False), (errno.EINVAL, True)])
def test_what_did_not_reach_the_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, written: bool
) -> None:
    """But not that a file system knows no such thing."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with nullcontext() if written else pytest.raises(OSError, match=os.strerror(code)):
        write_text(tmp_path / "a.txt", "a")
    assert os.listdir(tmp_path) == (["a.txt"] if written else [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="no regular file under this name"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_writer_wins_where_the_file_is_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("not on this file system")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.txt"
    with atomic_target(path, keep=True) as partial:
        write_text(path, "first", keep=True)
        assert path.read_text() == "first"
        partial.write_text("second")
    assert path.read_text() == "first" and partials(tmp_path) == []
    write_text(path, "third")
    assert path.read_text() == "third"


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


def test_ctrl_c_while_the_file_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = pytest.importorskip("fcntl").flock

    def interrupted(file: Any, operation: int) -> None:
        lock(file, operation)
        raise KeyboardInterrupt

    monkeypatch.setattr("rddm_core.files.fcntl.flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "a")
    assert os.listdir(tmp_path) == []


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


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr("rddm_core.files.fcntl", None)
    new, old = (tmp_path / f".1-{digit * 32}.partial" for digit in "01")
    for path in (new, old):
        path.touch()
    os.utime(old, (time.time() - 100_000,) * 2)
    write_text(tmp_path / "a.txt", "a")
    assert sorted(os.listdir(tmp_path)) == [new.name, "a.txt"]


def test_a_file_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock, taken = fcntl.flock, []

    def late(file: Any, flags: int) -> None:
        if not taken:
            taken.append(file.name)
            os.unlink(file.name)
        lock(file, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    write_text(tmp_path / "a.txt", "a")
    assert taken and (tmp_path / "a.txt").read_text() == "a" and os.listdir(tmp_path) == ["a.txt"]


def test_folders_that_cannot_be_listed_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
