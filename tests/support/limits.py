"""What a user's machine imposes: permissions that count for root too, and little memory. And what must not happen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_CAPABILITY_VERSION = 0x20080522
_OVERRIDES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root ignore permissions


@contextlib.contextmanager
def permissions_count(probe: Path) -> Iterator[None]:
    """Inside, this thread may open no file whose permissions forbid it, although it may be root's.

    probe: a file that may not be read; the test is skipped where it can be read all the same.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    before = ctypes.create_string_buffer(24)
    if libc.capget(header, before) != 0:
        pytest.skip("capabilities cannot be read here")
    effective, *rest = struct.unpack("=6I", before.raw)
    libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", effective & ~_OVERRIDES, *rest)))
    try:
        with contextlib.suppress(PermissionError), probe.open("rb"):
            pytest.skip("permissions do not count here")
        yield
    finally:
        libc.capset(header, before)


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Inside, this process may take `more_bytes` of further address space; beyond that, allocating fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
_recorders: list[list[str]] = []
_hooks: list[object] = []  # an audit hook cannot be removed, so it is added once


def _record(event: str, _: object) -> None:
    if _recorders and event in _FORBIDDEN:
        _recorders[-1].append(event)


@contextlib.contextmanager
def watched_events() -> Iterator[list[str]]:
    """Inside, the list gets the name of every attempt to unpickle a class, start a program, or reach the network."""
    if _record not in _hooks:
        sys.addaudithook(_record)
        _hooks.append(_record)
    _recorders.append([])
    try:
        yield _recorders[-1]
    finally:
        _recorders.pop()
