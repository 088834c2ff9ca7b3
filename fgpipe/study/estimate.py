"""What a run will cost: FLOPs counted on meta tensors, and seconds from a short calibration on this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fgpipe.assembly import DTYPES, DataFacts, Plan, build_trainer
from fgpipe.config import Config
from fgpipe.gradients.method import Method
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.runtime.costs import block_costs, forward_flops
from fgpipe.runtime.process import Cluster, Place
from fgpipe.study.paper import DATASETS

CALIBRATION_FLOPS = 1e11
"""Of one calibrating step, at most, unless two images cost more."""
CALIBRATION_STEPS = 2
"""Timed, after one that is not."""
COUNTED = 4
"""Images of the forward pass that is counted."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run, two for a multiplication and an addition."""

    step: float
    """Of one training step of one image."""
    total: float
    """Of all epochs, tests included."""


def cost(config: Config, dataset: str) -> Cost:
    """Count the convolutions and matrix products of a run on one of the paper's data sets; nothing is computed."""
    published, plan = DATASETS[dataset], _plan(config, dataset)
    shape = (COUNTED, plan.facts.channels, plan.facts.height, plan.facts.width)
    blocks = [flops / COUNTED for flops in forward_flops(plan.net, shape)]
    heads = [flops / COUNTED for flops in forward_flops(plan.net, shape, heads=True)]
    if config.tangents == "oracle":
        step = oracle_flops(plan.method, blocks, heads)
    else:
        step = sum(block_costs(blocks, plan.method, plan.lanes))
        step += sum(3 * flops for j, flops in enumerate(heads) if plan.method.trains_head(j) or plan.method.has_untrained_guess)
    train = config.data.train_samples or published.train
    test = config.data.test_samples or published.test
    train -= train % config.batch_size
    return Cost(step, config.epochs * (train * step + test * sum(blocks)))


def oracle_flops(method: Method, blocks: Sequence[float], heads: Sequence[float]) -> float:
    """FLOPs of one oracle step, from those of each block's and head's forward pass; a backward pass costs two of them."""
    total = sum(blocks)
    for j, (block, head) in enumerate(zip(blocks, heads, strict=True)):
        if method.trains_head(j):
            total += 3 * head
        if method.is_plain(j) and j != method.last:
            total += 2 * block
        elif not method.is_plain(j) and method.guess != "end_to_end":
            guess = 0.0 if method.is_random else 2 * block * (method.space == "weight")
            total += guess + 2 * block * (method.space == "activity") + 3 * head * method.has_untrained_guess
    waited_for = {method.target(j) for j in range(method.last) if method.waits(j) or method.guess == "end_to_end"}
    return total + 2 * blocks[method.last] + sum(_reach(method, target, blocks) for target in waited_for)


def _reach(method: Method, target: int, blocks: Sequence[float]) -> float:
    """The backward pass of one target's loss, down to the lowest block that asks for it."""
    lowest = min(j for j in range(target) if method.target(j) == target)
    return 2 * sum(blocks[lowest : min(target + 1, method.last)])


def seconds_per_flop(config: Config, dataset: str, cost: Cost) -> float:
    """Train a few batches of noise as `config` says, in this process, and time them."""
    images = max(2, min(config.batch_size, int(CALIBRATION_FLOPS / cost.step)))
    config = replace(config, batch_size=images, microbatches=1)
    place = Place(rank=0, world_size=1, local_rank=0, local_world_size=1)
    device, threads = place.device(config.device), torch.get_num_threads()
    torch.set_num_threads(place.threads(config.threads))
    try:
        plan = _plan(config, dataset)
        trainer = build_trainer(plan, Cluster(place), device, Metrics(plan.method.blocks), Ledger(plan.method.blocks))
        images_and_labels = _noise(plan.facts, images, DTYPES[config.dtype])
        trainer.train(0, 1, lambda epoch, index: images_and_labels)
        _wait_for(device)
        began = time.perf_counter()
        trainer.train(1, CALIBRATION_STEPS, lambda epoch, index: images_and_labels)
        _wait_for(device)
        seconds = time.perf_counter() - began
        trainer.close()
    finally:
        torch.set_num_threads(threads)
    return seconds / (CALIBRATION_STEPS * images * cost.step)


def _plan(config: Config, dataset: str) -> Plan:
    facts, side = DATASETS[dataset], config.data.size
    return Plan.make(config, DataFacts(1, 1, facts.classes, facts.channels, side, side), None, 0, 1)


def _noise(facts: DataFacts, images: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (images, facts.channels, facts.height, facts.width)
    labels = torch.arange(images) % facts.classes
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last), labels


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
