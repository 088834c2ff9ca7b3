"""Real signals to real processes: the job ends, says whose fault it is, and leaves nothing behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fgpipe.checkpoint import Checkpoints
from tests.integration.launching import command, environment, living, processes_with, wait_until, workers_with


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 3, 7])
def test_killed_rank(victim: int, tmp_path: Path) -> None:
    """SIGKILL in training: non-zero within 45 s, the block named, no process left."""
    marker = str(tmp_path / "run")
    overrides = [f"run_dir={marker}", "epochs=500", "threads=1", "device=cpu", "scope=block", "observe.tensorboard=false"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(8, "-m", "fgpipe.train", *overrides), env=environment(), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: "epoch 1/500:" in text(), 120), text()
        os.kill(workers_with(marker)[victim], signal.SIGKILL)
        killed = time.monotonic()
        assert job.wait(timeout=45) != 0
        assert time.monotonic() - killed < 45
        assert f"[block {victim}] rank {victim}" in text() or f"lost block {victim} " in text(), text()
        assert wait_until(lambda: not processes_with(marker), 5)
    finally:
        job.kill()
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, line",
    [
        (0, "[rank 1] error: start: rank 0, which loads the data, gave no sign of life within 8 s"),
        (1, "[rank 0] error: start: [blocks 4-7] rank 1 did not come to the process group within 8 s"),
    ],
)
def test_stopped_in_the_start(victim: int, line: str, tmp_path: Path) -> None:
    """SIGSTOP before the process has got anywhere: the other one's deadline ends the job."""
    marker = str(tmp_path / "run")
    overrides = [f"run_dir={marker}", "threads=1", "device=cpu", "partition=[4,4]", "deadline=8"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(2, "-m", "fgpipe.train", *overrides), env=environment(), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: len(workers_with(marker)) == 2, 60), text()
        os.kill(workers_with(marker)[victim], signal.SIGSTOP)
        assert wait_until(lambda: line in text(), 60), text()
        assert job.wait(timeout=45) != 0
        assert text().count("within 8 s") == 1
        assert wait_until(lambda: not processes_with(marker), 5)
    finally:
        job.kill()
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("saves", [True, False])
def test_killed_launcher(saves: bool, tmp_path: Path) -> None:
    """SIGKILL for torchrun: no worker goes on without it, and what can be saved is."""
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", "epochs=500", "threads=1", "device=cpu", "scope=block", "observe.tensorboard=false"]
    overrides += ["checkpoint.every_minutes=60"] * saves
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(2, "-m", "fgpipe.train", *overrides), env=environment(), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: "epoch 1/500:" in text(), 120), text()
        assert not saves or wait_until(lambda: bool(Checkpoints(run).steps()), 20), text()
        before, workers = Checkpoints(run).steps(), workers_with(str(run)).values()
        assert len(workers) == 2
        job.kill()
        job.wait()
        assert wait_until(lambda: not living(workers), 45), text()
        if saves:
            assert Checkpoints(run).steps()[-1] > before[-1], text()
            assert "on SIGTERM" in text()
        else:
            cause = "SIGTERM, while all processes of its host were alive"
            assert f"fgpipe: {cause}; {run / 'verdict.json'}" in text(), (text(), list(run.iterdir()))
    finally:
        job.kill()
        job.wait()
        for pid in processes_with(str(run)):
            os.kill(pid, signal.SIGKILL)
