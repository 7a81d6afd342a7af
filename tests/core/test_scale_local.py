"""Many pictures in one process: stages that overlap, errors that stay with their picture, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile

from rddm_core.checkpoint import load_checkpoint
from rddm_core.files import atomic_target
from rddm_core.images import ImageError, LoadedImage, load_image
from rddm_core.pipeline import DeblurSettings
from rddm_core.scale import local
from rddm_core.scale.job import Job, Outcome, Pictures, Work, failure, read, run_job, write

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""How long a test waits for another thread before it fails."""


def make_jobs(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[Job]:
    jobs = []
    (folder / "in").mkdir(exist_ok=True)
    for i in range(count):
        source = folder / "in" / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size).save(source)
        jobs.append(Job(source, folder / "out" / source.name))
    return jobs


@pytest.fixture
def work(tiny_checkpoint: Path) -> Work:
    return Work(DeblurSettings(), tiny_checkpoint)


def run(jobs: Sequence[Job], work: Work, overlap: bool = True) -> list[Outcome]:
    outcomes: list[Outcome] = []
    local.run_local(jobs, work, outcomes.append, overlap=overlap)
    return outcomes


class Stages:
    """Stands in for the three stages; each is logged as it begins and ends, and may be made to wait or to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.changed = threading.Condition()
        self.waits: dict[str, str] = {}
        self.errors: dict[str, BaseException] = {}
        monkeypatch.setattr(local, "read", lambda work, job: self.stage("read", job, lambda: load_image(job.source)))
        monkeypatch.setattr(local, "compute", lambda model, work, job, *_: self.stage("compute", job, self.pictures))
        monkeypatch.setattr(local, "write", lambda job, *_: self.stage("write", job, lambda: None))
        monkeypatch.setattr(Work, "load_model", lambda work: None)

    @staticmethod
    def pictures() -> Pictures:
        return Pictures(torch.zeros(3, 30, 40), {})

    def note(self, event: str) -> None:
        with self.changed:
            self.log.append(event)
            self.changed.notify_all()

    def stage(self, name: str, job: Job, do: Callable[[], object]) -> object:
        event = f"{name} {job.source.stem}"
        self.note(event)
        if error := self.errors.get(event):
            raise error
        if awaited := self.waits.get(event):
            with self.changed:
                assert self.changed.wait_for(lambda: awaited in self.log, SECONDS), f"{event} saw no {awaited}"
        result = do()
        self.note(f"{event} done")
        return result


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def test_reading_and_writing_run_beside_computing_one_picture_each(tmp_path: Path, work: Work, stages: Stages) -> None:
    jobs = make_jobs(tmp_path, 4)
    stages.waits = {
        "compute 0": "read 1 done",
        "compute 1": "write 0 done",
        "write 0": "compute 1",
        "read 2": "write 0",
    }
    outcomes = run(jobs, work)
    assert [o.job for o in outcomes] == jobs and all(o.error is None for o in outcomes)
    before = stages.log.index
    assert before("read 2") > before("compute 0 done"), "more than one picture was read ahead"
    assert before("write 1") > before("write 0 done") and before("read 3") > before("compute 1 done")


def test_a_slow_disk_holds_the_next_picture_back(tmp_path: Path, work: Work, stages: Stages) -> None:
    stages.waits = {"write 0": "compute 1 done"}
    run(make_jobs(tmp_path, 3), work)
    assert stages.log.index("compute 2") > stages.log.index("write 0 done"), "two pictures waited to be written"


@pytest.mark.parametrize("reason", ["memory budget", "large pictures"])
def test_nothing_overlaps_where_memory_matters(
    tmp_path: Path, work: Work, stages: Stages, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(local, "OVERLAP_PIXELS", 40 * 30 - (reason == "large pictures"))
    run(make_jobs(tmp_path, 3), work, overlap=reason != "memory budget")
    assert stages.log == [
        f"{s} {i}{end}" for i in range(3) for s in ("read", "compute", "write") for end in ("", " done")
    ]


def test_a_large_picture_is_not_read_ahead(tmp_path: Path, work: Work, stages: Stages) -> None:
    local_jobs, large = make_jobs(tmp_path, 2), tmp_path / "in" / "1.png"
    Image.new("1", (5000, 4000)).save(large)
    run(local_jobs, work)
    assert stages.log.index("read 1") > stages.log.index("write 0 done")


def test_errors_stay_with_their_picture(tmp_path: Path, work: Work, stages: Stages) -> None:
    jobs = make_jobs(tmp_path, 6)
    stages.errors = {
        "read 1": ValueError("a"),
        "compute 2": MemoryError(),
        "write 4": OSError("c"),
        "read 5": KeyError(1),
    }
    outcomes = run(jobs, work)
    assert [o.job for o in outcomes] == jobs
    assert [o.error and o.error.partition(": ")[2] for o in outcomes] == [
        None,
        "a",
        "out of memory, try --tile 512 or --working-size 1024 (MemoryError)",
        None,
        "c",
        "KeyError: 1",
    ]
    assert all(o.error is None or o.error.startswith(str(o.job.source)) for o in outcomes)


def test_a_target_that_cannot_hold_the_picture_is_refused_when_it_is_read(tmp_path: Path, work: Work) -> None:
    Image.new("L", (17000, 1)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a.webp: WEBP holds at most 16383 pixels a side"):
        read(work, Job(tmp_path / "a.png", tmp_path / "a.webp"))
    assert read(work, Job(tmp_path / "a.png", tmp_path / "a.jpg")).pixels.shape == (3, 1, 17000)


@pytest.mark.parametrize("grey", [False, True])
def test_sheets_have_the_colours_of_their_picture(tmp_path: Path, grey: bool) -> None:
    icc = ImageCmsProfile(createProfile("sRGB")).tobytes()
    loaded = LoadedImage(torch.rand(3, 30, 40), grey=grey, icc=icc[:16] + (b"GRAY" if grey else b"RGB ") + icc[20:])
    job = Job(tmp_path / "a.png", tmp_path / "out.png", {"compare": tmp_path / "sheet.jpg"})
    write(job, loaded, Pictures(loaded.pixels, {"compare": torch.rand(3, 60, 80)}))
    assert load_image(tmp_path / "sheet.jpg").icc == (None if grey else loaded.icc)
    assert load_image(tmp_path / "out.png").icc == loaded.icc


@pytest.mark.parametrize("kind", [ImageError, OSError, RuntimeError])
def test_a_folder_called_memory_is_no_lack_of_it(kind: type[Exception]) -> None:
    job = Job(Path("memory lane/a.jpg"), Path("out/a.jpg"))
    said = f"{job.source} is damaged: copy it again"
    assert failure(job, kind(said)).error == said


def test_overlapping_changes_no_byte(tmp_path: Path, work: Work) -> None:
    written = {}
    jobs = make_jobs(tmp_path, 3)
    (tmp_path / "in" / "1.png").write_bytes(b"no picture")
    for name in ("overlap", "serial", "one by one"):
        targets = [
            Job(j.source, tmp_path / name / j.target.name, {"map": tmp_path / name / f"{i}.map.png"})
            for i, j in enumerate(jobs)
        ]
        if name == "one by one":
            model = load_checkpoint(work.checkpoint)
            outcomes = [run_job(model, work, job) for job in targets]
        else:
            outcomes = run(targets, work, overlap=name == "overlap")
        assert [o.error is None for o in outcomes] == [True, False, True]
        assert (outcomes[2].width, outcomes[2].height) == (40, 30)
        written[name] = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    assert sorted(written["serial"]) == ["0.map.png", "0.png", "2.map.png", "2.png"]
    assert written["overlap"] == written["serial"] == written["one by one"]


def test_an_error_of_the_report_ends_the_run(tmp_path: Path, work: Work, stages: Stages) -> None:
    def report(outcome: Outcome) -> None:
        raise OSError("the manifest cannot be written")

    with pytest.raises(OSError, match="manifest"):
        local.run_local(make_jobs(tmp_path, 3), work, report)


@pytest.mark.parametrize("ends_in_time", [True, False])
def test_interruption_waits_shortly_for_the_picture_being_written(
    tmp_path: Path, work: Work, stages: Stages, monkeypatch: pytest.MonkeyPatch, ends_in_time: bool
) -> None:
    jobs = make_jobs(tmp_path, 3)
    released, outcomes, ended = threading.Event(), [], threading.Event()

    def write(job: Job, *_: object) -> None:
        with atomic_target(job.target) as partial, partial.open("wb") as handle:
            handle.write(b"half")
            stages.note("half written")
            assert released.wait(SECONDS)

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    def compute(model: object, work: Work, job: Job, *_: object) -> Pictures:
        if job is jobs[0]:
            return stages.pictures()
        with stages.changed:
            assert stages.changed.wait_for(lambda: "half written" in stages.log, SECONDS)
        if ends_in_time:
            released.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "write", write)
    monkeypatch.setattr(local, "compute", compute)
    monkeypatch.setattr(local, "GRACE", SECONDS if ends_in_time else 0.01)
    with pytest.raises(KeyboardInterrupt):
        local.run_local(jobs, work, report)
    assert os.listdir(tmp_path / "out") == (["0.png"] if ends_in_time else [])
    released.set()
    assert ended.wait(SECONDS)
    assert os.listdir(tmp_path / "out") == (["0.png"] if ends_in_time else [])
    assert (outcomes[0].error is None) == ends_in_time and len(outcomes) == 1


def test_the_header_tells_the_size(tmp_path: Path) -> None:
    Image.new("L", (70, 50)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("none")
    assert local._pixels(tmp_path / "a.png") == 3500
    assert local._pixels(tmp_path / "b.png") == local._pixels(tmp_path / "none.png") == 0


PROGRAM = """
import signal, sys, time
from rddm_core import cli, images
from rddm_core.files import atomic_target

def save(path, *_, **__):
    with atomic_target(path) as partial:
        partial.write_text("half")
        print("half written", flush=True)
        time.sleep(3600)

if sys.argv.pop(1) == "never ends":
    images.save_image = save
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
cli.program()
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("while_writing", [False, True])
def test_signals_end_the_program_and_leave_no_partial_file(
    tmp_path: Path, tiny_checkpoint: Path, sent: signal.Signals, code: int, while_writing: bool
) -> None:
    make_jobs(tmp_path, 3 if while_writing else 300)
    command = ["deblur", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "never ends" if while_writing else "ends", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(sent)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code and "interrupted: no unfinished file is left behind" in error
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 0 if while_writing else 0 < len(written) < 300
    for path in written:
        assert load_image(path).pixels.shape == (3, 30, 40)


def test_at_most_three_pictures_are_in_memory(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[LoadedImage]] = []
    most = []
    read = local.read

    def watched(work: Work, job: Job) -> LoadedImage:
        loaded = read(work, job)
        most.append(sum(ref() is not None for ref in alive) + 1)
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(local, "read", watched)
    run(make_jobs(tmp_path, 6), work)
    assert max(most) <= 3
    most.clear()
    alive.clear()
    run(make_jobs(tmp_path, 4), work, overlap=False)
    assert max(most) == 1
