"""Start a run of elastic blocks, and look at it from outside: at its processes, and at its files, which survive them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from typing_extensions import Self

from fgpipe.elastic.places import Places
from tests.integration.launching import ROOT, environment, living, processes_with, wait_until

BLOCKS = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Elastic:
    """`launch/elastic` in the background, with torchrun for each block; as a context, nothing of it is left afterwards."""

    def __init__(self, run: Path, *overrides: str, port: int | None = None) -> None:
        self.run, self.places, self._log = run, Places(run), run.with_suffix(".log")
        self.port = port or free_port()
        arguments = [
            "bash",
            str(ROOT / "launch/elastic"),
            str(BLOCKS),
            "-m",
            "fgpipe.train",
            f"run_dir={run}",
            *overrides,
        ]
        variables = {**environment(), "STORE": f"127.0.0.1:{self.port}"}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(arguments, env=variables, stdout=log, stderr=log, cwd=ROOT)

    @property
    def text(self) -> str:
        return self._log.read_text()

    def workers(self) -> dict[int, int]:
        """Block and pid of the processes that train; not of torchrun's own."""
        found = {}
        for pid in processes_with(str(self.run)):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if not any("torchrun" in word for word in words) and "bash" not in words[0]:
                found.update({int(word[14:]): pid for word in words if word.startswith("elastic.block=")})
        return found

    def store(self) -> int:
        """Pid of the store."""
        words = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_with(f"127.0.0.1:{self.port}")}
        return next(pid for pid, line in words.items() if "fgpipe.store" in line and "torchrun" not in line)

    def count(self, block: int, name: str = "updates") -> int:
        return self.places.tally(block).get(name, 0)

    def counts(self, name: str = "updates") -> list[int]:
        return [self.count(block, name) for block in range(BLOCKS)]

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        assert wait_until(lambda: condition() or self.process.poll() is not None, seconds), self.text
        assert condition(), self.text

    def kill(self, block: int, signum: int = signal.SIGKILL) -> None:
        os.kill(self.workers()[block], signum)

    def end(self) -> None:
        marks = (str(self.run), f"127.0.0.1:{self.port}")
        for _ in range(20):
            pids = living({pid for mark in marks for pid in processes_with(mark)} | {self.process.pid})
            for pid in sorted(pids):  # launchers first, as they would start others
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not pids:
                break
            time.sleep(0.1)
            self.process.poll()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
