"""Progress bars; what they are told is kept for the tests."""

from __future__ import annotations

from typing import Any

updates: list[tuple[int, int, Any]] = []
"""(value, total, preview) of every update."""


class ProgressBar:
    """As the host's, but never throttled."""

    def __init__(self, total: int) -> None:
        self.total, self.current = total, 0

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        """Report progress."""
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        updates.append((self.current, self.total, preview))
