"""Start a run of elastic blocks, and look at it from outside: at its processes, and at its files, which survive them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from typing_extensions import Self

from fgpipe.elastic.places import Places
from fgpipe.study.contests.survival import free_port
from tests.integration.launching import ROOT, environment, launch, living, processes_with, wait_until


class Elastic:
    """`launch/elastic` in the background, with torchrun for each block; as a context, nothing of it is left afterwards."""

    def __init__(self, run: Path, blocks: int, *overrides: str) -> None:
        self.blocks, self.run, self.places, self._log = blocks, run, Places(run), run.with_suffix(".log")
        self.port, self._others = free_port(), list[subprocess.Popen[bytes]]()
        arguments = [
            "bash",
            str(ROOT / "launch/elastic"),
            str(blocks),
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

    def store(self) -> int | None:
        """Pid of the store; None while there is none."""
        for pid in processes_with(f"127.0.0.1:{self.port}"):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_text()
                if "fgpipe.store" in line and "torchrun" not in line:
                    return pid
        return None

    def launcher(self, block: int) -> int:
        """Pid of the torchrun that keeps a block alive."""
        return psutil.Process(self.workers()[block]).ppid()

    def count(self, block: int, name: str = "updates") -> int:
        return self.places.tally(block).get(name, 0)

    def counts(self, name: str = "updates") -> list[int]:
        return [self.count(block, name) for block in range(self.blocks)]

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        assert wait_until(lambda: condition() or self.process.poll() is not None, seconds), self.text
        assert condition(), self.text

    def back(self, victims: Sequence[int], act: Callable[[], object], seconds: float) -> float:
        """Seconds from an act until each victim has been restarted and has made an update."""
        before = {j: (self.count(j, "restarts"), self.count(j)) for j in victims}
        act()
        began = time.monotonic()
        self.wait(
            lambda: all(self.count(j, "restarts") > r and self.count(j) > u for j, (r, u) in before.items()), seconds
        )
        return time.monotonic() - began

    def rates(self, seconds: float, name: str = "updates") -> list[float]:
        """Updates per second of each block, or others of its counts."""
        before, began = self.counts(name), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return [(now - then) / took for then, now in zip(before, self.counts(name), strict=True)]

    def status(self, *options: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(self.run), "--store", f"127.0.0.1:{self.port}", *options]
        return launch(1, "-m", "fgpipe.status", *arguments, timeout=120)

    def kill(self, *blocks: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the processes that train these blocks, at once."""
        for pid in map(self.workers().__getitem__, blocks):
            os.kill(pid, signum)

    def arguments(self, block: int) -> list[str]:
        """The command line of the process that trains a block."""
        return Path(f"/proc/{self.workers()[block]}/cmdline").read_text().split("\0")[:-1]

    def start(self, arguments: list[str]) -> None:
        """Start another process of the run, without torchrun."""
        with self._log.open("a") as log:
            self._others.append(subprocess.Popen(arguments, env=environment(), stdout=log, stderr=log, cwd=ROOT))

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
            for process in (self.process, *self._others):
                process.poll()
        for process in (self.process, *self._others):
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
