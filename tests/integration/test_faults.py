"""Real signals to real processes: the job ends, says whose fault it is, and leaves nothing behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.launching import command, environment, processes_with, rank_of, wait_until


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
        workers = [pid for pid in processes_with(marker) if pid != job.pid]
        os.kill(next(pid for pid in workers if rank_of(pid) == victim), signal.SIGKILL)
        killed = time.monotonic()
        assert job.wait(timeout=45) != 0
        assert time.monotonic() - killed < 45
        assert f"[block {victim}] rank {victim}" in text() or f"lost block {victim} " in text(), text()
        assert wait_until(lambda: not processes_with(marker), 5)
    finally:
        job.kill()
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)
