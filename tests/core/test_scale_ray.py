"""Many pictures on a local Ray: the same bytes, nothing lost, nothing half, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rddm_core import cli
from rddm_core.files import atomic_target
from rddm_core.pipeline import DeblurSettings
from rddm_core.scale import ray_data
from rddm_core.scale.job import Job, Outcome, Work

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 500
"""How long a test waits for another process before it fails."""


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, as `deblur` starts it, for all tests; skips without it."""
    pytest.importorskip("ray.data", reason="Ray is not installed (extra `scale`)")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_worker_niceness", "0")  # Ray's own default gives way to whatever else runs
        library = ray_data.require_ray()
        with ray_data._session(library, 2):
            yield library


@pytest.fixture
def deblur(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `deblur` in this process; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["deblur", *map(str, arguments), "--model", str(tiny_checkpoint)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(folder / name)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.jsonl"}


def lines(folder: Path) -> list[tuple[str, str]]:
    """Target and status, in the order in which they were written."""
    entries = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [(entry["target"], entry["status"]) for entry in entries]


class Dying(ray_data.Deblurrer):
    """An actor that is killed while it writes once.png for the first time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        real = ray_data.run_job

        def run_job(model: Any, work: Work, job: Job) -> Outcome:
            with (job.source.parent / "begun.log").open("a") as log:
                log.write(f"{job.source.stem}\n")
            if job.source.stem == "once" and not (job.source.parent / "killed").exists():
                (job.source.parent / "killed").touch()
                with atomic_target(job.target) as partial:
                    partial.write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(model, work, job)

        ray_data.run_job = run_job  # of the actor's process


def test_a_killed_worker_loses_no_picture(
    ray: Any, deblur: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.png", "b.jpg", "bad.png", "d.png", "once.png", "z.png"]
    source, out = photos(tmp_path / "in", *names), tmp_path / "out"
    good = (source / "bad.png").read_bytes()
    (source / "bad.png").write_bytes(good[:100])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests
    monkeypatch.setattr(ray_data, "Deblurrer", Dying)
    settings = ("--save-map", "--seed", 5)
    code, shown, error = deblur(source, "-o", out, "--engine", "ray", "--workers", 2, *settings)
    begun = (source / "begun.log").read_text().split()
    assert code == 1 and "bad.png is damaged" in error and "1 of 6 failed" in error, (shown, error, begun)
    assert "up to 2 pictures at a time, with 1 threads each" in shown and shown.count("->") == 5
    assert f"{source}/a.png -> {out}/a.png (40x30" in shown
    assert sorted(lines(out)) == [(name, "failed" if name == "bad.png" else "done") for name in names]
    # What was in hand when the worker died may be computed again, nothing else is.
    assert begun.count("once") == 2 and set(begun) == {Path(name).stem for name in names}
    assert len(begun) == len(names) + 1

    (source / "bad.png").write_bytes(good)
    before = {name: (out / name).stat().st_mtime_ns for name in results(out)}
    code, shown, error = deblur(source, "-o", out, "--resume", *settings)  # either engine goes on with the other's work
    assert (code, error) == (0, "") and "5 of 6 are done already" in shown and shown.count("->") == 1
    assert lines(out)[6:] == [("bad.png", "done")]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before

    assert deblur(source, "-o", tmp_path / "one", *settings)[0] == 0
    assert results(out) == results(tmp_path / "one") and len(results(out)) == 12


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_takes_its_workers_along_and_a_restart_goes_on(
    deblur: Callable[..., tuple[int, str, str]], tmp_path: Path, tiny_checkpoint: Path, sent: signal.Signals
) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed (extra `scale`)")
    names = [f"{i:02}.png" for i in range(60)]
    source, out = photos(tmp_path / "in", *names), tmp_path / "out"
    command = ["deblur", str(source), "-o", str(out), "--engine", "ray", "--model", str(tiny_checkpoint)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "rddm_core", *command],
        cwd=ROOT,
        env=os.environ | {"RAY_worker_niceness": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: driver.poll() is not None or ((out / "manifest.jsonl").exists() and lines(out)))
        workers = [pid for pid in descendants(driver.pid) if "Deblurrer" in command_line(pid)]
        driver.send_signal(sent)
        _, error = driver.communicate(timeout=SECONDS)
    finally:
        driver.kill()
    # Once Ray's local node is going down, a thread of Ray may end the driver, with 1, before it is through.
    assert driver.returncode in ((143, 1) if sent == signal.SIGTERM else (-sent,)), error
    if driver.returncode == 143:
        assert not [name for name in os.listdir(out) if name.endswith(".partial")] and "interrupted" in error
    assert len(workers) == 1
    wait_for(lambda: not command_line(workers[0]))
    done = len(lines(out))
    assert 0 < done < len(names), "it was not stopped midway"

    code, shown, error = deblur(source, "-o", out, "--resume")
    assert (code, error) == (0, "") and f"{done} of 60 are done already" in shown
    assert sorted(lines(out)) == [(name, "done") for name in names]
    assert sorted(results(out)) == names


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, by /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        found += (below := children.get(left.pop(), []))
        left += below
    return found


def command_line(pid: int) -> str:
    """Empty once the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# Without Ray


def test_without_ray_a_clear_message(
    deblur: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, error = deblur(photos(tmp_path / "in", "a.png"), "-o", tmp_path / "out", "--engine", "ray")
    assert code == 1 and "needs Ray Data" in error and "pip install 'ray[data]" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        (16, None, None, (4, 4)),
        (2, None, None, (1, 2)),
        (16, 3, None, (3, 5)),
        (16, None, 2, (8, 2)),
        (2, 8, None, (8, 1)),
        (4, 2, 3, (2, 3)),
    ],
)
def test_cores_are_shared(cores: int, workers: int | None, threads: int | None, expected: tuple[int, int]) -> None:
    assert ray_data.share_cores(cores, workers, threads) == expected


class FakeRay:
    """Notes how Ray is started and stopped."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.calls = error, []

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.calls.append(options | {"path": os.environ.get("PYTHONPATH", "")})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does, with a handler of its own
        if self.error:
            raise self.error

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_ray_starts_here_without_dashboard_or_on_the_named_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    for address in (None, "10.0.0.1:6379"):
        if address:
            monkeypatch.setenv("RAY_ADDRESS", address)
            monkeypatch.setenv("PYTHONPATH", "mine")
        fake = FakeRay()
        with ray_data._session(fake, 4):
            (options,) = fake.calls
        assert fake.calls[1:] == ["shutdown"]
        assert options["address"] == (address or "local") and options["log_to_driver"] is False
        assert ("num_cpus" in options) == (address is None)
        if address is None:
            assert options["include_dashboard"] is False and options["path"] == str(ROOT)
            assert "PYTHONPATH" not in os.environ
        assert signal.getsignal(signal.SIGTERM) is before
    assert os.environ["PYTHONPATH"] == "mine"


def test_a_ray_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    fake = FakeRay(ConnectionError("no cluster\nthere"))
    with (
        pytest.raises(ray_data.EngineError, match="could not be started: no cluster there"),
        ray_data._session(fake, 1),
    ):
        pass
    assert fake.calls[1:] == ["shutdown"] and os.environ["PYTHONPATH"] == "mine"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), ray_data._session(FakeRay(SystemExit(15)), 1):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_ray_loses_is_reported_and_what_it_says_twice_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job(tmp_path / name, tmp_path / "out" / name) for name in ("a.png", "b.png")]
    answer = {
        "target": str(jobs[0].target),
        "warnings": ["odd"],
        "error": None,
        "width": 4,
        "height": 3,
        "seconds": 1.0,
    }
    monkeypatch.setattr(ray_data, "require_ray", FakeRay)
    monkeypatch.setattr(ray_data, "_session", lambda *_: nullcontext())
    monkeypatch.setattr(ray_data, "_answers", lambda *_: iter([dict(answer), dict(answer)]))
    outcomes: list[Outcome] = []
    warned: list[str] = []
    work = Work(DeblurSettings(), tmp_path / "model")
    ray_data.run_ray(jobs, work, outcomes.append, workers=2, threads=1, warn=warned.append)
    assert outcomes[0] == Outcome(jobs[0], None, 4, 3, 1.0) and warned == ["odd", "odd"]
    assert [o.job for o in outcomes] == jobs and "b.png: Ray lost it" in str(outcomes[1].error)

    def fail(*_: object) -> Iterator[dict[str, Any]]:
        raise RuntimeError("The actor died\nbecause")
        yield

    monkeypatch.setattr(ray_data, "_answers", fail)
    with pytest.raises(ray_data.EngineError, match="Ray failed: The actor died because"):
        ray_data.run_ray(jobs, work, outcomes.append, workers=2, threads=1)


def test_an_actor_gives_up_on_what_kills_it_and_passes_warnings_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    attempts = ray_data.Attempts()
    actor = ray_data.Deblurrer(Work(DeblurSettings(), tiny_checkpoint), 1, attempts.begin)
    Image.new("RGBA", (40, 30), (9, 9, 9, 9)).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", tmp_path / "a.jpg", {"map": tmp_path / "a.map.png"})
    answers = [json.loads(actor({"job": ray_data._names(job)})["answer"]) for _ in range(ray_data.ATTEMPTS + 1)]
    assert [a["error"] for a in answers[:-1]] == [None] * ray_data.ATTEMPTS
    assert "a.png: its worker died 3 times" in answers[-1]["error"]
    assert "no transparency" in answers[0]["warnings"][0] and answers[-1]["warnings"] == []
    assert (tmp_path / "a.jpg").exists() and (tmp_path / "a.map.png").exists()
