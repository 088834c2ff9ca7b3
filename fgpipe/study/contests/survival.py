"""A job that loses processes: it trains in peace, then its processes are killed one by one, and what lasts is counted."""

import signal
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fgpipe.elastic.places import Places
from fgpipe.errors import RunError
from fgpipe.saving.checkpoint import Checkpoints
from fgpipe.study.common.series import begin, end
from fgpipe.study.common.workers import workers_with

PATIENCE = 300.0
"""Seconds until every block trains, and from one update that lasts to the next."""


@dataclass(frozen=True)
class Survival:
    """Updates that last, of each block: for as many seconds in peace, and under kills."""

    calm: float
    calm_updates: Sequence[int]
    killing: float
    kept_updates: Sequence[int]
    victims: Sequence[int]

    @property
    def rate(self) -> float:
        """Updates per second in peace, the mean over blocks."""
        return statistics.mean(self.calm_updates) / self.calm

    @property
    def share(self) -> float:
        """Updates under kills over those that as long in peace would have made."""
        return statistics.mean(self.kept_updates) / self.killing / self.rate

    @property
    def worst(self) -> float:
        """The same of the block that kept the least."""
        each = zip(self.kept_updates, self.calm_updates, strict=True)
        return min(kept / self.killing / (calm / self.calm) for kept, calm in each)

    @property
    def lost(self) -> float:
        """Seconds per kill."""
        return (1 - self.share) * self.killing / len(self.victims)


def kept_by_members(run: Path, blocks: int) -> list[int]:
    """Updates on new batches in the weights of each block that is a job of its own: no repeat of a batch counts."""
    tallies = [Places(run).tally(block) for block in range(blocks)]
    return [tally.get("updates", 0) - tally.get("lost", 0) - tally.get("extra", 0) for tally in tallies]


def kept_by_job(run: Path, blocks: int) -> list[int]:
    """Updates in the newest checkpoint of an ordinary run."""
    return [max(Checkpoints(run).steps(), default=0)] * blocks


def trainer_of(run: Path, block: int) -> psutil.Process | None:
    """Find the process that trains a block of a run which has one for each block; None while there is none."""
    for rank, process in workers_with(f'run_dir="{run}"'):
        with suppress(psutil.Error):
            own = [word.partition("=")[2] for word in process.cmdline() if word.startswith("elastic.block=")]
            if int(own[0] if own else rank) == block:
                return process
    return None


def kill(run: Path, block: int, give_up: float) -> None:
    """Send SIGKILL to the process that trains a block, as soon as there is one.

    Raises:
        RunError: there is none until `give_up`, by the monotonic clock.
    """
    while (process := trainer_of(run, block)) is None:
        if time.monotonic() > give_up:
            raise RunError(f"{run}: nobody trains block {block}")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)


def survive(
    command: Sequence[str],
    environment: Mapping[str, str],
    kept: Callable[[], list[int]],
    run: Path,
    calm: float,
    every: float,
    victims: Sequence[int],
) -> Survival:
    """Start a job, let it train, kill the victims one by one, and end it.

    Args:
        environment: variables of the job, beside those of this process.
        kept: finds the updates that last, of each block.
        calm: seconds without kills.
        every: seconds from one kill to the next.

    Raises:
        RunError: it does not train, or has ended.
    """
    job = begin(command, environment)

    def wait(condition: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            if job.poll() is not None or time.monotonic() > give_up:
                raise RunError(f"{run}: the job has ended, or does not train")
            time.sleep(0.05)

    def count() -> tuple[list[int], float]:
        """Wait for the next update that lasts, as those of a whole job come in bunches."""
        had = kept()
        wait(lambda: kept() != had, PATIENCE)
        return kept(), time.monotonic()

    def sleep(until: float) -> None:
        wait(lambda: time.monotonic() >= until, until - time.monotonic() + PATIENCE)

    try:
        wait(lambda: min(kept()) >= 20, PATIENCE)
        first, began = count()
        sleep(began + calm)
        wait(lambda: all(now > then for then, now in zip(first, kept(), strict=True)), PATIENCE)
        before, start = count()
        for number, victim in enumerate(victims):
            sleep(start + (number + 0.5) * every)
            kill(run, victim, start + (number + 1) * every)
        sleep(start + len(victims) * every)
        after, over = count()
    finally:
        end([job], signal.SIGTERM)
    made = [now - then for then, now in zip(first, before, strict=True)]
    lasting = [now - then for then, now in zip(before, after, strict=True)]
    return Survival(start - began, made, over - start, lasting, victims)


def free_port() -> int:
    """Find a port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
