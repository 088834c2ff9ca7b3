"""Time that a command takes until its first batch is trained."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fgpipe.observe import trace
from fgpipe.study.bench.table import BenchRow, Sizes, at_most
from fgpipe.study.common.series import call, torchrun

SECONDS = at_most(15)
IMPORTS = "import gc, signal, time; gc.disable(); signal.signal(signal.SIGINT, signal.SIG_DFL); "
IMPORTS += "import torch.distributed; print(f'{time.monotonic_ns()}\\n', end='')"
"""Program that imports as `fgpipe.train` does; an interrupt ends it without a word."""
COMMON = ["data=digits", "epochs=1", "trace=true", "device=cpu", "observe.tensorboard=false"]


def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Time the quickstart's net until every block has updated; an untimed start warms the file system's cache."""
    short = [f"data.train_samples={sizes.batch}", f"data.test_samples={sizes.batch}", f"batch_size={sizes.batch}"]
    processes, overrides = sizes.processes, [*COMMON, *short]
    calls = {
        "run": partial(seconds_to_first_batch, processes, overrides),
        "imports": partial(seconds_to_import, processes),
    }
    figures: dict[str, list[float]] = {name: [] for name in calls}
    calls["imports"]()
    for _ in range(sizes.runs):
        for name, measure in calls.items():
            figures[name].append(measure())
    yield BenchRow(
        "start", f"seconds from command to first trained batch, {processes} processes", figures["run"], SECONDS
    )
    what = f"seconds of torchrun and {processes} processes until all have imported PyTorch"
    yield BenchRow("start", what, figures["imports"])


def seconds_to_import(processes: int) -> float:
    """Time until the last process has, as `fgpipe.train` does it: what no program under torchrun can do without."""
    began, nothing_else = time.monotonic_ns(), ["--no-python", sys.executable, "-c", IMPORTS]
    done = subprocess.run([*torchrun(processes), *nothing_else], stdout=subprocess.PIPE, check=True)
    return (max(map(int, done.stdout.split())) - began) * 1e-9


def seconds_to_first_batch(processes: int, overrides: list[str]) -> float:
    """Start them by torchrun, and wait for their end.

    Raises:
        CalledProcessError: one has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.monotonic_ns()  # the clock of a trace is the same one
        call([*torchrun(processes), "-m", "fgpipe.train", *overrides, f"run_dir={run}"])
        path = run / "trace.json"
        origin = json.loads(path.read_text())["otherData"]["origin"]
        events = trace.events(path)
    trained = max(event.ended for event in events if event.kind == "update" and event.batch == 0)
    return (origin + trained - began) * 1e-9
