"""Real signals to real processes: the job ends, says whose fault it is, and leaves nothing behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from fgpipe.saving.checkpoint import Checkpoints
from tests.integration.launching import Job, living, processes_with, wait_until

SMALL = [
    "epochs=500", "batch_size=16", "data.train_samples=128", "data.test_samples=16", "model.width=0.07", "threads=1",
    "device=cpu", "scope=block", "observe.tensorboard=false",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 3, 7])
def test_killed_rank(victim: int, tmp_path: Path) -> None:
    """SIGKILL in training: non-zero within 45 s, the block named, no process left."""
    with Job(tmp_path / "run", 8, *SMALL) as job:
        assert wait_until(lambda: "epoch 1/500:" in job.text, 120), job.text
        os.kill(job.workers()[victim], signal.SIGKILL)
        killed = time.monotonic()
        assert job.process.wait(timeout=45) != 0
        assert time.monotonic() - killed < 45
        assert f"[block {victim}] rank {victim}" in job.text or f"lost block {victim} " in job.text, job.text
        assert wait_until(lambda: not processes_with(str(job.run)), 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, line",
    [
        (0, "[rank 1] error: start: rank 0, which loads the data, gave no sign of life within 8 s"),
        pytest.param(
            1,
            "[rank 0] error: start: [blocks 4-7] rank 1 did not come to the process group within 8 s",
            marks=pytest.mark.long,
        ),
    ],
)
def test_stopped_in_the_start(victim: int, line: str, tmp_path: Path) -> None:
    """SIGSTOP before the process has got anywhere: the other one's deadline ends the job."""
    with Job(tmp_path / "run", 2, *SMALL, "partition=[4,4]", "deadline=8") as job:
        assert wait_until(lambda: len(job.workers()) == 2, 60), job.text
        os.kill(job.workers()[victim], signal.SIGSTOP)
        assert wait_until(lambda: line in job.text, 60), job.text
        assert job.process.wait(timeout=45) != 0
        assert job.text.count("within 8 s") == 1
        assert wait_until(lambda: not processes_with(str(job.run)), 5)


@pytest.mark.slow
@pytest.mark.parametrize("saves", [True, pytest.param(False, marks=pytest.mark.long)])
def test_killed_launcher(saves: bool, tmp_path: Path) -> None:
    """SIGKILL for torchrun: no worker goes on without it, and what can be saved is."""
    with Job(tmp_path / "run", 2, *SMALL, *["checkpoint.every_minutes=60"] * saves) as job:
        assert wait_until(lambda: "epoch 1/500:" in job.text, 120), job.text
        checkpoints = Checkpoints(job.run)
        assert not saves or wait_until(lambda: bool(checkpoints.steps()), 20), job.text
        before, workers = checkpoints.steps(), job.workers().values()
        assert len(workers) == 2
        job.process.kill()
        job.process.wait()
        assert wait_until(lambda: not living(workers), 45), job.text
        if saves:
            assert (last := checkpoints.steps()[-1]) >= before[-1], job.text
            assert f"step-{last} on SIGTERM" in job.text
        else:
            cause = "SIGTERM, while all processes of its host were alive"
            assert f"fgpipe: {cause}; {job.run / 'verdict.json'}" in job.text, (job.text, list(job.run.iterdir()))
