"""`guess=end_to_end`: backpropagation with `torch.distributed.pipelining`, on the same split, in the same processes.

Every process is one stage of the pipeline. Activations go up and gradients come back, one microbatch at a time; batch
norm sees one microbatch. Shapes are given in advance, so PyTorch never infers them by sending pickled objects.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble

from fgpipe.config.rng import drawing
from fgpipe.gradients.optim import Optimizer, Trained
from fgpipe.gradients.reverse import gradients
from fgpipe.models.net import input_for, may_draw
from fgpipe.observe.events import Learnt
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import Precision
from fgpipe.plan.topology import Topology
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.packing import Packed, Rounded, Sending, Unpacked, floats_of
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.rounding import Rounding
from fgpipe.trainers.step import Given, Message
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import unwire, wire

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "zero_bubble": ScheduleInterleavedZeroBubble}
"""`zero_bubble` is ZB1P (Qi et al. 2024): with one stage in each process, 1F1B that computes the gradients of the
weights apart from those of the inputs, and late. PyTorch's ZBV and DualPipeV want two stages in each process, which are
not neighbours."""


class Part(nn.Module):
    """The blocks of one process, from and to what crosses a link: NHWC views, which are contiguous, on `host`.

    Between blocks, in a process and across a link, activations and their gradients are rounded as `precision` says.
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
        """Head of the last process; used by its loss, and here so that its gradients are scaled with the others."""
        self._device, self._host, self._keep, self._copy = device, host, keep_outputs, copy
        self._precision = precision
        self.roundings: Sequence[Rounding] = ()
        """Of the gradients at each block's input, with 8 bits."""
        self.arrives = torch.Size()
        """Shape of what a link brings, with 8 bits: `[B, H, W, C]`, or `[B, ..., C]`."""
        self._phases, self.at = phases, (0, 0)
        """`at`: the batch and microbatch that come next."""
        self.drawing: Callable[[int], AbstractContextManager[None]] = lambda j: nullcontext()
        """Goes around a training pass of the j-th block here, whose layers draw numbers of their own, or none."""
        self.outputs: list[list[Tensor]] = []
        """Outputs of each block, by microbatch, detached, if they are to be kept."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._device)
        if self.arrives:
            x = Unpacked.apply(x, self.arrives)
        x, outputs = unwire(x), []
        for j, phase in enumerate(self._phases):
            with phase("forward", *self.at), self.drawing(j):
                y, x = self.block(j, x)
            outputs.append(y.detach())
        if self._keep:
            self.outputs.append(outputs)
        sent = wire(x).contiguous()
        if self._precision.int8 and self.classifier is None:
            sent = Packed.apply(sent)
        sent = sent.to(self._host)
        return sent.clone() if self._copy else sent

    def block(self, j: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the j-th block here, and what the next one gets of it, or the classifier."""
        if self.roundings and x.requires_grad:
            x = Sending.apply(x, self.roundings[j])
        y = self.blocks[j](input_for(self.blocks[j], x.to(self._precision.dtype)))
        ends = self.classifier is not None and j == len(self.blocks) - 1
        if ends:
            return y, y
        return y, Rounded.apply(y, self._precision) if self._precision.int8 else y.to(self._precision.wire)


class ObservedStage(PipelineStage):
    """Counts what it sends, activations upwards and gradients downwards, and times its passes."""

    batch = 0
    """The batch under way."""

    def __init__(
        self,
        part: Part,
        place: tuple[int, int, torch.device],
        examples: Sequence[Tensor],
        topology: Topology,
        ledger: Ledger,
        phases: Phases,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Args: phases: of the backward passes, which all blocks here make as one; they count as the first block's."""
        super().__init__(part, *place, examples[0], examples[1], group=group)
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


class PipelinedStep:
    """The blocks of this process, trained together on the last block's loss.

    Args:
        host: where the tensors that cross a link live.
        observers: count what `torch.distributed.pipelining` sends, and time its passes.
        group: of the processes of the pipeline, in its order; None is the default group.
    """

    def __init__(
        self,
        plan: Plan,
        learners: Mapping[int, Learner],
        device: torch.device,
        host: torch.device,
        observers: Observers,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        topology, config, precision = plan.topology, plan.config, Precision.of(plan.config)
        self.index, self._learners, self._device = topology.local[0], list(learners.values()), device
        last = self._learners[-1]
        self._is_first, self._is_last = self.index == 0, last.index == plan.method.last
        self._classifier = last.head if self._is_last else None
        zero_bubble = config.schedule == "zero_bubble"
        self._phases = [Phases.of(plan, each.index, observers.timeline, device) for each in self._learners]
        self._part = Part(
            [each.block for each in self._learners],
            self._classifier,
            device,
            host,
            keep_outputs=any(each.head is not None and each.head is not self._classifier for each in self._learners),
            copy=zero_bubble,
            phases=self._phases,
            precision=precision,
        )
        shapes = plan.forward.shapes[self.index], plan.forward.shapes[last.index + 1]
        sizes = [(config.share // config.microbatches, *shape) for shape in shapes]
        dtypes = [precision.dtype if ends else precision.wire for ends in (self._is_first, self._is_last)]
        examples = [
            wire(torch.empty(size, dtype=dtype, device=host)).contiguous().requires_grad_()
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        self._roundings = [
            Rounding.of(precision, (sizes[0][0], *plan.forward.shapes[j]) if j else (), device) for j in topology.local
        ]
        if precision.int8:
            self._part.roundings = self._roundings
            links = [not self._is_first, not self._is_last]
            self._part.arrives = examples[0].shape if links[0] else torch.Size()
            examples = [
                torch.empty(floats_of(each.shape), device=host).requires_grad_() if packed else each
                for each, packed in zip(examples, links, strict=True)
            ]
        examples[0].requires_grad_(not self._is_first)
        place = (topology.position, len(topology.pipeline), host)
        self._stage = stage = ObservedStage(
            self._part,
            place,
            examples,
            topology,
            observers.ledger,
            Phases.of_backward(plan, observers.timeline, device),
            group,
        )
        loss = self._loss if self._is_last else _no_loss
        stages = [stage] if zero_bubble else stage  # it may take several
        self._schedule = SCHEDULES[config.schedule](stages, n_microbatches=config.microbatches, loss_fn=loss)
        self._judged: list[tuple[Tensor, Tensor]] = []
        seed, draw = config.seed, [may_draw(each.block) for each in self._learners]

        def numbered(j: int) -> AbstractContextManager[None]:
            batch, part = self._part.at
            names = self._learners[j].index, topology.share(batch), part
            return drawing(seed, "layers", *names) if draw[j] else nullcontext()

        self._part.drawing = numbered

    @staticmethod
    def placeholder(samples: int) -> tuple[int, int]:
        """The shape of a training batch on our links, which carry labels alone: its activation goes another way."""
        return samples, 0

    def _loss(self, y: Tensor, labels: Tensor) -> Tensor:
        with self._phases[-1]("loss", *self._part.at):
            classifier = self._learners[-1].head
            x = input_for(classifier, unwire(y).to(self._device))
            losses, logits = classifier.losses(x, labels.to(self._device))
        self._judged.append((losses.detach(), logits.detach()))
        return losses.mean()

    def run(self, given: Given) -> Iterator[Message]:
        """Train or test on a batch; yields labels, or in tests the activation too, for the process above, and events."""
        assert isinstance(given, Batch), "nobody sends readings here"
        for each in self._learners:
            each.mode(given.training)
        return self._train(given) if given.training else self._evaluate(given)

    def _train(self, batch: Batch) -> Iterator[Message]:
        if not self._is_last:
            yield replace(batch, x=batch.x.new_empty(self.placeholder(len(batch.labels))))
        self._stage.batch = batch.id
        self._schedule.step(
            *([wire(batch.x)] if self._is_first else []),
            target=batch.labels if self._is_last else None,
            return_outputs=False,
        )
        labels, findings = batch.labels.to(self._device), Findings()
        for phase, each in zip(self._phases, self._learners, strict=True):
            yield from self._update(each.index, "block", each.optimizer, phase, batch.id)
        if self._is_last and each.head_optimizer is not None:
            yield from self._update(each.index, "head", each.head_optimizer, phase, batch.id)
            losses, logits = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
            self._judged.clear()
            findings.finite(losses, each.index, f"loss of {batch.name}")
            findings.score(each.index, True, losses, logits, labels)
        yield from self._observe(labels, batch.id, findings)
        yield findings

    def _update(self, block: int, part: str, optimizer: Optimizer, phase: Phases, batch: int) -> Iterator[Message]:
        with phase("update", batch):
            pairs = [(parameter, parameter.grad) for parameter in optimizer.parameters]
            found = [torch.zeros_like(like) if grad is None else grad for like, grad in pairs]
            optimizer.step(found, batch)
        for parameter in optimizer.parameters:
            parameter.grad = None
        yield Learnt(block, part, found)

    def _observe(self, labels: Tensor, batch: int, findings: Findings) -> Iterator[Message]:
        """Train the observing heads on the detached outputs of the whole batch."""
        if not self._part.outputs:
            return
        outputs = [torch.cat(parts) for parts in zip(*self._part.outputs, strict=True)]
        self._part.outputs.clear()
        for y, each in zip(outputs, self._learners, strict=True):
            if each.head_optimizer is not None and each.head is not self._classifier:
                losses, logits = each.head.losses(input_for(each.head, y), labels)
                found = gradients(losses.mean(), each.head_optimizer.parameters)
                each.head_optimizer.step(found, batch)
                yield Learnt(each.index, "head", found)
                findings.score(each.index, True, losses, logits, labels)

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Iterator[Message]:
        x, labels = batch.x.to(self._device), batch.labels.to(self._device)
        findings = Findings()
        for position, each in enumerate(self._learners):
            y, x = self._part.block(position, x)
            if each.head is not None:
                losses, logits = each.head.losses(input_for(each.head, y), labels)
                findings.score(each.index, False, losses, logits, labels)
        yield findings
        if not self._is_last:
            yield replace(batch, x=x)

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that each block has learnt, by block and name."""
        pairs = zip(self._learners, self._roundings, strict=True)
        return {each.index: each.trained({"residual": rounding.memory}) for each, rounding in pairs}


def _no_loss(y: Tensor, labels: Tensor) -> Tensor:
    raise AssertionError("only the last stage has a loss")
