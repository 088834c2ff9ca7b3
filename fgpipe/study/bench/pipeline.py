"""Throughput of two processes over that which the busier one's own compute allows, read off their traces."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from fgpipe.observe import trace
from fgpipe.observe.timeline import COMPUTE, Event
from fgpipe.study.bench.table import BenchRow, Sizes, at_least
from fgpipe.study.common.series import launch

EFFICIENCY = at_least(0.9)
PROCESSES = 2
CELLS = {"local target": ["target=local"], "global target, one lane": ["target=global", "lanes=1"]}
BATCH = 32
MARGIN = 8
"""Largest window of 8 blocks."""
COMMON = ["data=digits", f"data.test_samples={BATCH}", f"batch_size={BATCH}", "epochs=1", "guess=local", "window=auto"]
COMMON += ["optim=constant", "optim.lr=0.001", "threads=1", "device=cpu", "trace=true", "observe.tensorboard=false"]


def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Yield the row of each width and cell, whose runs take turns in one set of processes."""
    cells = list(product(sizes.widths, CELLS))
    runs = dict(zip(sizes.widths, sizes.pipelines, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        places = {
            (run, width, cell): Path(folder) / f"{run}-{width}-{list(CELLS).index(cell)}"
            for run in range(max(sizes.pipelines))
            for width, cell in cells
            if run < runs[width]
        }
        samples = {
            width: f"data.train_samples={batches * BATCH}"
            for width, batches in zip(sizes.widths, sizes.batches, strict=True)
        }
        commands = [
            [*COMMON, *CELLS[cell], samples[width], f"model.width={width}", f"run_dir={path}"]
            for (_, width, cell), path in places.items()
        ]
        launch(commands, PROCESSES, Path(folder) / "runs.json")
        for width, cell in cells:
            found = [efficiency(trace.read(places[run, width, cell] / "trace.json")) for run in range(runs[width])]
            what = f"throughput over the busiest stage's bound, {cell}, width {width:g}"
            yield BenchRow("pipeline", what, found, EFFICIENCY, "2 processes, one thread each, window=auto")


def efficiency(events: Mapping[int, Sequence[Event]]) -> float:
    """Compute of the busiest process, over the time that the process which takes longest needs for the same batches.

    They are those in the middle: the first `MARGIN` batches fill the pipeline and the last ones drain it. A process is
    done with a batch when its last event of it has ended.

    Args: events: of each process.
    """
    compute, took = [], []
    for each in events.values():
        work = [event for event in each if event.kind in COMPUTE]
        done: dict[int, int] = defaultdict(int)
        for event in work:
            done[event.batch] = max(done[event.batch], event.ended)
        began, ended = done[MARGIN], done[len(done) - 1 - MARGIN]
        compute.append(
            sum(event.ended - event.began for event in work if began <= event.began and event.ended <= ended)
        )
        took.append(ended - began)
    return max(compute) / max(took)
