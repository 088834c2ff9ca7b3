"""One run at a time writes to a folder: its lock dies with its process, and nothing but that run lets go of it."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgpipe.config import Config, compose_config
from fgpipe.errors import UserError
from fgpipe.saving import claim, resume
from fgpipe.saving.claim import claimed
from tests.integration.launching import ROOT, Job, environment, fork, wait_until

HOLDER = """
import os, sys, time
from fgpipe.saving.claim import claimed
from fgpipe.config import compose_config
with claimed(compose_config([f"run_dir={sys.argv[1]}"])):
    if sys.argv[2] == "forks":
        if not (child := os.fork()):
            time.sleep(600)
        print(child, flush=True)
    if sys.argv[2] == "child":
        if not os.fork():
            sys.exit(0)  # out of the context
        os.wait()
    print("held", flush=True)
    time.sleep(600)
"""
"""Holds a folder until it is killed; a child of it lives on, or has left the same context."""


def into(folder: Path) -> Config:
    return compose_config([f"run_dir={folder}"])


class Holder(subprocess.Popen[str]):
    child = 0
    """A process that it has forked."""


@pytest.fixture
def hold() -> Iterator:
    started = []

    def begin(folder: Path, what: str = "alone") -> Holder:
        command = [sys.executable, "-c", HOLDER, str(folder), what]
        process = Holder(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line == "held\n":
                return process
            process.child = int(line)
        raise AssertionError("it ended")

    yield begin
    for process in started:
        with process:
            process.kill()


def refused(folder: Path, pid: int) -> None:
    """The line names who is there, and nothing is changed."""

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != claim.NAME}

    before = files()
    with pytest.raises(UserError) as error, claimed(into(folder)):
        pass
    who = f"pid {pid} on host {socket.gethostname()}"
    allowed = "another folder, or this one when that run has ended"
    assert str(error.value) == f"run_dir={folder}: another run is writing there ({who}): allowed: {allowed}"
    assert files() == before and (folder / claim.NAME).exists()


def test_another_process(tmp_path: Path, hold) -> None:
    """Refused while it lives; SIGKILL gives the folder free at once."""
    process = hold(tmp_path / "run")
    refused(tmp_path / "run", process.pid)
    refused(tmp_path / "run", process.pid)
    process.kill()
    process.wait()
    with claimed(into(tmp_path / "run")) as folder:
        assert folder == tmp_path / "run"


def test_child_that_outlives_it(tmp_path: Path, hold) -> None:
    """A forked process, such as one that loads data, has all descriptors, but no part in the lock."""
    process = hold(tmp_path / "run", "forks")
    try:
        process.kill()
        process.wait()
        with claimed(into(tmp_path / "run")):
            pass
    finally:
        os.kill(process.child, signal.SIGKILL)


def test_child_that_ends_before_it(tmp_path: Path, hold) -> None:
    """Nor does it let go of the lock, though it leaves the context."""
    process = hold(tmp_path / "run", "child")
    refused(tmp_path / "run", process.pid)


def test_same_process(tmp_path: Path) -> None:
    """A second run at the same time is refused, and leaves the first one its lock; one after the other is not."""
    ask = f"from fgpipe.saving.claim import claimed; from fgpipe.config import compose_config; \
        claimed(compose_config(['run_dir={tmp_path / 'run'}'])).__enter__()"
    for _ in range(2):
        with claimed(into(tmp_path / "run")) as folder:
            (folder / "config.yaml").touch()
            refused(folder, os.getpid())
            command = [sys.executable, "-c", ask]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
            assert f"another run is writing there (pid {os.getpid()} on host" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_asking_who_holds_it(tmp_path: Path, hold) -> None:
    """Names the process while it lives, and changes nothing: the lock is still its own."""
    run = tmp_path / "run"
    assert claim.holder(tmp_path) is None
    process = hold(run)
    for _ in range(2):
        assert claim.holder(run) == f"pid {process.pid} on host {socket.gethostname()}"
        refused(run, process.pid)
    process.kill()
    process.wait()
    assert claim.holder(run) is None and (run / claim.NAME).exists()


def test_the_holder_may_ask(tmp_path: Path) -> None:
    """Closing the file would lose the lock; another process finds it held."""
    ask = f"from pathlib import Path; from fgpipe.saving.claim import holder; print(holder(Path({str(tmp_path / 'run')!r})))"
    me = f"pid {os.getpid()} on host {socket.gethostname()}"
    with claimed(into(tmp_path / "run")) as folder:
        for _ in range(2):
            assert claim.holder(folder) == me
            done = subprocess.check_output([sys.executable, "-c", ask], env=environment(), text=True)
            assert done.strip() == me


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that writes nothing leaves no folder, above it neither; what was there stays."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="bad"), claimed(into(tmp_path / "a" / "b" / "run")) as folder:
        assert folder.is_dir() and resume.check_run_dir(into(folder)) is None
        raise UserError("bad")
    with claimed(compose_config([])) as folder:
        assert folder.parent == Path("runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with claimed(into(tmp_path / "empty")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not list((tmp_path / "empty").iterdir())


def test_new_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same configuration in the same second: every run has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20300101-000000")
    with claimed(compose_config([])) as one, claimed(compose_config([])) as two, claimed(compose_config([])) as three:
        assert one.is_dir() and two.is_dir() and three.is_dir()
        assert re.fullmatch(r"runs/20300101-000000-[0-9a-f]{8}", str(one))
        assert (str(two), str(three)) == (f"{one}-2", f"{one}-3")


def test_what_a_crash_left(tmp_path: Path) -> None:
    """The lock's file alone makes no folder of a run: it is free, with `resume=auto` and without."""
    (tmp_path / claim.NAME).write_text("pid 1 on host elsewhere, and more than the next one writes " * 10)
    for more in ([], ["resume=auto"]):
        assert resume.check_run_dir(compose_config([f"run_dir={tmp_path}", *more])) is None
    with claimed(into(tmp_path)) as folder:
        assert (folder / claim.NAME).read_text() == f"pid {os.getpid()} on host {socket.gethostname()}"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_no_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system without them is said once, and the run goes on."""

    def refuse(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with claimed(into(tmp_path / "run")) as folder:
        assert folder.is_dir()
    lead = (
        f"fgpipe: warning: run_dir={tmp_path / 'run'}: the file system has no locks, so nothing keeps another run out"
    )
    assert capsys.readouterr().err == f"{lead}: {os.strerror(code)}\n"


def test_ended_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is locked must be the one that is there: another run may have removed it meanwhile."""
    lockf, seen = fcntl.lockf, []

    def late(file: int, operation: int) -> None:
        seen.append(os.fstat(file).st_ino)
        if len(seen) == 1:
            (tmp_path / claim.NAME).rename(tmp_path / "removed")  # which keeps its number from being used again
        lockf(file, operation)

    monkeypatch.setattr(fcntl, "lockf", late)
    with claimed(into(tmp_path)) as folder:
        assert len(seen) == 2 and (folder / claim.NAME).stat().st_ino == seen[1] != seen[0]


SMALL = [
    "batch_size=16", "data.train_samples=64", "data.test_samples=16", "model.width=0.07", "threads=1", "device=cpu",
    "observe.tensorboard=false", "scope=block", "epochs=400", "resume=auto", "checkpoint.every_steps=4",
]  # fmt: skip


@pytest.mark.slow
def test_two_runs(tmp_path: Path) -> None:
    """The same command while the first one runs, in one process and in several: one line, exit code 2; and the first goes
    on undisturbed. When it is killed, the next one goes on at once."""
    with Job(tmp_path / "run", 1, *SMALL) as job:
        assert wait_until((job.run / "checkpoints" / "step-8").is_dir, 100), job.text
        for processes in (1, 2):
            done = fork(processes, "-m", "fgpipe.train", f"run_dir={job.run}", *SMALL)
            who = f"another run is writing there (pid {job.process.pid} on host {socket.gethostname()})"
            assert done.stderr.startswith(f"fgpipe: run_dir={job.run}: {who}: allowed: "), done.stderr
            assert done.stderr.count("\n") == 1 and done.returncode == 2 and not done.stdout
        assert job.process.poll() is None
        epochs = [line.partition(",")[0] for line in (job.run / "metrics.jsonl").read_text().splitlines()]
        assert len(epochs) == len(set(epochs)), "each once"
        job.process.kill()
        job.process.wait()
        with Job(job.run, 1, *SMALL) as again:
            newest = max(int(path.name.partition("-")[2]) for path in (job.run / "checkpoints").glob("step-*"))
            assert wait_until((job.run / "checkpoints" / f"step-{newest + 8}").is_dir, 100), again.text
