"""Cost of a run to come: FLOPs counted on meta tensors, and seconds from a short calibration on this machine."""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fgpipe.cluster.process import Cluster, Place
from fgpipe.config import Config, HeadConfig, ModelConfig
from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import plan_lanes
from fgpipe.models.net import Net, resnet
from fgpipe.observe.observers import Observers
from fgpipe.plan.costs import block_costs
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.study.paper.tables import DATASETS
from fgpipe.trainers.build import build_trainer

CALIBRATION_FLOPS = 1e11
"""FLOPs of one calibrating step, at most, unless two images cost more."""
CALIBRATION_STEPS = 2
"""Steps that are timed, after one that is not."""
COUNTED = 4
"""Images of the forward pass that is counted."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run, two for a multiplication and an addition."""

    step: float
    """FLOPs of one training step of one image."""
    total: float
    """FLOPs of all epochs, tests included."""


def cost(config: Config, dataset: str) -> Cost:
    """Count the convolutions and matrix products of a run on one of the paper's data sets; nothing is computed.

    What a subspace guess adds, a singular value decomposition and a projection, is not counted.
    """
    published, method = DATASETS[dataset], Method.of(config)
    shape = (published.channels, config.data.size, config.data.size)
    tensors, blocks, own, heads = _counted(astuple(config.model), astuple(config.head), published.classes, shape)
    if config.tangents == "oracle":
        step = oracle_flops(method, blocks, own, heads)
    else:
        lanes = plan_lanes(method, tensors, config.lanes, config.code, config.seed)
        step = sum(block_costs(blocks, method, lanes))
        step += sum(
            3 * flops for j, flops in enumerate(heads) if method.trains_head(j) or method.guesses_by_untrained_head
        )
    train = config.data.train_samples or published.train
    test = config.data.test_samples or published.test
    train -= train % config.batch_size
    judged = sum(blocks) + sum(flops for j, flops in enumerate(heads) if method.trains_head(j))
    return Cost(step, config.epochs * (train * step + test * judged))


def oracle_flops(method: Method, blocks: Sequence[float], own: Sequence[float], heads: Sequence[float]) -> float:
    """FLOPs of one oracle step.

    Args:
        blocks, heads: of each one's forward pass; a gradient of its input costs as much again, and so does one of its
            weights.
        own: of each block's backward pass to its weights alone, which needs no gradient of its input.
    """
    through = [method.is_plain(j) for j in range(method.blocks)]
    to_weights = [plain or method.space == "weight" for plain in through]
    total = sum(blocks)
    for j, head in enumerate(heads):
        if method.trains_head(j):
            guessing = method.guesses_by_trained_head and not through[j]
            asking = {lower for lower in range(j + 1) if method.target(lower) == j or (guessing and lower == j)}
            lowest, *higher = range(min(asking), j + 1)
            total += 3 * head + own[lowest] * to_weights[lowest]
            total += sum(blocks[k] * (1 + (k in asking and to_weights[k])) for k in higher)
        if not through[j]:
            total += own[j] * (method.space == "activity")
            total += (2 * head + own[j] * to_weights[j]) * method.guesses_by_untrained_head
    return total


@lru_cache
def _counted(
    model: tuple[Any, ...], head: tuple[Any, ...], classes: int, shape: tuple[int, int, int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Parameter tensors of each block, and its and its head's FLOPs (see `count`); a second's work, for many cells."""
    net = resnet(ModelConfig(*model), HeadConfig(*head), in_channels=shape[0], classes=classes)
    return [len(list(block.parameters())) for block in net.blocks], *count(net, shape)


def count(net: Net, shape: tuple[int, int, int]) -> tuple[list[int], list[int], list[int]]:
    """FLOPs for one image of `shape` `[C, H, W]`: each block's forward pass, its backward pass to its weights, and each
    head's forward pass. The net must be on the meta device."""
    x, labels = torch.zeros(COUNTED, *shape, device="meta"), torch.zeros(COUNTED, dtype=torch.int64, device="meta")
    counts: tuple[list[int], list[int], list[int]] = ([], [], [])
    head: Any  # has `losses`, unlike other modules
    for block, head in zip(net.blocks, net.heads, strict=True):
        with FlopCounterMode(display=False) as forward:
            y = block(x)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(y, list(block.parameters()), torch.empty_like(y))
        x = y.detach()
        with FlopCounterMode(display=False) as of_head:
            head.losses(x, labels)
        for numbers, counter in zip(counts, (forward, backward, of_head), strict=True):
            numbers.append(counter.get_total_flops() // COUNTED)
    return counts


def seconds_per_flop(config: Config, dataset: str, cost: Cost) -> float:
    """Train a few batches of noise as `config` says, in this process, and time them."""
    images = max(2, min(config.batch_size, int(CALIBRATION_FLOPS / cost.step)))
    config = replace(config, batch_size=images, microbatches=1)
    place = Place(rank=0, world_size=1, local_rank=0, local_world_size=1)
    device, threads = place.device(config.device), torch.get_num_threads()
    torch.set_num_threads(place.threads(config.threads))
    try:
        plan, cluster = _plan(config, dataset), Cluster(place)
        cluster.connect(plan.topology, place.wire_device(device), alone=config.pipelined)
        trainer = build_trainer(plan, cluster, device, Observers.of(plan.method.blocks))
        images_and_labels = _noise(plan.facts, images, DTYPES[config.dtype])
        trainer.train(0, 1, lambda epoch, index: images_and_labels)
        _wait_for(device)
        began = time.perf_counter()
        for epoch in range(1, 1 + CALIBRATION_STEPS):
            trainer.train(epoch, 1, lambda epoch, index: images_and_labels)
        _wait_for(device)
        seconds = time.perf_counter() - began
        trainer.close()
        cluster.close()
    finally:
        torch.set_num_threads(threads)
    return seconds / (CALIBRATION_STEPS * images * cost.step)


def _plan(config: Config, dataset: str) -> Plan:
    facts, side = DATASETS[dataset], config.data.size
    return Plan.make(config, DataFacts(1, 1, facts.classes, facts.channels, side, side))


def _noise(facts: DataFacts, images: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (images, facts.channels, facts.height, facts.width)
    labels = torch.arange(images) % facts.classes
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last), labels


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
