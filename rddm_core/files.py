"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_target(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; on success that file replaces `path`.

    On any failure, Ctrl-C too, it is removed. Missing folders are made. The body creates the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not made from the name of `path`, which may already be as long as the file system allows.
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # After a replacement nothing is left to remove; after a failure or Ctrl-C the partial file goes.
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_target(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
