"""Counts in a mapped file."""

import os
import signal
from pathlib import Path

from fgpipe.elastic.tally import FIELDS, Tally


def test_killed_after_any_count(tmp_path: Path) -> None:
    read, write = os.pipe()
    if not (pid := os.fork()):
        tally = Tally(tmp_path / "tally", {"updates": 5, "lost": 2})
        for number in range(1, 1001):
            tally.add("updates")
            tally["position"] = number
        os.write(write, b"1")
        signal.pause()
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert Tally.read(tmp_path / "tally") == {**dict.fromkeys(FIELDS, 0), "updates": 1005, "lost": 2, "position": 1000}


def test_begins_with_the_one_before(tmp_path: Path) -> None:
    first = Tally(tmp_path / "1", {})
    first.add("updates", 7)
    second = Tally(tmp_path / "2", Tally.read(tmp_path / "1"))
    second["lost"] = 3
    assert (second.kept, second.counts()["updates"], first["lost"]) == (4, 7, 0)


def test_no_tally(tmp_path: Path) -> None:
    assert Tally.read(tmp_path / "none") == {}
    (tmp_path / "short").write_bytes(bytes(12))
    assert Tally.read(tmp_path / "short") == {}
