"""Measuring in a fresh process: start one, and read what the operating system counts. Needs Linux with glibc."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6
TIMEOUT = 900.0
"""Seconds after which a measurement counts as failed."""


class MeasurementError(RuntimeError):
    """A process that failed or took too long; the message is its last line."""


def in_fresh_process(
    function: Callable[..., Any], /, *, environment: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """`function(**arguments)` in a new interpreter; arguments and result pass as JSON.

    A whole number `threads` among the arguments also sets OMP_NUM_THREADS. Raises MeasurementError.
    """
    threads = {"OMP_NUM_THREADS": str(arguments["threads"])} if "threads" in arguments else {}
    command = [sys.executable, "-m", __name__, f"{function.__module__}:{function.__name__}", json.dumps(arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1"} | threads | (environment or {})
    try:
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"took more than {TIMEOUT:.0f} s") from error
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no message"]
        raise MeasurementError(f"ended with {answer.returncode}: {lines[-1]}")
    return json.loads(answer.stdout.splitlines()[-1])


def run_command(command: Sequence[str]) -> float:
    """Seconds of a command run from the project's root. Raises MeasurementError if it fails."""
    started = time.perf_counter()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no message"]
        raise MeasurementError(f"{' '.join(command)} ended with {answer.returncode}: {lines[-1]}")
    return seconds


class PeakMemory:
    """The peak of this process above its size when made, in MB. What was freed is given back first."""

    def __init__(self) -> None:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = _status("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far, but not the size it is compared with."""
        Path("/proc/self/clear_refs").write_text("5")

    def above(self) -> float:
        """The peak since the last restart."""
        return (_status("VmHWM") - self.before) / MB


def _status(key: str) -> int:
    """An entry of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise MeasurementError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    import torch

    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(memory * 1024 / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


def _main() -> None:
    """The other end of `in_fresh_process`: MODULE:FUNCTION, then its arguments as JSON."""
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    _main()
