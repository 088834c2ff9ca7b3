"""How long a command takes until its first batch is trained."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fgpipe.observe import trace
from fgpipe.study.bench.table import Row, Sizes, at_most
from fgpipe.study.series import torchrun

SECONDS = at_most(15)
COMMON = ["data=digits", "epochs=1", "trace=true", "device=cpu", "observe.tensorboard=false"]


def rows(sizes: Sizes) -> Iterator[Row]:
    """The quickstart's net, every block of which has updated; the first start only warms the file system's cache."""
    short = [f"data.train_samples={sizes.batch}", f"data.test_samples={sizes.batch}", f"batch_size={sizes.batch}"]
    _, *figures = [seconds_to_first_batch(sizes.processes, [*COMMON, *short]) for _ in range(1 + sizes.runs)]
    yield Row("start", f"seconds from command to first trained batch, {sizes.processes} processes", figures, SECONDS)


def seconds_to_first_batch(processes: int, overrides: list[str]) -> float:
    """Start them by torchrun, and wait for their end.

    Raises:
        CalledProcessError: one has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.monotonic_ns()  # the clock of a trace is the same one
        subprocess.run(
            [*torchrun(processes), "-m", "fgpipe.train", *overrides, f"run_dir={run}"], stdout=sys.stderr, check=True
        )
        path = run / "trace.json"
        origin = json.loads(path.read_text())["otherData"]["origin"]
        events = trace.events(path)
    trained = max(event.ended for event in events if event.kind == "update" and event.batch == 0)
    return (origin + trained - began) * 1e-9
