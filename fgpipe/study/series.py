"""Several runs of `fgpipe.train` in one set of processes, which take as long to start as a short run takes.

Usage: torchrun ... -m fgpipe.study.series FILE, where FILE has a list of lists of overrides as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.run import run


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
    file.write_text(json.dumps([list(overrides) for overrides in runs], indent=1))
    command = [*torchrun(processes, hosts), "-m", "fgpipe.study.series", str(file)]
    subprocess.run(command, stdout=sys.stderr, check=True, env={**os.environ, **environment})


def torchrun(processes: int, hosts: Sequence[str] = ()) -> list[str]:
    """The beginning of a command that starts so many processes on this host, or on two; `hosts` as for `launch`.

    One process needs no torchrun, which takes seconds to start.
    """
    if processes == 1:
        return [sys.executable]
    where = ["--standalone", f"--nproc_per_node={processes}"]
    if hosts:
        where = ["--nnodes=2", f"--nproc_per_node={processes // 2}", "--master_addr=host0"]
    return [*hosts, sys.executable, "-m", "torch.distributed.run", *where]


def main(file: Path) -> int:
    """Run them, in one of the processes; returns the exit code."""
    for overrides in json.loads(file.read_text()):
        try:
            run(compose_config(overrides))
        except UserError as error:
            print(f"fgpipe: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
