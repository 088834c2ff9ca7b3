"""How much of a step is not arithmetic, by PyTorch's profiler: Python, dispatch, copies and allocation."""

import re
import time
from collections.abc import Callable, Iterator

from torch.profiler import ProfilerActivity, profile

from fgpipe.study.bench.cells import COMMON, random_batch, step_of
from fgpipe.study.bench.table import Row, Sizes

ARITHMETIC = re.compile(
    r"aten::(_?mkldnn_convolution|_slow_conv\w*|convolution_backward|native_batch_norm\w*|addmm|mm|relu|threshold_backward"
    r"|_foreach_\w+|add_?|sub_?|mul_?|div_?|addcmul_?|square|pow|sum|mean|dot|_?log_softmax\w*|_softmax\w*|nll_loss\w*"
    r"|avg_pool2d\w*|_?adaptive_avg_pool2d\w*|linalg_vector_norm)"
)
"""Kernels that compute, by the whole name."""


def rows(sizes: Sizes) -> Iterator[Row]:
    """A step of all blocks in one process, with local guesses in weight space and one lane, by width."""
    for width in sizes.widths:
        images, labels = random_batch(sizes)
        step, _ = step_of([*COMMON, "lanes=1", f"model.width={width}"], images, labels)
        step()
        figures = [share_of_overhead(step) for _ in range(sizes.rounds)]
        yield Row("profile", f"share of a step that is not arithmetic, one process, width {width:g}", figures)


def share_of_overhead(step: Callable[[], object]) -> float:
    """1 less the arithmetic kernels' own time over the time of the step, which the profiler makes longer."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        step()
        took = time.perf_counter() - began
    kernels = sum(event.self_cpu_time_total for event in profiled.events() if ARITHMETIC.fullmatch(event.name))
    return 1 - kernels * 1e-6 / took
