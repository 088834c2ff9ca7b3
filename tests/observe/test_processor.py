"""Processor time of training, against the process's own clock."""

import time
from pathlib import Path

from fgpipe.config import compose_config
from fgpipe.trainers.session import run

RUN = ["data=digits", "data.train_samples=320", "data.test_samples=32", "batch_size=32", "epochs=1", "threads=1"]
RUN += ["model.width=0.125", "window=1", "observe.tensorboard=false", "device=cpu"]


def test_work_counts_and_waiting_does_not(tmp_path: Path) -> None:
    """Most of what the process spends is training; a block that sleeps spends none."""
    before = time.process_time()
    slow = ["slow.block=0", "slow.factor=20"]
    figures = run(compose_config([*RUN, *slow, f"run_dir={tmp_path}"]))
    spent = time.process_time() - before
    (training,), (main_thread,) = figures["processor_seconds"], figures["main_thread_seconds"]
    assert 0.3 * spent < training < spent
    assert 0.7 * training < main_thread < training + 0.001  # the clocks are read one after the other
    assert training < 0.6 * figures["train_seconds"]
