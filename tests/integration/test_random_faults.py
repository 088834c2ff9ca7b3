"""Faults at random moments: the start, training, evaluation and saving, of a job that saves after every batch.

One seed is one job: processes, the signal, who gets it and when are drawn. `SEEDS=20 python -m pytest
tests/integration/test_random_faults.py -k seed` runs twenty.
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fgpipe.checkpoint import Checkpoints
from tests.integration.launching import command, environment, processes_with, wait_until, workers_with

DEADLINE = 10
LEAVE = 45
"""Seconds in which a job has ended after a fault (issue: SIGKILL); a stopped process adds the deadline."""
SETTINGS = [
    "epochs=500", "data.train_samples=128", "batch_size=32", "data.test_samples=128", "model.width=0.125", "scope=block",
    "threads=1", "device=cpu", "observe.tensorboard=false", f"deadline={DEADLINE}", "checkpoint.every_steps=1",
    "resume=auto",
]  # fmt: skip
FAULTS = ("SIGKILL", "SIGSEGV", "SIGSTOP", "torchrun")


class Job:
    """A job under torchrun, its output, and its workers as they appear."""

    def __init__(self, run: Path, processes: int, *overrides: str) -> None:
        self.run, self.log, self.processes = run, run.with_suffix(f".{len(list(run.parent.iterdir()))}.log"), processes
        arguments = ["-m", "fgpipe.train", f"run_dir={run}", *SETTINGS, *overrides]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command(processes, *arguments), env=environment(), stdout=log, stderr=log)

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def steps(self) -> list[int]:
        return Checkpoints(self.run).steps()

    def workers(self) -> dict[int, int]:
        """Rank and pid of all of them, once they are there."""
        found: dict[int, int] = {}

        def there() -> bool:
            found.update(workers_with(str(self.run)))
            return len(found) == self.processes

        assert wait_until(there, 60), self.text
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in processes_with(str(self.run)):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "2"))))
def test_seed(seed: int, tmp_path: Path) -> None:
    """The job ends non-zero in time, blames nobody else, leaves no process, and goes on where it was saved."""
    chance = random.Random(f"faults {seed}")
    processes, fault = chance.choice([2, 3, 4]), FAULTS[seed % len(FAULTS)]
    victim, in_start = chance.randrange(processes), chance.random() < 0.3
    job = Job(tmp_path / "run", processes)
    try:
        workers = job.workers()
        if not in_start:
            assert wait_until(lambda: len(job.steps) >= 1 or job.process.poll() is not None, 200), job.text
        time.sleep(chance.uniform(0, 6))
        assert job.process.poll() is None, job.text
        saved, pid = job.steps, workers[victim]
        os.kill(*((job.process.pid, signal.SIGKILL) if fault == "torchrun" else (pid, signal.Signals[fault])))
        began = time.monotonic()
        assert job.process.wait(LEAVE + (DEADLINE if fault == "SIGSTOP" else 0)) != 0
        left = LEAVE - (time.monotonic() - began) if fault == "torchrun" else 5
        assert wait_until(lambda: not processes_with(str(job.run)), left), job.text
        if (job.run / "verdict.json").exists() and fault != "torchrun":
            verdict = json.loads((job.run / "verdict.json").read_text())
            assert verdict["rank"] == victim, (verdict, job.text)
            assert job.text.count(verdict["cause"]) == 1, job.text
        elif fault != "torchrun":
            assert not saved, job.text
        assert not saved or job.steps[-1] >= saved[-1], "nothing that was saved is lost"
    finally:
        job.end()
    step = (job.steps or [0])[-1]
    again = Job(tmp_path / "run", processes)
    try:
        assert wait_until(lambda: (again.steps or [0])[-1] > step or again.process.poll() is not None, 200), again.text
        assert again.process.poll() is None, again.text
    finally:
        again.end()
