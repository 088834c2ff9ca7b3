"""`python -m fgpipe.bench [key=value ...]`: every figure of speed beside its goal, in one table.

    out=FILE        also write the table there, with the machine, the versions and the command; what FILE has before its
                    heading `## Results` stays, what follows is replaced
    only=NAMES      some of the sections tangents, pipeline, recording, cells, start, profile, such as only=tangents,start
    quick=true      every section once at a tiny size: shows that it works, the figures mean nothing

docs/benchmarks/speed.md says what is measured how. Exit codes: 0, done; 1, a run failed, or FILE
cannot be written; 2, bad input; 130, interrupted.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import fgpipe
from fgpipe.cluster.allocator import keep_pages
from fgpipe.command import command
from fgpipe.errors import UserError, bad_value
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_file, written
from fgpipe.study.bench import cells, overhead, pipeline, recording, start, tangents
from fgpipe.study.bench.table import FULL, QUICK, Row, Sizes, table

SECTIONS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "tangents": tangents.rows,
    "pipeline": pipeline.rows,
    "recording": recording.rows,
    "cells": cells.rows,
    "start": start.rows,
    "profile": overhead.rows,
}
HEADING = "## Results\n"
ENVIRONMENT = ("MALLOC_", "OMP_")
"""How the names of variables begin that change what is measured; those that are set belong to the command."""
KEYS = ("out", "only", "quick")


@dataclass(frozen=True)
class Options:
    """What the arguments ask for."""

    out: Path | None
    sections: tuple[str, ...]
    sizes: Sizes


def parse(arguments: Sequence[str]) -> Options:
    """
    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"{argument}: allowed: {'=..., '.join(KEYS)}=...")
        given[key] = value
    out = Path(given["out"]) if "out" in given else None
    if out is not None:
        check_file("out", out)
    names = given.get("only", ",".join(SECTIONS)).split(",")
    for name in names:
        if name not in SECTIONS:
            raise bad_value("only", name, f"{' | '.join(SECTIONS)}, or some of them with commas between")
    quick = given.get("quick", "false")
    if quick not in ("true", "false"):
        raise bad_value("quick", quick, "true | false")
    return Options(out, tuple(name for name in SECTIONS if name in names), QUICK if quick == "true" else FULL)


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.rstrip())
        return 0
    options = parse(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library says two lines on stderr each time
    keep_pages()  # as training does
    rows = []
    for name in options.sections:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += SECTIONS[name](options.sizes)
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(ENVIRONMENT)]
    command = " ".join([*settings, "python -m fgpipe.bench", *arguments])
    text = f"{table(rows)}\n{surroundings()}\n\nCommand: `{command}`\n"
    print(text, end="")
    if options.out is not None:
        write_results(options.out, text)
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
    """Of the sources that ran, with a mark where they differ from it; `unknown` outside a repository."""
    git = ["git", "-C", str(Path(fgpipe.__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
