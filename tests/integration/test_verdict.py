"""Runs that end badly leave a verdict: who, when, and a command that really goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.launching import (
    ROOT,
    command,
    environment,
    fork,
    launch,
    processes_with,
    wait_until,
    workers_with,
)

SMALL = [
    "batch_size=16", "data.train_samples=64", "data.test_samples=16", "model.width=0.07", "threads=1", "device=cpu",
    "observe.tensorboard=false", "scope=block",
]  # fmt: skip
"""Four batches an epoch."""


def verdict(run: Path) -> dict[str, Any]:
    assert not list(run.glob("*.tmp"))
    return json.loads((run / "verdict.json").read_text())


def in_shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a person would, with this interpreter's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "PATH": path}
    return subprocess.run(
        line, shell=True, env=variables, check=False, capture_output=True, text=True, timeout=280, cwd="/"
    )


@pytest.mark.slow
def test_killed_rank(tmp_path: Path) -> None:
    """The verdict names the rank that was killed, and its command finishes the run; the verdict is then history."""
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", "epochs=30", "checkpoint.every_steps=4", "partition=[4,2,2]", *SMALL]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(3, "-m", "fgpipe.train", *overrides), env=environment(), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: "epoch 2/30:" in text(), 200), text()
        workers = workers_with(str(run))
        os.kill(workers[1], signal.SIGKILL)
        assert job.wait(timeout=45) != 0
        found = verdict(run)
        assert found["cause"] == f"[blocks 4-5] rank 1 (pid {workers[1]}) is gone", text()
        assert (found["rank"], found["blocks"]) == (1, [4, 5]) and found["reported_by"] in (0, 2)
        assert 7 <= found["last_batch"] < 120
        assert (Path(found["last_checkpoint"]) / "manifest.json").exists()
        assert text().count(f"fgpipe: {found['cause']}; {run / 'verdict.json'} says why, and how to go on") == 1
        assert "torchrun --standalone --nproc_per_node=3 -m fgpipe.train" in found["resume"]
        assert wait_until(lambda: not processes_with(str(run)), 5), "no process is left"
    finally:
        job.kill()
        for pid in processes_with(str(run)):
            os.kill(pid, signal.SIGKILL)
    resumed = in_shell(found["resume"])
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["world_size"] == 3 and f"step-{summary['resumed_at_step']}" == Path(found["last_checkpoint"]).name
    assert not (run / "verdict.json").exists()
    assert json.loads((run / "verdict-1.json").read_text()) == found


@pytest.mark.slow
def test_not_finite(tmp_path: Path) -> None:
    """The block where it shows first and the batch; not who was lost in consequence."""
    run, poison = tmp_path / "run", str(ROOT / "tests" / "runtime" / "poison.py")
    done = launch(2, poison, "tangent", "3", "2", f"run_dir={run}", "epochs=1", *SMALL)
    assert done.returncode != 0
    assert "[block 3] error: tangent of batch 2 is not finite" in done.stderr and done.stderr.count("not finite") == 1
    found = verdict(run)
    assert found["cause"] == "tangent of batch 2 is not finite", done.stderr
    assert (found["blocks"], found["last_batch"], found["last_checkpoint"]) == ([3], 2, None)
    assert found["rank"] == found["reported_by"] and not processes_with(str(run))


@pytest.mark.slow
def test_mistake_of_ours(tmp_path: Path) -> None:
    """An exception that nobody foresaw: one line with the block, the traceback, and the same verdict."""
    run, failing = tmp_path / "run", str(ROOT / "tests" / "integration" / "failing.py")
    done = launch(2, failing, "6", "1", f"run_dir={run}", "epochs=1", "partition=[4,4]", *SMALL)
    assert done.returncode != 0
    line, traceback = (
        done.stderr.find("[blocks 4-7] error: KeyError: 'a mistake of ours'"),
        done.stderr.find("Traceback"),
    )
    assert -1 < line < traceback, done.stderr
    found = verdict(run)
    assert (found["cause"], found["rank"]) == ("KeyError: 'a mistake of ours'", 1)
    assert not processes_with(str(run))


@pytest.mark.slow
def test_stopped_rank(tmp_path: Path) -> None:
    """SIGSTOP: the survivor's deadline ends the job, though the stopped process hears no SIGTERM."""
    run = tmp_path / "run"
    overrides = [f"run_dir={run}", "epochs=500", "deadline=8", "partition=[4,4]", *SMALL]
    overrides += [
        "data.train_samples=1400",
        "batch_size=4",
    ]  # an epoch takes seconds, and between two all wait in a sum
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command(2, "-m", "fgpipe.train", *overrides), env=environment(), stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: "epoch 1/500:" in text(), 200), text()
        time.sleep(1)
        workers = workers_with(str(run))
        os.kill(workers[0], signal.SIGSTOP)
        assert wait_until((run / "verdict.json").exists, 25), text()
        assert verdict(run)["cause"] == f"[blocks 0-3] rank 0 (pid {workers[0]}) is stopped"
        lost = r"lost block 3 \(rank 0\) on the forward plane; last came (test )?batch \d+, (\d+\.\d) s ago: "
        stalled = (
            r"nothing arrived for 8 s; waiting: .*block 4 for its input of batch \d+ from block 3 \(forward plane; "
        )
        assert re.search(rf"\[blocks 4-7\] error: ({lost}|{stalled})", text()), text()
        assert job.wait(timeout=60) != 0
        assert wait_until(lambda: not processes_with(str(run)), 5)
    finally:
        job.kill()
        for pid in processes_with(str(run)):
            os.kill(pid, signal.SIGKILL)


PROGRAM = """
import sys
from pathlib import Path
from fgpipe.config import compose_config
from fgpipe.trainers.session import run
from fgpipe.trainers.stage import Stage

overrides = Path(sys.argv[1]).read_text().split()
if not Path(sys.argv[2]).exists():
    Stage.run = lambda *arguments: {}["a mistake"]
run(compose_config(overrides))
"""
"""A program with arguments of its own: a file of settings, and one that, once it is there, mends a mistake."""


def test_program_of_a_user(tmp_path: Path) -> None:
    """Its command is the one that it was started with, and goes on; one without a file has no command, and a note."""
    (tmp_path / "script.py").write_text(PROGRAM)
    arguments = [str(tmp_path / "settings"), str(tmp_path / "mended file")]
    run = tmp_path / "run"
    (tmp_path / "settings").write_text(" ".join([f"run_dir={run}", "resume=auto", "epochs=1", *SMALL]))
    assert fork(1, "script.py", *arguments, cwd=tmp_path).returncode != 0
    found = verdict(run)
    assert found["cause"] == "KeyError: 'a mistake'" and found["note"] is None
    assert found["resume"] == f"cd {tmp_path} && {shlex.join(['python', 'script.py', *arguments])}"
    done = launch(1, "-c", PROGRAM, *arguments, cwd=tmp_path)
    assert done.returncode != 0 and verdict(run)["resume"] is None
    assert verdict(run)["note"].endswith(f"it goes on with run_dir={run} resume=auto")
    (tmp_path / "mended file").touch()
    resumed = in_shell(found["resume"])
    assert resumed.returncode == 0 and "test accuracy" in resumed.stdout, resumed.stderr
