"""Memory that blocks keep of a batch from its forward pass until its update; measured on the stages themselves.

A block's graph saves its input, which is the storage of the output that the graph of the block below saves, if both are
in one process. So what a process keeps is not the sum of what its blocks keep, but the union of their storages.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.trainers.asynchronous import AsynchronousStage, Stashed
from fgpipe.trainers.build import asynchronous_stages, local_stages
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch, within_process


class _Saved:
    """Tensor that an autograd graph has saved; it lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Graph:
    """Tensors that graphs made within `watch` still hold."""

    def __init__(self) -> None:
        self._saved: list[weakref.ref[_Saved]] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        with saved_tensors_hooks(self._pack, lambda saved: saved.tensor):
            yield

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        self._saved.append(weakref.ref(saved))
        return saved

    @property
    def tensors(self) -> list[Tensor]:
        return [saved.tensor for reference in self._saved if (saved := reference()) is not None]


Storages = Mapping[int, int]
"""Bytes by address."""


def storages_of(tensors: Iterable[Tensor]) -> Storages:
    """Find what is behind tensors, which must live as long as addresses are compared."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def kept_together(blocks: Sequence[Storages], in_flight: Sequence[int] | None = None) -> int:
    """Bytes that blocks of one process keep together, a storage that several of them keep counted once.

    Args:
        blocks: what each keeps of one batch.
        in_flight: batches at each block, one each if None. Those of a block with fewer are taken to be among those of
            one with more, so that a storage of several blocks is there as often as the one with the most has it.
    """
    size: dict[int, int] = {}
    count: dict[int, int] = {}
    for storages, batches in zip(blocks, in_flight or [1] * len(blocks), strict=True):
        for pointer, bytes in storages.items():
            size[pointer], count[pointer] = bytes, max(batches, count.get(pointer, 0))
    return sum(size[pointer] * count[pointer] for pointer in size)


def kept_by_blocks(plan: Plan) -> list[Storages]:
    """Measure what each block keeps of one batch in flight, from its forward pass to its update.

    What its graph saves counts, and its guess unless it can be redrawn. Its parameters do not, but a copy of them for
    this batch does; not the two versions of 2BW, which are there whatever is in flight. A block that learns within its forward pass keeps nothing: what it makes is gone by then.

    Args: plan: of one process with all blocks.
    """
    facts, size = plan.facts, plan.config.batch_size
    source = torch.Generator().manual_seed(0)
    images = torch.randn(size, facts.channels, facts.height, facts.width, generator=source)
    x = images.to(DTYPES[plan.config.dtype]).contiguous(memory_format=torch.channels_last)
    batch = Batch(0, 0, True, x, torch.randint(facts.classes, (size,), generator=source))
    kept = []  # it holds the tensors until all are there: no address comes twice
    stages = asynchronous_stages(plan) if plan.method.returns_gradients else local_stages(plan)
    for stage in stages:
        if isinstance(stage, Stage) and plan.config.guess_name == "end_to_end":
            found, x = kept_by_graph(stage.block, x)
        else:
            found, batch = kept_by_stage(stage, batch)
        versions = [entry.weights.parameters() for entry in stage.in_flight] if plan.parts > 1 else []
        own = storages_of([*stage.block.parameters(), *stage.block.buffers(), *chain(*versions)])
        kept.append([tensor for tensor in found if tensor.untyped_storage().data_ptr() not in own])
    return [storages_of(tensors) for tensors in kept]


def kept_by_stage(stage: Stage | AsynchronousStage, batch: Batch) -> tuple[list[Tensor], Batch]:
    """Find what a block keeps of a training batch until its scalars or its gradient arrive, and the batch for the block above, if any.

    The batch goes over the link of two blocks in one process.
    """
    graph, sent = Graph(), []
    with graph.watch():
        for message in stage.run(batch):
            sent += [within_process(message)] if isinstance(message, Batch) else []
        del message  # it may hold estimates
    tensors = graph.tensors
    for entry in stage.in_flight:
        tensors += [entry.x] if isinstance(entry, Stashed) else entry.directions or ()
        tensors += [] if entry.output is None else [entry.output]
        tensors += [] if entry.weights is stage.block else entry.weights.parameters()
    return tensors, (sent or [batch])[0]


def kept_by_graph(block: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Find what backpropagation keeps of a block until the gradient comes, and the block's output."""
    graph = Graph()
    with graph.watch():
        y = block(x)
    return [*graph.tensors, y], y.detach()
