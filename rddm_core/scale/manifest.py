"""The record of a run: one line of JSON per picture that is done or failed, for the run that goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import bring_to_disk
from .job import Job, Outcome

MANIFEST_NAME = "manifest.jsonl"


class Manifest:
    """`manifest.jsonl` in a folder of results: only appended to, a line at a time; of a target the last line counts.

    A line holds source (absolute), source_bytes and source_mtime_ns (as it was before the run), target and extras
    (relative to the folder), written (of every file of the result, by its name there, size and time of change), status
    ("done" or "failed"), error, width, height, seconds, and settings: the fingerprint of settings and weights
    (`Work.fingerprint`). A line that a crash cut off is passed over.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Raises OSError where the file cannot be made, read or appended to."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.fingerprint, self.path = folder, fingerprint, folder / MANIFEST_NAME
        self._sources: dict[Path, tuple[int, int] | None] = {}
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        text = self.path.read_bytes()
        if text and not text.endswith(b"\n"):
            self._append("\n")
        self._last = {entry["target"]: entry for entry in _entries(text)}

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def unfinished(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that are not done: new, failed, with a source, settings or weights that changed, or results that are
        gone or were changed since.
        """
        jobs = list(jobs)
        self._sources |= {job.source: _state(job.source) for job in jobs}
        return [job for job in jobs if not self._is_done(job)]

    def record(self, outcome: Outcome) -> None:
        """Append a line; when it returns, the line is on the disk. Raises OSError."""
        job = outcome.job
        size, mtime = self._sources.get(job.source) or (None, None)
        entry = {
            **self._files(job),
            "source_bytes": size,
            "source_mtime_ns": mtime,
            "written": {} if outcome.error is not None else {self._name(p): _state(p) for p in job.outputs()},
            "status": "failed" if outcome.error is not None else "done",
            "error": outcome.error,
            "width": outcome.width,
            "height": outcome.height,
            "seconds": round(outcome.seconds, 3),
            "settings": self.fingerprint,
        }
        self._append(json.dumps(entry) + "\n")  # ASCII, whatever bytes a name has
        bring_to_disk(self._file)

    def _files(self, job: Job) -> dict[str, Any]:
        """How a line names them; it alone tells one job from another."""
        return {
            "source": os.path.abspath(job.source),
            "target": self._name(job.target),
            "extras": {name: self._name(path) for name, path in job.extras.items()},
        }

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def _is_done(self, job: Job) -> bool:
        files, state = self._files(job), self._sources[job.source]
        entry = self._last.get(files["target"])
        return (
            entry is not None
            and entry.get("status") == "done"
            and entry.get("settings") == self.fingerprint
            and entry.get("source") == files["source"]
            and state is not None
            and (entry.get("source_bytes"), entry.get("source_mtime_ns")) == state
            and isinstance(made := entry.get("extras"), dict)
            and files["extras"].items() <= made.items()
            and all(self._is_as_written(path, entry.get("written")) for path in job.outputs())
        )

    def _is_as_written(self, path: Path, written: object) -> bool:
        """`written` of a line; None in one of an earlier version, which does not say what the results were like."""
        state = _state(path)
        if state is None or state[0] == 0:  # a power cut may leave a name without content
            return False
        return written is None or (isinstance(written, dict) and written.get(self._name(path)) == list(state))

    def _append(self, line: str) -> None:
        data = line.encode()
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path} could not be written: is the disk full?")


def _entries(text: bytes) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("target"), str):
            yield entry


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of change, which tell one content from another."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
