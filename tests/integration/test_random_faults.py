"""Faults at random moments: the start, training, evaluation and saving, of a job that saves after every batch.

One seed is one job: processes, the signal, who gets it and when are drawn. `SEEDS=20 python -m pytest -m slow
tests/integration/test_random_faults.py` runs twenty.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fgpipe.saving.checkpoint import Checkpoints
from tests.integration.launching import Job, processes_with, wait_until

DEADLINE = 10
LEAVE = 45
"""Seconds in which a job has ended after a fault; a stopped process adds the deadline."""
SETTINGS = [
    "epochs=500", "data.train_samples=128", "batch_size=32", "data.test_samples=128", "model.width=0.125", "scope=block",
    "threads=1", "device=cpu", "observe.tensorboard=false", f"deadline={DEADLINE}", "checkpoint.every_steps=1",
    "resume=auto",
]  # fmt: skip
FAULTS = ("SIGKILL", "SIGSEGV", "SIGSTOP", "torchrun")


def steps(job: Job) -> list[int]:
    """At which it has saved."""
    return Checkpoints(job.run).steps()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "2"))))
def test_seed(seed: int, tmp_path: Path) -> None:
    """The job ends non-zero in time, blames nobody else, leaves no process, and goes on where it was saved."""
    chance = random.Random(f"faults {seed}")
    processes, fault = chance.choice([2, 3, 4]), FAULTS[seed % len(FAULTS)]
    victim, in_start = chance.randrange(processes), chance.random() < 0.3
    with Job(tmp_path / "run", processes, *SETTINGS) as job:
        assert wait_until(lambda: len(job.workers()) == processes, 60), job.text
        workers = job.workers()
        if not in_start:
            assert wait_until(lambda: len(steps(job)) >= 1 or job.process.poll() is not None, 200), job.text
        time.sleep(chance.uniform(0, 6))
        assert job.process.poll() is None, job.text
        saved, pid = steps(job), workers[victim]
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
        assert not saved or steps(job)[-1] >= saved[-1], "nothing that was saved is lost"
    step = (steps(job) or [0])[-1]
    with Job(tmp_path / "run", processes, *SETTINGS) as again:
        assert wait_until(lambda: (steps(again) or [0])[-1] > step or again.process.poll() is not None, 200), again.text
        assert again.process.poll() is None, again.text
