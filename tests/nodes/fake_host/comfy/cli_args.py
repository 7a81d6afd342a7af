"""The command line of the host."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace


class LatentPreviewMethod(Enum):
    """--preview-method."""

    NoPreviews = "none"
    Auto = "auto"


args = SimpleNamespace(preview_method=LatentPreviewMethod.NoPreviews, preview_size=512)
