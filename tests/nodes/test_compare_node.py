"""RDDM Compare without a browser: what it hands to the slider, and which batches go together."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_both_sides_reach_the_slider(pack: SimpleNamespace, before: int, after: int) -> None:
    small, large = torch.rand(before, 8, 9, 3), torch.rand(after, 16, 18, 4)
    shown: dict[str, Any] = pack.nodes["RDDMCompare"].execute(before=small, after=large).ui
    # As many on both sides: for a list the host joins what several runs sent, and pair n of them must stay a pair.
    assert {side: len(files) for side, files in shown.items()} == dict.fromkeys(shown, max(before, after))
    assert "images" not in shown, "the host would show them once more"


def test_transparency_reaches_the_slider(
    pack: SimpleNamespace, submodule: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []

    def preview(image: Tensor, cls: Any) -> SimpleNamespace:
        shown.append(image)
        return SimpleNamespace(values=[])

    monkeypatch.setattr(submodule("nodes.compare").ui, "PreviewImage", preview)
    before, after = torch.rand(1, 8, 9, 3), torch.rand(1, 16, 18, 4)
    pack.nodes["RDDMCompare"].execute(before=before, after=after)
    assert torch.equal(shown[0], before) and torch.equal(shown[1], after)


def test_a_film_shows_progress_and_can_be_stopped(
    pack: SimpleNamespace, fake_host: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, film = pack.nodes["RDDMCompare"].execute, torch.rand(3, 8, 9, 3)
    compare(before=film, after=film[:1])
    assert [update[:2] for update in fake_host.utils.updates] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setattr(fake_host.management, "interrupt_after", 2)
    with pytest.raises(fake_host.management.InterruptProcessingException):
        compare(before=film, after=film)


def test_batches_of_different_length_do_not_go_together(pack: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="before has 2 pictures, but after has 3: connect the same number"):
        pack.nodes["RDDMCompare"].execute(before=torch.rand(2, 8, 9, 3), after=torch.rand(3, 8, 9, 3))
