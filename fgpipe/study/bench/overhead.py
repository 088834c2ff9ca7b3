"""Share of a step that is not arithmetic: in one process by PyTorch's profiler, in several by what they take on top.

In one process it is Python, dispatch, copies and allocation; in several also links, messages, and waiting threads.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from fgpipe.study.bench.cells import COMMON, random_batch, step_of
from fgpipe.study.bench.measure import ratios
from fgpipe.study.bench.table import BenchRow, Sizes
from fgpipe.study.common.runs import read_summary
from fgpipe.study.common.series import launch

LANES = ["guess=local", "target=global", "space=weight", "lanes=1"]
RUN = [*COMMON, *LANES, "data=digits", "epochs=1", "threads=1", "observe.tensorboard=false"]
BATCH = 32
BATCHES = 4
"""Length of a run whose processor time is taken."""

WHOSE = {"processor_seconds": "", "main_thread_seconds": ", the main threads alone"}
"""Processor time, by its name in the summary."""

ARITHMETIC = re.compile(
    r"aten::(_?mkldnn_convolution|_slow_conv\w*|convolution_backward|native_batch_norm\w*|addmm|mm|relu_?"
    r"|threshold_backward|clamp_min_?|_fused_sgd_|_foreach_\w+|add_?|sub_?|mul_?|div_?|addcmul_?|square|pow|sum|mean|dot"
    r"|_?log_softmax\w*|_softmax\w*|nll_loss\w*|avg_pool2d\w*|_?adaptive_avg_pool2d\w*|linalg_vector_norm)"
)
"""Kernels that compute, by the whole name."""


def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Measure a step of all blocks, with local guesses in weight space and one lane, by width."""
    for width in sizes.widths:
        images, labels = random_batch(sizes)
        step, _ = step_of([*COMMON, *LANES, f"model.width={width}"], images, labels)
        step()
        figures = [share_of_overhead(step) for _ in range(sizes.steps)]
        yield BenchRow("profile", f"share of a step that is not arithmetic, one process, width {width:g}", figures)
    alone, together = (processor_seconds(processes, sizes) for processes in (1, sizes.processes))
    for width in sizes.widths:
        for key, whose in WHOSE.items():
            of_all, of_one = together[width][key], alone[width][key]
            what = f"processor time of a step in {sizes.processes} processes over that in one, width {width:g}{whose}"
            milliseconds = [1000 * min(each) / BATCHES for each in (of_all, of_one)]
            note = "at least {:.0f} and {:.0f} ms per batch".format(*milliseconds)
            yield BenchRow("profile", what, ratios(of_all, of_one), note=note)


def processor_seconds(processes: int, sizes: Sizes) -> dict[float, dict[str, list[float]]]:
    """Seconds of training, of all processes together, by width and by whose they are, as the summary calls it.

    The runs are in one set of processes; the first of a width warms up.
    """
    short = [f"data.train_samples={BATCHES * BATCH}", f"data.test_samples={BATCH}", f"batch_size={BATCH}"]
    with tempfile.TemporaryDirectory() as folder:
        paths = {width: [Path(folder) / f"{width}-{run}" for run in range(1 + sizes.runs)] for width in sizes.widths}
        runs = [
            [*RUN, *short, f"model.width={width}", f"run_dir={path}"] for width, each in paths.items() for path in each
        ]
        launch(runs, processes, Path(folder) / "runs.json")
        summaries = {width: [read_summary(path) or {} for path in each[1:]] for width, each in paths.items()}
    return {width: {key: [sum(each[key]) for each in found] for key in WHOSE} for width, found in summaries.items()}


def share_of_overhead(step: Callable[[], object]) -> float:
    """Measure 1 less the arithmetic kernels' own time over the time of the step, which the profiler makes longer."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        step()
        took = time.perf_counter() - began
    kernels = sum(event.self_cpu_time_total for event in profiled.events() if ARITHMETIC.fullmatch(event.name))
    return 1 - kernels * 1e-6 / took
