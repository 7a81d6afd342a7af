"""The record of what is done: what a restart skips, and what it does again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rddm_core.scale.job import Job, Outcome
from rddm_core.scale.manifest import MANIFEST_NAME, Manifest


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    found = []
    for name in ("a.png", "b.png"):
        source = tmp_path / "in" / name
        source.parent.mkdir(exist_ok=True)
        source.write_text(name)
        found.append(Job(source, tmp_path / "out" / name))
    return found


def run(jobs: list[Job], fingerprint: str = "one", failing: tuple[str, ...] = ()) -> list[str]:
    """One run over the jobs; returns the names of those that were done."""
    with Manifest(jobs[0].target.parent, fingerprint) as manifest:
        waiting = manifest.unfinished(jobs)
        for job in waiting:
            failed = job.source.name in failing
            for path in () if failed else job.outputs():
                path.write_text("result")
            manifest.record(Outcome(job, "broken" if failed else None, 4, 3, 0.5))
    return [job.source.name for job in waiting]


def lines(jobs: list[Job]) -> list[dict[str, object]]:
    return [json.loads(x) for x in (jobs[0].target.parent / MANIFEST_NAME).read_text().splitlines()]


def test_what_is_done_is_skipped_and_what_failed_is_tried_again(jobs: list[Job]) -> None:
    assert run(jobs, failing=("b.png",)) == ["a.png", "b.png"]
    assert [(x["target"], x["status"], x["error"]) for x in lines(jobs)] == [
        ("a.png", "done", None),
        ("b.png", "failed", "broken"),
    ]
    assert run(jobs) == ["b.png"]
    assert run(jobs) == []
    assert len(lines(jobs)) == 3


def test_a_file_system_that_cannot_promise_does_not_stop_it(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    assert run(jobs) == ["a.png", "b.png"] and run(jobs) == []


def test_a_line_says_what_was_read_written_and_how(jobs: list[Job]) -> None:
    job = Job(jobs[0].source, jobs[0].target, {"map": jobs[0].target.with_name("a.map.png")})
    run([job])
    status = job.source.stat()
    assert lines([job]) == [
        {
            "source": str(job.source),
            "target": "a.png",
            "extras": {"map": "a.map.png"},
            "source_bytes": status.st_size,
            "source_mtime_ns": status.st_mtime_ns,
            "written": {
                path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in (job.target, job.extras["map"])
            },
            "status": "done",
            "error": None,
            "width": 4,
            "height": 3,
            "seconds": 0.5,
            "settings": "one",
        }
    ]


def test_changes_are_done_again(jobs: list[Job], tmp_path: Path) -> None:
    run(jobs)
    assert run(jobs, fingerprint="two") == ["a.png", "b.png"]
    assert run(jobs, fingerprint="two") == []
    os.utime(jobs[0].source, ns=(1, 1))
    assert run(jobs, fingerprint="two") == ["a.png"]
    jobs[1].target.unlink()
    assert run(jobs, fingerprint="two") == ["b.png"]
    jobs[1].target.write_bytes(b"")  # as after a power cut
    assert run(jobs, fingerprint="two") == ["b.png"]
    other = tmp_path / "elsewhere" / "a.png"
    other.parent.mkdir()
    other.write_text("a.png")
    os.utime(other, ns=(1, 1))
    assert run([Job(other, jobs[0].target)], fingerprint="two") == ["a.png"]


@pytest.mark.parametrize("cut", [b"res", b"RESULT"])
def test_results_that_are_not_as_they_were_written_are_made_again(jobs: list[Job], cut: bytes) -> None:
    """Cut off, or with content of the same size written by something else."""
    job = Job(jobs[0].source, jobs[0].target, {"map": jobs[0].target.with_name("a.map.png")})
    run([job])
    assert run([job]) == []
    for path in job.outputs():
        path.write_bytes(cut)
        os.utime(path, ns=(1, 1))
        assert run([job]) == ["a.png"]
    assert run([job]) == []


def test_lines_of_earlier_versions_still_count(jobs: list[Job]) -> None:
    run(jobs)
    path = jobs[0].target.parent / MANIFEST_NAME
    path.write_text("".join(json.dumps({k: v for k, v in x.items() if k != "written"}) + "\n" for x in lines(jobs)))
    os.utime(jobs[0].target, ns=(1, 1))
    assert run(jobs) == []
    jobs[0].target.write_bytes(b"")
    assert run(jobs) == ["a.png"]


def test_further_extras_are_made_fewer_are_not_missed(jobs: list[Job]) -> None:
    plain = jobs[:1]
    extra = [Job(plain[0].source, plain[0].target, {"map": plain[0].target.with_name("a.map.png")})]
    run(plain)
    extra[0].extras["map"].write_text("of another run")
    assert run(extra) == ["a.png"]
    assert run(plain) == [] and run(extra) == []


def test_a_source_that_changes_during_the_run_is_done_again(jobs: list[Job]) -> None:
    with Manifest(jobs[0].target.parent, "one") as manifest:
        (job,) = manifest.unfinished(jobs[:1])
        job.source.write_text("changed while it was deblurred")
        job.target.write_text("result")
        manifest.record(Outcome(job))
    assert run(jobs[:1]) == ["a.png"]


@pytest.mark.parametrize("torn", [b'{"source": "/x", "targ', b"\xff\xfe", b"[1]\n", b'"x"\n{}\n', b"[" * 100_000])
def test_lines_that_a_crash_tore_are_passed_over(jobs: list[Job], torn: bytes) -> None:
    run(jobs[:1])
    path = jobs[0].target.parent / MANIFEST_NAME
    path.write_bytes(path.read_bytes() + torn)
    assert run(jobs) == ["b.png"]
    assert run(jobs) == []


def test_any_file_name_is_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"new\nline \xff \xc3\xa4.png")
    job = Job(tmp_path / name, tmp_path / "out" / name)
    job.source.write_text("x")
    assert run([job]) == [name]
    assert run([job]) == []
    (entry,) = lines([job])
    assert entry["target"] == name


def test_a_full_disk_is_an_error(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifest(jobs[0].target.parent, "one") as manifest:
        monkeypatch.setattr(os, "write", lambda *_: 3)
        with pytest.raises(OSError, match="is the disk full"):
            manifest.record(Outcome(jobs[0]))
