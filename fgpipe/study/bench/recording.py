"""What recording a timeline costs: the same run with it and without, in turns."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from fgpipe.study.bench.measure import ratios
from fgpipe.study.bench.pipeline import BATCH, COMMON, PROCESSES
from fgpipe.study.bench.table import Row, Sizes, at_most
from fgpipe.study.contest import speed
from fgpipe.study.runs import read_summary
from fgpipe.study.series import launch

COST = at_most(1.02)
PAIRS = 3
"""Of runs, for each run of other sections."""
EPOCHS = 3
"""The first one warms up."""


def rows(sizes: Sizes) -> Iterator[Row]:
    """Of the least width and the local target, which has the most events in a second."""
    images = [f"data.train_samples={sizes.batches * BATCH}", f"data.test_samples={BATCH}", f"batch_size={BATCH}"]
    arguments = [*COMMON, *images, f"epochs={EPOCHS}", f"model.width={min(sizes.widths)}", "target=local"]
    pairs = range(1 + PAIRS * sizes.runs)
    with tempfile.TemporaryDirectory() as folder:
        paths = {traced: [Path(folder) / f"{pair}-{traced}" for pair in pairs] for traced in ("true", "false")}
        runs = []
        for pair in pairs:
            for traced in sorted(paths, reverse=pair % 2 == 0):
                runs.append([*arguments, f"trace={traced}", f"run_dir={paths[traced][pair]}"])
        launch(runs, PROCESSES, Path(folder) / "runs.json")
        speeds = {traced: [speed(read_summary(path) or {}) for path in paths[traced][1:]] for traced in paths}
    what = f"time with trace=true over time without, local target, width {min(sizes.widths):g}"
    yield Row("recording", what, ratios(speeds["false"], speeds["true"]), COST, f"{PROCESSES} processes, one thread each")
