"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.([0-9a-f]{8})-([0-9]{1,9})-[0-9a-f]{32}\.partial")
_ABANDONED_SECONDS = 24 * 3600


@contextmanager
def atomic_target(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; on success that file replaces `path`.

    On any failure, Ctrl-C too, it is removed; what a killed process left in the folder goes at the next call
    (`remove_abandoned`). Missing folders are made. The body creates the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    # Not made from the name of `path`, which may already be as long as the file system allows.
    partial = path.parent / f".{_process_space()}-{os.getpid()}-{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # After a replacement nothing is left to remove; after a failure or Ctrl-C the partial file goes.
        partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of `atomic_target` whose process runs no more, as after a kill.

    Whether it runs is known for processes of this machine (and container). Those of others, and all on Windows, go
    once they were not written to for a day.
    """
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be writable but not readable
        for entry in entries:
            if (name := _PARTIAL.fullmatch(entry.name)) is None:
                continue
            with suppress(OSError):  # another process may have removed it first
                old = time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS
                if old or (name[1] == _process_space() and not _is_running(int(name[2]))):
                    os.unlink(entry.path)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_target(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _process_space() -> str:
    """Names the machine, and the container, within which a process id means one process."""
    namespace = ""
    with suppress(OSError):  # Linux alone has it
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.blake2b(f"{platform.node()} {namespace}".encode(), digest_size=4).hexdigest()


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end the process there, whatever the signal
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # of another user
    return True
