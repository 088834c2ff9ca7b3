"""What a block keeps of a batch from its forward pass until its update, in bytes; measured on the stages themselves."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fgpipe.assembly import Plan, build_stages
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.timeline import Timeline
from fgpipe.runtime.feedback.messages import Feedback
from fgpipe.runtime.links.base import Batch
from fgpipe.runtime.precision import DTYPES
from fgpipe.runtime.replicas import Replicas
from fgpipe.runtime.stage import Stage


class _Saved:
    """A tensor that an autograd graph has saved; it lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Graph:
    """The tensors that graphs made within `watch` still hold."""

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


def storage_bytes(tensors: Iterable[Tensor], without: Iterable[Tensor] = ()) -> int:
    """Of the storages behind tensors, each counted once, but for those behind `without`."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    return sum(size for pointer, size in storages.items() if pointer not in known)


def kept_by_blocks(plan: Plan) -> list[int]:
    """Bytes that each block keeps for one batch in flight, from its forward pass to its update.

    What its graph saves counts, and its guess unless it can be redrawn. Its parameters do not, but a copy of them for
    this batch does. A block that learns within its forward pass keeps nothing: what it makes is gone by then.

    Args: plan: of one process with all blocks.
    """
    device, facts, size = torch.device("cpu"), plan.facts, plan.config.batch_size
    source = torch.Generator().manual_seed(0)
    images = torch.randn(size, facts.channels, facts.height, facts.width, generator=source)
    x = images.to(DTYPES[plan.config.dtype]).contiguous(memory_format=torch.channels_last)
    batch = Batch(0, 0, True, x, torch.randint(facts.classes, (size,), generator=source))
    kept, blocks = [], plan.method.blocks
    for stage in build_stages(plan, device, Metrics(blocks), Ledger(blocks), Timeline(), Replicas()).values():
        if plan.config.guess == "end_to_end":
            found, x = kept_by_graph(stage.block, x)
        else:
            found, batch = kept_by_stage(stage, batch)
        kept.append(found)
    return kept


def kept_by_stage(stage: Stage, batch: Batch) -> tuple[int, Batch]:
    """Bytes that a block keeps of a training batch until its scalars arrive, and the batch for the block above, if any."""
    graph, sent = Graph(), []
    with graph.watch():
        stage.train(batch, sent.append, _nowhere)
    tensors = graph.tensors
    for entry in stage.in_flight:
        tensors += entry.guess.values() if isinstance(entry.guess, dict) else [entry.guess] * (entry.guess is not None)
        tensors += [] if entry.output is None else [entry.output]
        tensors += [] if entry.weights in (None, stage.block) else entry.weights.parameters()
    return storage_bytes(tensors, [*stage.block.parameters(), *stage.block.buffers()]), (sent or [batch])[0]


def kept_by_graph(block: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Bytes that backpropagation keeps of a block until the gradient comes, and the block's output."""
    graph = Graph()
    with graph.watch():
        y = block(x)
    return storage_bytes([*graph.tensors, y], [*block.parameters(), *block.buffers()]), y.detach()


def _nowhere(feedback: Feedback) -> None:
    pass
