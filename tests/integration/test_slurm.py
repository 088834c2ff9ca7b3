"""launch/train.sbatch, with stand-ins for Slurm's commands: the run that it starts is real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fgpipe.saving.checkpoint import Checkpoints
from tests.integration.launching import ROOT, environment, processes_with, wait_until

JOB = os.getpid()
COMMANDS = {
    "srun": 'SLURM_NODEID=0 exec "$@"',
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi',
}
OVERRIDES = [
    "epochs=12", "data.train_samples=320", "batch_size=32", "data.test_samples=50", "model.width=0.125", "scope=block",
    "device=cpu", "observe.tensorboard=false", "checkpoint.every_steps=4",
]  # fmt: skip


class Slurm:
    """Starts the script in a folder of its own, as job `JOB` on one host."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "runs" / f"slurm-{JOB}"
        for name, script in COMMANDS.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        job = {
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NUM_NODES": 1,
            "SLURM_JOB_NODELIST": "n",
            "SLURM_SUBMIT_DIR": self.folder,
        }
        variables = environment() | {key: str(value) for key, value in job.items()}
        variables |= {"NPROC": "2", "PATH": f"{self.folder}:{os.environ['PATH']}"}
        command = ["bash", str(ROOT / "launch" / "train.sbatch"), *OVERRIDES, *overrides]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @property
    def requeued(self) -> list[str]:
        path = self.folder / "requeued"
        return path.read_text().splitlines() if path.exists() else []

    def tell_tasks(self, signum: signal.Signals) -> None:
        """Slurm's signal to the job's steps: torchrun and its workers."""
        for pid in processes_with(f"run_dir=runs/slurm-{JOB}"):
            if "bash" not in os.readlink(f"/proc/{pid}/exe"):
                os.kill(pid, signum)


@pytest.fixture
def slurm(tmp_path: Path):
    job = Slurm(tmp_path)
    yield job
    job.tell_tasks(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.slow
def test_preempted_and_started_again(slurm: Slurm) -> None:
    """SIGTERM: saved and requeued; the same job again goes on from there, and is not requeued when it is done."""
    job = slurm.start()
    assert wait_until(lambda: len(Checkpoints(slurm.run).steps()) > 0 or job.poll() is not None, 200)
    slurm.tell_tasks(signal.SIGTERM)
    text, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and slurm.requeued == [f"requeue {JOB}"], text
    saved = Checkpoints(slurm.run).steps()[-1]
    job = slurm.start()
    text, _ = job.communicate(timeout=200)
    assert job.returncode == 0 and len(slurm.requeued) == 1, text
    summary = json.loads((slurm.run / "summary.json").read_text())
    assert summary["resumed_at_step"] == saved and summary["world_size"] == 2


@pytest.mark.slow
def test_a_bad_end_is_final(slurm: Slurm) -> None:
    """Bad input, which leaves no run folder."""
    job = slurm.start("epochs=0")
    text, _ = job.communicate(timeout=200)
    assert job.returncode != 0 and "epochs=0: allowed" in text and not slurm.requeued, text
