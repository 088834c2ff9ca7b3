"""Runs the runs of a grid as processes of their own, several at a time: whatever happens to one, the others go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from fgpipe.saving.outputs import written
from fgpipe.study.common.runs import Run, read_summary

POLL = 0.2
"""Seconds between looks at the processes."""
GRACE = 30.0
"""Seconds that a run has to end after SIGTERM, before SIGKILL."""


@dataclass
class _Job:
    run: Run
    process: subprocess.Popen[bytes]
    lock: IO[str]
    began: float


class Driver:
    """Runs everything that is not done, in order; done runs are kept, interrupted ones resumed, failures reported.

    A run that another driver has under way, or one that was killed and left its process behind, is waited for.
    """

    def __init__(
        self, out: Path, roots: dict[str, str], launcher: Sequence[str], jobs: int, say: Callable[[str], None]
    ) -> None:
        """Args:
        out: the grid's folder.
        roots: data set of the paper to folder.
        launcher: the command that starts `fgpipe.train`, to which overrides are appended.
        jobs: runs at a time.
        say: prints a line.
        """
        self._out, self._roots, self._launcher, self._limit, self._say = out, roots, launcher, jobs, say
        self._jobs: list[_Job] = []
        self._ended = 0

    def run(self, runs: Sequence[Run]) -> list[Run]:
        """Run them all, and return those that failed. For the main thread; others may call `work`.

        Raises:
            KeyboardInterrupt: after SIGINT or SIGTERM, when the processes under way have ended.
        """
        with _terminable():
            return self.work(runs)

    def work(self, runs: Sequence[Run]) -> list[Run]:
        """Run them as `run` does, without a hand on SIGTERM."""
        waiting, failed, self._total = list(runs), [], len(runs)
        try:
            while waiting or self._jobs:
                failed += self._reap()
                self._start(waiting)
                time.sleep(POLL)
        finally:
            self._stop()
        return failed

    def _start(self, waiting: list[Run]) -> None:
        """Start what fits, passing over what is done and what is under way elsewhere."""
        for run in list(waiting):
            if len(self._jobs) >= self._limit:
                return
            lock = run.lock(self._out)
            if lock is None:
                continue
            waiting.remove(run)
            summary = read_summary(run.folder(self._out))
            if summary is not None:
                lock.close()
                self._line("done before", run, f"{summary['test_accuracy']:.2%}")
            else:
                self._jobs.append(self._launch(run, lock))

    def _launch(self, run: Run, lock: IO[str]) -> _Job:
        command = [*self._launcher, *run.overrides(self._out, self._roots.get(run.cells[0].dataset))]
        with written(run.log(self._out)), run.log(self._out).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        return _Job(run, process, lock, time.monotonic())

    def _reap(self) -> list[Run]:
        """Report the jobs that have ended; returns the failed runs."""
        failed = []
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            job.lock.close()
            summary = read_summary(job.run.folder(self._out))
            if job.process.returncode == 0 and summary is not None:
                shutil.rmtree(job.run.folder(self._out) / "checkpoints", ignore_errors=True)
                self._line("done", job.run, f"{summary['test_accuracy']:.2%} in {time.monotonic() - job.began:.0f} s")
            else:
                failed.append(job.run)
                self._line("FAILED", job.run, f"exit code {job.process.returncode}; see {job.run.log(self._out)}")
        return failed

    def _line(self, state: str, run: Run, text: str) -> None:
        self._ended += 1
        published = " and ".join(sorted({f"{cell.accuracy:g} %" for cell in run.cells if cell.accuracy is not None}))
        self._say(
            f"[{self._ended}/{self._total}] {state}: {run.name}: {text}"
            + f" (published: {published})" * bool(published)
        )

    def _stop(self) -> None:
        """End the processes under way; nothing to do after a normal end."""
        for job in self._jobs:
            _signal(job.process, signal.SIGTERM)
        give_up = time.monotonic() + GRACE
        for job in self._jobs:
            try:
                job.process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(job.process, signal.SIGKILL)
                job.process.wait()
            job.lock.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the whole session of a run: a launcher's workers too."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it has ended


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as SIGINT does, even if the caller of this process has both ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launcher(kind: str, processes: int) -> list[str]:
    """Command of one run: in one process, or in several under torchrun."""
    if kind == "python":
        return [sys.executable, "-m", "fgpipe.train"]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        "-m",
        "fgpipe.train",
    ]
