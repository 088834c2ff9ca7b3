"""A process of a run that stands still now and then: stopped and continued by signals, as a machine that is taken away."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fgpipe.study.race.clusters import Stall


@contextmanager
def stalling(stall: Stall | None, file: Path) -> Iterator[None]:
    """Stop the first process of the runs that `series.launch` starts from a file within, again and again.

    Args: stall: how long and how often; None: never.
    """
    done = threading.Event()
    thread = threading.Thread(target=_repeat, args=(stall, file, done), daemon=True, name="stalls")
    if stall is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if stall is not None:
            thread.join()


def _repeat(stall: Stall, file: Path, done: threading.Event) -> None:
    while not done.wait(stall.period - stall.seconds):
        stopped = first_processes(file)
        for pid in stopped:
            _signal(pid, signal.SIGSTOP)
        done.wait(stall.seconds)
        for pid in stopped:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def first_processes(file: Path) -> list[int]:
    """Pids of this user's processes of rank 0 whose command line names the file."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and _has(entry / "cmdline", str(file)) and _has(entry / "environ", "RANK=0"):
                found.append(int(entry.name))
    return found


def _has(path: Path, word: str) -> bool:
    return word.encode() in path.read_bytes().split(b"\0")
