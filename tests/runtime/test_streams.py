"""The order that streams of a GPU keep, with streams that compute nothing and only note what has been waited for.

A stream knows the work that was queued on it, and on others before an event that it waited for. A block may touch a batch
only where its stream knows the work that made it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.gradients.dual import Tangent
from fgpipe.plan.plan import DataFacts
from fgpipe.trainers.build import local_trainer, streams_of
from fgpipe.trainers.step import Step
from fgpipe.wire.batch import Batch
from fgpipe.wire.streams import GpuStreams, Streams

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


class NotedEvent:
    """Everything that its stream knew when it was recorded."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.waited = set(known), False

    def synchronize(self) -> None:
        self.waited = True


class NotedStream:
    def __init__(self) -> None:
        self.known, self.recorded = set[str](), list[NotedEvent]()

    def record_event(self) -> NotedEvent:
        self.recorded.append(NotedEvent(self.known))
        return self.recorded[-1]

    def wait_event(self, event: NotedEvent) -> None:
        self.known |= event.known

    def wait_stream(self, other: "NotedStream") -> None:
        self.known |= other.known


class Noted:
    """Stands for `torch.cuda`."""

    def __init__(self) -> None:
        self.default = self.current = NotedStream()
        self.made: list[NotedStream] = []
        self.kept: list[tuple[int, NotedStream]] = []
        self.synchronized = 0

    def Stream(self, device: torch.device) -> NotedStream:
        self.made.append(NotedStream())
        return self.made[-1]

    def current_stream(self, device: torch.device) -> NotedStream:
        return self.current

    @contextmanager
    def stream(self, stream: NotedStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def synchronize(self, device: torch.device) -> None:
        self.synchronized += 1

    def keep(self, tensor: Tensor, stream: NotedStream) -> None:
        self.kept.append((id(tensor), stream))

    def works(self, what: str) -> None:
        """Queue work on the current stream."""
        self.current.known.add(what)


def test_a_batch_from_the_host_is_waited_for_where_it_is_used() -> None:
    gpu = Noted()
    streams = GpuStreams(ELSEWHERE, [0, 1], gpu, gpu.keep)
    first, second = (
        Batch(j, 0, True, torch.zeros(2, 3), torch.arange(2), Tangent((4,), torch.zeros(2, 3))) for j in (0, 1)
    )
    with streams.work(0):
        one = streams.brought(0, first, torch.float64)
        block = gpu.current
    assert one.x.device == one.labels.device == ELSEWHERE and one.x.dtype == torch.float64 and one.ready is None
    assert one.host_labels is first.labels
    assert [stream for _, stream in gpu.kept] == [block] * 3  # activation, labels, lanes
    with streams.work(1):
        streams.brought(1, second, torch.float64)
        assert gpu.current is not block is not gpu.default


def test_the_buffer_of_a_batch_is_read_before_it_can_be_written_again() -> None:
    """`Receiver` fills it once the next batch is taken."""
    gpu = Noted()
    streams = GpuStreams(ELSEWHERE, [], gpu, gpu.keep)
    for number in range(2):
        streams.brought(0, Batch(number, 0, True, torch.zeros(2, 3), torch.arange(2)), torch.float32)
    copies = gpu.made[0]
    assert [event.waited for event in copies.recorded] == [True, False]


def test_a_copy_to_the_host_follows_the_work_that_made_it() -> None:
    gpu = Noted()
    streams = GpuStreams(CPU, [3], gpu, gpu.keep)
    with streams.work(3):
        gpu.works("output")
        host, copied = streams.to_host(torch.arange(3.0))
        assert "output" in copied.known and not gpu.default.known
    assert host.tolist() == [0, 1, 2]


class Watching(Step):
    """A step that notes its work on the current stream, and what the stream knew of the work before it."""

    def __init__(self, step: Step, gpu: Noted, missing: list[str]) -> None:
        self.index, self._step, self._gpu, self._missing = step.index, step, gpu, missing

    def run(self, given: Any) -> Iterator[Any]:
        if isinstance(given, Batch) and self.index:
            made = f"{self.index - 1} {given.training} {given.id}"
            if made not in self._gpu.current.known:
                self._missing.append(made)
        for message in self._step.run(given):
            if isinstance(message, Batch):
                self._gpu.works(f"{self.index} {message.training} {message.id}")
            yield message

    def trained(self) -> Any:
        return self._step.trained()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("keys", [("target=local",), ("target=global", "scope=block")], ids=" ".join)
def test_blocks_of_one_process(keys: tuple[str, ...], apart: bool) -> None:
    """Each on a stream of its own, none begins on a batch before the block below is through; the weights are the same."""
    config = compose_config(["batch_size=8", "model.width=0.0625", "window=auto", *keys])
    facts = DataFacts(train_batches=4, test_batches=1, classes=10, channels=3, height=16, width=16)
    data = torch.randn(4, 8, 3, 16, 16), torch.arange(32).view(4, 8) % 10
    plain, watched, gpu, missing = local_trainer(config, facts), local_trainer(config, facts), Noted(), list[str]()
    watched.post.streams = GpuStreams(CPU, list(watched.steps) if apart else [], gpu, gpu.keep)
    watched.steps = {j: Watching(step, gpu, missing) for j, step in watched.steps.items()}
    for trainer in (plain, watched):
        trainer.train(0, 4, lambda epoch, index: (data[0][index], data[1][index]))
        trainer.evaluate(0, 1, lambda epoch, index: (data[0][index], data[1][index]))
    assert not missing and gpu.synchronized == 2
    assert bool(gpu.default.known) != apart  # where the work was queued
    ours, theirs = (
        [p for parts in each.trained().values() for p in parts["block"].module.parameters()]
        for each in (plain, watched)
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_streams_without_a_gpu() -> None:
    config = replace(compose_config([]), streams=True)
    assert type(streams_of(replace(config, streams=False), CPU, [0])) is Streams
    with pytest.raises(UserError, match="^streams=true: allowed: false on device=cpu"):
        streams_of(config, CPU, [0])
