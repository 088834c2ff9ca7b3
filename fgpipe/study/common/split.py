"""Blocks per process, balanced by the measured time of their forward passes, so that every contestant has the same."""

import statistics
import time

import torch
from torch import nn

from fgpipe.config import Config
from fgpipe.data import Batches, load
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.plan.topology import balanced
from fgpipe.trainers.build import local_stages

WARM, PASSES = 2, 7
"""Forward passes that are not counted, and those of which the median counts."""


def data_facts(config: Config) -> DataFacts:
    """Read what a run's processes know of its data.

    Raises:
        UserError: it cannot be read, or is too little.
    """
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES[config.dtype])
    return DataFacts.of(dataset, batches, config.data.size)


def measured_split(config: Config, facts: DataFacts, processes: int) -> list[int]:
    """Sizes of runs of blocks, one for each process."""
    return list(balanced(forward_seconds(config, facts), processes))


def forward_seconds(config: Config, facts: DataFacts) -> list[float]:
    """Time of each block, on a whole batch in training mode, on one thread of the CPU."""
    plan = Plan.make(config, facts)
    images = torch.zeros(config.batch_size, facts.channels, facts.height, facts.width, dtype=DTYPES[config.dtype])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return times(
            [stage.block for stage in local_stages(plan)], images.contiguous(memory_format=torch.channels_last)
        )
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def times(blocks: list[nn.Module], x: torch.Tensor) -> list[float]:
    """Median seconds that each block takes; `x` enters the first."""
    found = []
    for block in blocks:
        block.train()
        taken = []
        for _ in range(WARM + PASSES):
            began = time.perf_counter()
            y = block(x)
            taken.append(time.perf_counter() - began)
        found.append(statistics.median(taken[WARM:]))
        x = y
    return found
