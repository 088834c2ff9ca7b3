"""`python -m fgpipe.bench [key=value ...]`: every figure of speed beside its goal, in one table.

    out=FILE        also write the table there, with the machine, the versions and the command; what FILE has before its
                    heading `## Results` stays, what follows is replaced
    only=NAMES      some of the sections tangents, layers, pipeline, recording, cells, start, profile, as in
                    only=tangents,start
    quick=true      every section once at a tiny size: shows that it works, the figures mean nothing

docs/results/speed.md says what is measured how. Exit codes: 0, done; 1, a run failed, or FILE
cannot be written; 2, bad input; 130, interrupted.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import fgpipe
from fgpipe.cluster.allocator import keep_pages
from fgpipe.command import command
from fgpipe.config.arguments import parse
from fgpipe.errors import bad_value
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_file, written
from fgpipe.study.bench import cells, layers, overhead, pipeline, recording, start, tangents
from fgpipe.study.bench.table import FULL, QUICK, BenchRow, Sizes, table

SECTIONS: dict[str, Callable[[Sizes], Iterator[BenchRow]]] = {
    "tangents": tangents.rows,
    "layers": layers.rows,
    "pipeline": pipeline.rows,
    "recording": recording.rows,
    "cells": cells.rows,
    "start": start.rows,
    "profile": overhead.rows,
}
HEADING = "## Results\n"
ENVIRONMENT = ("MALLOC_", "OMP_")
"""Beginnings of names of variables that change what is measured; those that are set belong to the command."""


@dataclass
class BenchOptions:
    """Keys of the command."""

    out: str | None = None
    only: str = ",".join(SECTIONS)
    quick: bool = False

    def check(self) -> None:
        """
        Raises:
            UserError: a value that it cannot have.
        """
        if self.out is not None:
            check_file("out", Path(self.out))
        for name in self.only.split(","):
            if name not in SECTIONS:
                raise bad_value("only", name, f"{' | '.join(SECTIONS)}, or some of them with commas between")


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.rstrip())
        return 0
    options = parse(arguments, BenchOptions())
    options.check()
    wanted, sizes = options.only.split(","), QUICK if options.quick else FULL
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library says two lines on stderr each time
    keep_pages()  # as training does
    rows: list[BenchRow] = []
    for name in (each for each in SECTIONS if each in wanted):
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += SECTIONS[name](sizes)
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(ENVIRONMENT)]
    command = " ".join([*settings, "python -m fgpipe.bench", *arguments])
    text = f"{table(rows)}\n{surroundings()}\n\nCommand: `{command}`\n"
    print(text, end="")
    if options.out is not None:
        write_results(Path(options.out), text)
    return 0


def write_results(path: Path, text: str) -> None:
    """Put `text` below the heading of the results, in place of what is there.

    Raises:
        OutputError: the file cannot be written.
    """
    with written(path):
        before = path.read_text().partition(HEADING)[0] if path.is_file() else ""
        durable.write(path, f"{before}{HEADING}\n{text}".encode())


def surroundings() -> str:
    """Machine, versions and commit, as one line."""
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{_processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return f"Machine: {machine}. {versions}. Commit: {_commit()}."


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _commit() -> str:
    """Commit of the sources that ran, with a mark where they differ from it; `unknown` outside a repository."""
    git = ["git", "-C", str(Path(fgpipe.__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
