"""Cost of recording a timeline: the same run with it and without, in turns; and the slices by themselves.

The runs are what counts, but their difference is lost in the noise of a machine whose runs differ by more. So a slice
is timed alone, and a run has as many times that as the busiest process has slices.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from fgpipe.observe import trace
from fgpipe.observe.timeline import Timeline
from fgpipe.study.bench.measure import interleaved, ratios
from fgpipe.study.bench.pipeline import BATCH, COMMON, PROCESSES
from fgpipe.study.bench.table import BenchRow, Sizes, at_most
from fgpipe.study.common.runs import read_summary
from fgpipe.study.common.series import launch
from fgpipe.study.contests.contest import speed
from fgpipe.trainers.phases import Phases

COST, SHARE = at_most(1.02), at_most(0.02)
SLICES = 10_000
"""Slices that are timed at once."""
BATCHES, EPOCHS = 24, 3
"""Length of a run; the first epoch warms up."""


def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Measure the least width and the local target, which has the most events in a second."""
    of_run = [f"data.train_samples={BATCHES * BATCH}", f"epochs={EPOCHS}", f"model.width={min(sizes.widths)}"]
    arguments = [*COMMON, *of_run, "target=local"]
    pairs = range(1 + sizes.runs)
    with tempfile.TemporaryDirectory() as folder:
        paths = {traced: [Path(folder) / f"{pair}-{traced}" for pair in pairs] for traced in ("true", "false")}
        runs = []
        for pair in pairs:
            for traced in sorted(paths, reverse=pair % 2 == 0):
                runs.append([*arguments, f"trace={traced}", f"run_dir={paths[traced][pair]}"])
        launch(runs, PROCESSES, Path(folder) / "runs.json")
        speeds = {traced: [speed(read_summary(path) or {}) for path in paths[traced][1:]] for traced in paths}
        one = slice_seconds(sizes)
        shares = [share(path, one) for path in paths["true"][1:]]
    what = f"time with trace=true over time without, local target, width {min(sizes.widths):g}"
    yield BenchRow(
        "recording", what, ratios(speeds["false"], speeds["true"]), COST, f"{PROCESSES} processes, one thread each"
    )
    what = f"share of the time that slices take, local target, width {min(sizes.widths):g}"
    yield BenchRow("recording", what, shares, SHARE, f"a slice takes {1e6 * one:.1f} us more than none")


def slice_seconds(sizes: Sizes) -> float:
    """Time of a slice on a timeline above that without one."""

    def make(on: bool) -> None:
        phase = Phases(0, Timeline(on))
        for batch in range(SLICES):
            with phase("forward", batch):
                pass

    seconds = interleaved({on: partial(make, on) for on in (True, False)}, sizes.steps, 0.1 * sizes.seconds)
    return (median(seconds[True]) - median(seconds[False])) / SLICES


def share(run: Path, slice_seconds: float) -> float:
    """Share of a run's training time, for the process with the most slices."""
    events = max(len(each) for each in trace.read(run / "trace.json").values())
    summary = read_summary(run) or {}
    return events * slice_seconds / sum(epoch["train_seconds"] for epoch in summary["epochs"])
