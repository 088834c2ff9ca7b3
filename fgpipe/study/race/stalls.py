"""A process of a run that stands still now and then: stopped and continued by signals, as a machine that is taken away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fgpipe.study.common.workers import workers_with
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
        for process in stopped:
            _signal(process, signal.SIGSTOP)
        done.wait(stall.seconds)
        for process in stopped:
            _signal(process, signal.SIGCONT)


def _signal(process: psutil.Process, signum: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


def first_processes(file: Path) -> list[psutil.Process]:
    """Processes of rank 0 whose command line names the file."""
    return [process for rank, process in workers_with(str(file)) if rank == 0]
