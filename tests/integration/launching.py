"""Start real processes in tests, and look for what is left of them."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import psutil
import torch.distributed as dist
from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ["torch.distributed", "torch._meta_registrations", "fgpipe.trainers.session"]
"""Imports of the process that `fork` forks, which computes nothing, as threads would be lost."""


def command(processes: int, *arguments: str) -> list[str]:
    """`python ARGUMENTS` for one process, torchrun on a free port for more, or for one with `processes=0`."""
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes or 1}"]
    return [*launcher, *arguments]


def environment() -> dict[str, str]:
    """One thread per process, and the sources of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(processes: int, *arguments: str, timeout: float = 900, **options) -> subprocess.CompletedProcess[str]:
    """Run to the end, and return exit code, stdout and stderr."""
    options |= {"capture_output": True, "text": True}
    return subprocess.run(command(processes, *arguments), env=environment(), timeout=timeout, check=False, **options)


def fork(processes: int, *arguments: str, timeout: float = 900, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Do as `launch`, in a quarter of the time to start: for tests of what processes compute, not of who starts them.

    Each process is forked from one that has imported PyTorch, in the environment that torchrun gives to its workers. As
    under torchrun, the others end when one has failed; the exit code is the failed one's, not torchrun's.
    """
    places: list[dict[str, str]] = [{}]
    if processes > 1:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(processes)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, environment()), tempfile.TemporaryDirectory() as folder:
        forkserver.ensure_running()
        out, err = Path(folder) / "out", Path(folder) / "err"
        workers = [context.Process(target=_become, args=(arguments, place, cwd, out, err)) for place in places]
        for worker in workers:
            worker.start()
        code = _wait(workers, timeout)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _become(arguments: tuple[str, ...], place: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    """In a fork: `python ARGUMENTS`."""
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(environment() | place)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _wait(workers: Sequence[BaseProcess], timeout: float) -> int:
    """Until all have ended; the exit code of one that failed by itself, 0 if none has."""
    code = 0
    give_up = time.monotonic() + timeout
    while running := [worker for worker in workers if worker.is_alive()]:
        connection.wait([worker.sentinel for worker in running], give_up - time.monotonic())
        late = time.monotonic() > give_up
        code = code or next((worker.exitcode for worker in workers if worker.exitcode), 0)
        if late or any(worker.exitcode for worker in workers):
            for worker in running:
                worker.kill() if late else worker.terminate()
        if late:
            raise TimeoutError(f"{len(running)} processes were still there after {timeout:g} s")
    return code or next((worker.exitcode for worker in workers if worker.exitcode), 0)


class Job:
    """`fgpipe.train` in the background, in the folder `run`; as a context, nothing of it is left afterwards."""

    def __init__(self, run: Path, processes: int, *overrides: str, options: tuple[str, ...] = ()) -> None:
        """Args: options: of torchrun."""
        self.run, self._log = run, run.with_suffix(".log")
        arguments = [*options, "-m", "fgpipe.train", f"run_dir={run}", *overrides]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command(processes, *arguments), env=environment(), stdout=log, stderr=log)

    @property
    def text(self) -> str:
        """Text that the process has printed."""
        return self._log.read_text()

    def workers(self) -> dict[int, int]:
        """Rank and pid."""
        return workers_with(str(self.run))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in processes_with(str(self.run)):
            os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


def processes_with(marker: str) -> list[int]:
    """Pids of living processes whose command line contains `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def workers_with(marker: str) -> dict[int, int]:
    """Rank and pid of torchrun's living workers whose command line contains `marker`; not its own."""
    found = {}
    for pid in processes_with(marker):
        try:
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except OSError:
            continue  # it has just ended
        found.update(
            {int(value): pid for name, _, value in (line.partition("=") for line in variables) if name == "RANK"}
        )
    return found


def living(pids: Iterable[int]) -> list[int]:
    """Those of the processes that have not ended; one that nobody has reaped has."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def listening(pid: int) -> list[str]:
    """Addresses on which a process listens, over TCP."""
    connections = psutil.Process(pid).net_connections("tcp")
    return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]


def wait_until(condition, seconds: float) -> bool:
    """Poll until `condition()` holds; False when the time is over."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.1)
    return bool(condition())
