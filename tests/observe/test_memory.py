"""The peak of training: of what is known to be allocated, in this process."""

from pathlib import Path

import pytest
import torch

from fgpipe.observe import memory
from fgpipe.observe.memory import Memory

MB, SLACK = 10**6, 16 * 10**6


def hold(size: int) -> None:
    """Allocate so many MB, touch them, and give them back."""
    torch.ones(size * MB, dtype=torch.uint8)


@pytest.mark.skipif(not memory.RESETS.exists(), reason="Linux alone can start the highest resident size afresh")
def test_only_training_counts() -> None:
    """300 MB before, 400 MB between two stretches of training, and 100 and 200 MB within: 200 MB above what was held."""
    hold(300)
    found, held = Memory(torch.device("cpu")), torch.ones(50 * MB, dtype=torch.uint8)
    with found.training():
        hold(100)
    first = found.peak - found.before
    assert 100 * MB - SLACK < first < 100 * MB + SLACK
    hold(400)
    with found.training():
        hold(200)
    hold(400)
    assert 200 * MB - SLACK < found.peak - found.before < 200 * MB + SLACK
    assert found.before > held.nbytes


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The peak of the process's life: what came before counts, and nothing fails."""
    monkeypatch.setattr(memory, "RESETS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    found = Memory(torch.device("cpu"))
    hold(300)
    with found.training():
        hold(1)
    assert found.peak - found.before > 100 * MB
