"""Several runs of `fgpipe.train` in one set of processes, which take as long to start as a short run takes.

Usage: torchrun ... -m fgpipe.study.common.series FILE, where FILE has a list of lists of overrides as JSON.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.study.common.series")

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fgpipe.cluster.allocator import keep_pages
from fgpipe.command import FAILED, STARTED, command, leave
from fgpipe.config import compose_config
from fgpipe.errors import RunError, UserError, one_line
from fgpipe.saving.outputs import written
from fgpipe.trainers.session import run

GRACE = 40.0
"""Seconds that processes have to end; torchrun gives its workers 30."""
_called: list[subprocess.Popen[bytes]] = []


def launch(
    runs: Sequence[Sequence[str]],
    processes: int,
    file: Path,
    hosts: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run them all, under torchrun if there are several processes; what they print goes to stderr.

    Args:
        file: where the runs are written down for the processes.
        hosts: `launch/two_hosts` with its options and `--`; then half of the processes are on each host.
        environment: variables of the processes, beside those of this one.

    Raises:
        UserError: one cannot be run.
        CalledProcessError: one has failed.
    """
    for overrides in runs:
        compose_config(overrides)
    with written(file):
        file.write_text(json.dumps([list(overrides) for overrides in runs], indent=1))
    command = [*torchrun(processes, hosts), "-m", "fgpipe.study.common.series", str(file)]
    call(command, environment)


def call(command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command to its end, as `begin`; an interrupt ends it too.

    Raises:
        CalledProcessError: it has failed.
    """
    process = begin(command, environment)
    _called.append(process)
    try:
        code = process.wait()
    except BaseException:
        end([process])
        raise
    finally:
        _called.remove(process)
    if code:
        raise subprocess.CalledProcessError(code, command)


def begin(command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[bytes]:
    """Start a command of ours, whose prints go to stderr."""
    return subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, STARTED: "1", **environment})


def end_called() -> None:
    """End what `call` waits for, in any thread."""
    end(_called.copy())


def end(processes: Collection[subprocess.Popen[bytes]], signum: int = signal.SIGINT) -> None:
    """Send processes a signal, and wait until they have ended.

    Args: signum: SIGTERM for scripts, which cannot catch a SIGINT that this process was started to ignore.
    """
    for each in processes:
        each.send_signal(signum)
    give_up = time.monotonic() + GRACE
    for each in processes:
        try:
            each.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


def torchrun(processes: int, hosts: Sequence[str] = ()) -> list[str]:
    """Begin a command that starts so many processes on this host, or on two; `hosts` as for `launch`.

    One process needs no torchrun, which takes seconds to start.
    """
    if processes == 1:
        return [sys.executable]
    where = ["--standalone", f"--nproc_per_node={processes}"]
    if hosts:
        where = ["--nnodes=2", f"--nproc_per_node={processes // 2}", "--master_addr=host0"]
    return [*hosts, sys.executable, "-m", "torch.distributed.run", *where]


@command
def main(arguments: list[str]) -> int:
    """Run them, in one of the processes; returns the exit code."""
    if len(arguments) != 1:
        raise UserError(f"{' '.join(arguments) or 'no argument'}: allowed: FILE")
    try:
        runs = json.loads(Path(arguments[0]).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments[0]}: {one_line(error)}: allowed: a list of lists of overrides as JSON") from error
    keep_pages()
    for number, overrides in enumerate(runs, 1):
        config = compose_config(overrides)
        if os.environ.get("RANK", "0") == "0" and len(runs) > 1:
            print(f"run {number} of {len(runs)}: {config.run_dir}", flush=True)
        try:
            run(config)
        except RunError:  # which the run has said
            leave(FAILED)
    return 0
