"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PARTIAL = re.compile(r"\.(\d+)-[0-9a-f]{32}\.partial")
_ABANDONED_SECONDS = 24 * 3600
"""Where files cannot be locked, what was not written to for so long counts as abandoned."""


@contextmanager
def atomic_target(path: Path, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; on success that file replaces `path`.

    With `keep` it does so only where there is no `path` by then: of several writers the first one wins.
    It is on the disk before it gets its name: not even a power cut leaves half a file under that name.
    On any failure, Ctrl-C too, it is removed; what a killed process left in the folder goes at the next call
    (`remove_abandoned`). Missing folders are made. The body fills the file, which is there, empty.
    Raises OSError where `path` is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "there is no regular file under this name, nothing takes its place", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    # Not made from the name of the target, which may already be as long as the file system allows.
    partial = path.parent / f".{os.getpid()}-{uuid.uuid4().hex}.partial"
    try:  # from before the file is made: Ctrl-C may come at any moment
        with _create(partial) as held:
            if fcntl is None:
                held.close()  # an open file could not be renamed
            yield partial
            with partial.open("rb+") as file:
                bring_to_disk(file.fileno())
            if keep:
                _place_new(partial, path)
            else:
                os.replace(partial, path)
    finally:
        # After a replacement nothing is left to remove; after a failure or Ctrl-C the partial file goes.
        partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> bool:
    """Remove what processes left in `folder` that were killed while they wrote; what is being written stays.

    Returns whether something stays.
    """
    partials = _partials(folder)
    for partial in partials:
        with suppress(OSError):  # another process may have removed it first
            if fcntl is None:
                if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                    partial.unlink()
                continue
            with partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while its writer lives
                partial.unlink()
    return any(partial.exists() for partial in partials)


def remove_own_partials(folder: Path) -> None:
    """Remove what threads of this process have not finished writing in `folder`: they then fail, and leave nothing."""
    for partial in _partials(folder, os.getpid()):
        with suppress(OSError):
            partial.unlink()


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Hold the file `path`, which is made and stays, while the body runs; yields False where another process holds it.

    It yields True as well where files cannot be locked. A kill ends the hold, whatever children live on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        free = True
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                free = error.errno not in (errno.EACCES, errno.EAGAIN)
        yield free


def write_text(path: Path, text: str, keep: bool = False) -> None:
    """Write `text` as UTF-8, atomically; `keep` as in `atomic_target`."""
    with atomic_target(path, keep) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def bring_to_disk(descriptor: int) -> None:
    """What was written to an open file survives a power cut, where the file system can promise it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # it knows no such thing
            raise


def _place_new(partial: Path, path: Path) -> None:
    """Give the file the name `path`, unless a file has it."""
    with suppress(FileExistsError):
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            # Windows refuses to rename over a file; elsewhere, a moment is left between the look and the renaming.
            if not path.exists():
                os.rename(partial, path)


def _create(partial: Path) -> BinaryIO:
    """A new file, locked as long as it is open, which tells `remove_abandoned` that its writer lives."""
    while True:
        held = partial.open("xb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_EX)
        if partial.exists():  # else another process took it for abandoned before it was locked
            return held
        held.close()


def _partials(folder: Path, process: int | None = None) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be writable but not readable
        names = [entry.name for entry in entries]
        matches = [match for match in map(_PARTIAL.fullmatch, names) if match]
        return [folder / match[0] for match in matches if process is None or int(match[1]) == process]
    return []
