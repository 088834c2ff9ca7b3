"""The peak of training: of what is known to be allocated, in this process."""

import mmap
from pathlib import Path

import pytest
import torch

from fgpipe.observe import memory
from fgpipe.observe.memory import Memory

MB, SLACK = 10**6, 16 * 10**6


def mapped(size: int) -> mmap.mmap:
    """So many MB of the kernel's, which no allocator has kept from before, and all touched."""
    found = mmap.mmap(-1, size * MB)
    torch.frombuffer(found, dtype=torch.uint8).fill_(1)
    return found


def hold(size: int) -> None:
    """Take so many MB, and give them back."""
    mapped(size).close()


@pytest.mark.skipif(not memory.RESETS.exists(), reason="Linux alone can start the highest resident size afresh")
def test_only_training_counts() -> None:
    """300 MB before, 400 MB between two stretches of training, and 100 and 200 MB within: 200 MB above what was held."""
    hold(300)
    found, held = Memory(torch.device("cpu")), mapped(50)
    with found.training():
        hold(100)
    first = found.peak - found.before
    assert 100 * MB - SLACK < first < 100 * MB + SLACK
    hold(400)
    with found.training():
        hold(200)
    hold(400)
    assert 200 * MB - SLACK < found.peak - found.before < 200 * MB + SLACK
    assert found.before > len(held)


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The peak of the process's life: what came before counts, and nothing fails."""
    monkeypatch.setattr(memory, "RESETS", tmp_path / "no" / "clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    found = Memory(torch.device("cpu"))
    hold(300)
    with found.training():
        hold(1)
    assert found.peak - found.before > 100 * MB
