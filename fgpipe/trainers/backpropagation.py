"""`guess=end_to_end`: backpropagation with `torch.distributed.pipelining`, on the same split, in the same processes.

Every process is one stage of the pipeline. Activations go up and gradients come back, one microbatch at a time; batch
norm sees one microbatch. Shapes are given in advance, so PyTorch never infers them by sending pickled objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble

from fgpipe.gradients.optim import Optimizer, Trained, parts
from fgpipe.gradients.reverse import gradients
from fgpipe.models.net import input_for
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.precision import Precision
from fgpipe.plan.topology import Topology
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.worker import Source, never
from fgpipe.wire.links.base import Batch
from fgpipe.wire.links.distributed import DistributedLink, Receiver, unwire, wire

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "zero_bubble": ScheduleInterleavedZeroBubble}
"""`zero_bubble` is ZB1P (Qi et al. 2024): with one stage in each process, 1F1B that computes the gradients of the
weights apart from those of the inputs, and late. PyTorch's ZBV and DualPipeV want two stages in each process, which are
not neighbours."""


class Part(nn.Module):
    """The blocks of one process, from and to what crosses a link: NHWC views, which are contiguous, on `host`.

    Between blocks, in a process and across a link, activations and their gradients are rounded to `precision.wire`.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        classifier: nn.Module | None,
        device: torch.device,
        host: torch.device,
        keep_outputs: bool,
        copy: bool,
        phases: Sequence[Phases],
        precision: Precision,
    ) -> None:
        """Args:
        copy: return a tensor of its own, not a view; `zero_bubble` detaches it in place.
        phases: one of each block.
        """
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier
        """Of the last process; used by its loss, and here so that its gradients are scaled with the others."""
        self._device, self._host, self._keep, self._copy = device, host, keep_outputs, copy
        self._precision = precision
        self._phases, self.at = phases, (0, 0)
        """`at`: the batch and microbatch that come next."""
        self.outputs: list[list[Tensor]] = []
        """Of each microbatch, each block's output, detached, if they are to be kept."""

    def forward(self, x: Tensor) -> Tensor:
        x, outputs = unwire(x.to(self._device)), []
        for j, phase in enumerate(self._phases):
            with phase("forward", *self.at):
                y, x = self.block(j, x)
            outputs.append(y.detach())
        if self._keep:
            self.outputs.append(outputs)
        sent = wire(x).contiguous().to(self._host)
        return sent.clone() if self._copy else sent

    def block(self, j: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the j-th block here, and what the next one gets of it, or the classifier."""
        y = self.blocks[j](input_for(self.blocks[j], x.to(self._precision.dtype)))
        ends = self.classifier is not None and j == len(self.blocks) - 1
        return y, y if ends else y.to(self._precision.wire)


class ObservedStage(PipelineStage):
    """Counts what it sends, activations upwards and gradients downwards, and times its passes."""

    batch = 0
    """The batch under way."""

    def __init__(
        self,
        part: Part,
        *arguments: Any,
        topology: Topology,
        ledger: Ledger,
        phases: Phases,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Args: phases: of the backward passes, which all blocks here make as one; they count as the first block's."""
        super().__init__(part, *arguments, group=group)
        self._part, self._local, self._ledger, self._phase = part, topology.local, ledger, phases

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        self._part.at = (self.batch, fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, *arguments, **options)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> None:
        with self._phase("backward", self.batch, bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, *arguments, **options)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> None:
        with self._phase("weights", self.batch, bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, *arguments, **options)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        operations = super().get_fwd_send_ops(fwd_chunk_id)
        for each in operations:
            self._ledger.count(self._local[-1], self._local[-1] + 1, "activations", each.tensor.nbytes)
        return operations

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        operations = super().get_bwd_send_ops(bwd_chunk_id)
        for each in operations:
            self._ledger.count(self._local[0], self._local[0] - 1, "gradients", each.tensor.nbytes)
        return operations


class PipelinedBackpropagation:
    """Trains the blocks of this process on the last block's loss.

    Args:
        blocks, heads: of this process; a head is the classifier (last block), an observer, or None.
        shapes: of what enters and what leaves this process, without the batch.
        schedule: one of `SCHEDULES`.
        microbatches: per batch, a divisor of `batch_size`.
        receiver, link: bring test batches and labels from the process below, and take them to the one above.
        precision: without autocast.
        host: where what crosses a link lives.
        make_optimizer: from a block's index and modules of it to an optimizer of their parameters.
        phases: one of each block.
        backward: of the backward passes; see `ObservedStage`.
        group: of the processes of the pipeline, in its order; None is the default group.
    """

    def __init__(
        self,
        topology: Topology,
        blocks: list[nn.Module],
        heads: list[Any],
        *,
        shapes: tuple[torch.Size, torch.Size],
        schedule: str,
        microbatches: int,
        batch_size: int,
        precision: Precision,
        device: torch.device,
        host: torch.device,
        receiver: Receiver | None,
        link: DistributedLink | None,
        make_optimizer: Callable[[int, list[nn.Module]], Optimizer],
        metrics: Metrics,
        ledger: Ledger,
        phases: list[Phases],
        backward: Phases,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._topology, self._heads, self._metrics, self._device = topology, heads, metrics, device
        self._receiver, self._link = receiver, link
        self._placeholder = (batch_size, 0)
        self._classifier = heads[-1] if link is None else None
        self._observers = [None if head is self._classifier else head for head in heads]
        zero_bubble = schedule == "zero_bubble"
        self._phases = phases
        self._part = Part(
            blocks,
            self._classifier,
            device,
            host,
            keep_outputs=any(self._observers),
            copy=zero_bubble,
            phases=phases,
            precision=precision,
        )
        self._optimizers = [make_optimizer(j, [block]) for j, block in zip(topology.local, blocks, strict=True)]
        if self._classifier is not None:
            self._optimizers.append(make_optimizer(topology.local[-1], [self._classifier]))
        self._optimizer_phases = [*phases, phases[-1]][: len(self._optimizers)]  # the classifier is the last block's
        self._observer_optimizers = [
            head and make_optimizer(j, [head]) for j, head in zip(topology.local, self._observers, strict=True)
        ]
        sizes = [(batch_size // microbatches, *shape) for shape in shapes]
        dtypes = (
            precision.dtype if receiver is None else precision.wire,
            precision.dtype if link is None else precision.wire,
        )
        examples = [
            wire(torch.empty(size, dtype=dtype, device=host)).contiguous().requires_grad_()
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        if receiver is None:
            examples[0].requires_grad_(False)
        place = (topology.position, len(topology.pipeline), host)
        self._stage = stage = ObservedStage(
            self._part, *place, *examples, topology=topology, ledger=ledger, phases=backward, group=group
        )
        loss = self._loss if link is None else _no_loss
        stages = [stage] if zero_bubble else stage  # it may take several
        self._schedule = SCHEDULES[schedule](stages, n_microbatches=microbatches, loss_fn=loss)
        self._judged: list[tuple[Tensor, Tensor]] = []

    def _loss(self, y: Tensor, labels: Tensor) -> Tensor:
        with self._phases[-1]("loss", *self._part.at):
            x = input_for(self._classifier, unwire(y).to(self._device))
            losses, logits = self._classifier.losses(x, labels.to(self._device))
        self._judged.append((losses.detach(), logits.detach()))
        return losses.mean()

    def train(
        self,
        epoch: int,
        batches: int,
        source: Source | None,
        indices: range | None = None,
        stop: Callable[[], bool] = never,
    ) -> int:
        """Train for one epoch or a part of it, as `Worker.train`; the pipeline is drained after every batch anyway."""
        self._mode(training=True)
        for index in indices or range(batches):
            batch = self._next(epoch * batches + index, epoch, index, True, source, stop)
            self._metrics.last_batch = self._stage.batch = batch.id
            self._schedule.step(
                *([wire(batch.x)] if self._receiver is None else []),
                target=batch.labels if self._link is None else None,
                return_outputs=False,
            )
            for phase, optimizer in zip(self._optimizer_phases, self._optimizers, strict=True):
                with phase("update", batch.id):
                    found = ((parameter, parameter.grad) for parameter in optimizer.parameters)
                    optimizer.step([torch.zeros_like(like) if grad is None else grad for like, grad in found], batch.id)
                for parameter in optimizer.parameters:
                    parameter.grad = None
            self._record(batch.labels)
            self._observe(batch.labels, batch.id)
            if batch.drain:
                break
        return index + 1

    def trained(self) -> dict[int, dict[str, Trained]]:
        """As `Worker.trained`."""
        blocks, optimizers = list(self._part.blocks), self._optimizers[: len(self._part.blocks)]
        head_optimizers = list(self._observer_optimizers)
        if self._classifier is not None:
            head_optimizers[-1] = self._optimizers[-1]
        columns = zip(blocks, optimizers, self._heads, head_optimizers, strict=True)
        return {j: parts(*column) for j, column in zip(self._topology.local, columns, strict=True)}

    def _next(
        self,
        batch: int,
        epoch: int,
        index: int,
        training: bool,
        source: Source | None,
        stop: Callable[[], bool] = never,
    ) -> Batch:
        """The batch: from the data, or its labels from the process below, already on their way to the one above.

        In training x is a placeholder everywhere but in the first process: `torch.distributed.pipelining` carries it.
        """
        if self._receiver is None:
            assert source is not None, "the process of block 0 has the images"
            got = Batch(batch, epoch, training, *source(epoch, index), drain=stop())
        else:
            got = self._receiver.receive(self._placeholder if training else None)
        if training and self._link is not None:
            self._link.send(replace(got, x=got.x.new_empty(self._placeholder)))
        return got

    def _record(self, labels: Tensor) -> None:
        if self._judged:
            losses, logits = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
            self._metrics.record(self._topology.local[-1], True, losses, logits, labels.to(self._device))
            self._judged.clear()

    def _observe(self, labels: Tensor, batch: int) -> None:
        """Train the observing heads on the detached outputs of the whole batch."""
        if not self._part.outputs:
            return
        labels = labels.to(self._device)
        outputs = [torch.cat(parts) for parts in zip(*self._part.outputs, strict=True)]
        self._part.outputs.clear()
        for j, y, head, optimizer in zip(
            self._topology.local, outputs, self._observers, self._observer_optimizers, strict=True
        ):
            if head is not None:
                losses, logits = head.losses(input_for(head, y), labels)
                optimizer.step(gradients(losses.mean(), optimizer.parameters), batch)
                self._metrics.record(j, True, losses, logits, labels)

    @torch.no_grad()
    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None:
        """Send the test set through, as `Worker.evaluate`."""
        self._mode(training=False)
        for index in range(batches):
            batch = self._next(index, epoch, index, False, source)
            x, labels = batch.x.to(self._device), batch.labels.to(self._device)
            for position, (j, head) in enumerate(zip(self._topology.local, self._heads, strict=True)):
                y, x = self._part.block(position, x)
                if head is not None:
                    self._metrics.record(j, False, *head.losses(input_for(head, y), labels), labels)
            if self._link is not None:
                self._link.send(replace(batch, x=x))

    def _mode(self, training: bool) -> None:
        for module in (self._part, *self._heads):
            if module is not None:
                module.train(training)

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        if self._link is not None:
            self._link.close()


def _no_loss(y: Tensor, labels: Tensor) -> Tensor:
    raise AssertionError("only the last stage has a loss")
