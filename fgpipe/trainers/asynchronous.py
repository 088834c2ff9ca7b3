"""`guess=end_to_end schedule=async_1f1b`: backpropagation through a pipeline that does not drain between batches.

Asynchronous 1F1B of PipeDream (Harlap et al. 2018; Narayanan et al. 2019): a block makes the backward pass of a batch
with the weights of its forward pass, while it has made other updates since. With `stash=two` it is 2BW (Narayanan et
al. 2021): the batch goes in microbatches, the weights change once for all of them, and every block's gradient is that
of the weights one update ago. One gradient, as large as the activation, comes back from block to block.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.config.rng import drawing
from fgpipe.gradients.optim import Trained, trainable
from fgpipe.gradients.reverse import gradients
from fgpipe.models.net import input_for, may_draw
from fgpipe.observe.events import Learnt, Worked
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import Precision
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.rounding import Rounding
from fgpipe.trainers.stash import Stash, TwoVersions
from fgpipe.trainers.step import Given, Message
from fgpipe.wire.batch import Batch, rounded
from fgpipe.wire.gradients import Gradient


@dataclass(eq=False)
class Stashed:
    """Everything that a block keeps of a batch, or a part of it, until its gradient comes."""

    batch: int
    drain: bool
    version: int
    """Updates of the block that its weights have."""
    x: Tensor
    """Input, a leaf of the graph."""
    output: Tensor
    """With its graph."""
    weights: nn.Module
    """A list of the modules that ran the batch: the block and, of the last one, the classifier."""


class AsynchronousStage:
    """A block that descends the gradient of the last loss."""

    def __init__(self, plan: Plan, learner: Learner, device: torch.device) -> None:
        self.index, self.block, self.head = learner.index, learner.block, learner.head
        self._learner, self._device, self._parts = learner, device, plan.parts
        self._last, self._precision = self.index == plan.method.last, Precision.of(plan.config)
        self._seed, self._draws = plan.config.seed, may_draw(self.block)
        self._share = plan.topology.share
        self._optimizers = {"block": learner.optimizer}
        """Of what the last loss trains: the block and, of the last one, the classifier."""
        modules, window = nn.ModuleList([self.block]), plan.windows[self.index]
        if self._last and learner.head_optimizer is not None:
            self._optimizers["head"] = learner.head_optimizer
            modules.append(self.head)
        self._versions = TwoVersions(modules, plan.step) if plan.config.stash == "two" else None
        self._stash = self._versions or Stash(modules, window if window > 1 else 0)
        self._in_flight: deque[Stashed] = deque()
        self._version = plan.step
        shape = plan.config.share // plan.parts, *plan.forward.shapes[self.index]
        self._rounding = Rounding.of(self._precision, shape if self.index else (), device)
        self._sums: list[Tensor] = []
        """Gradients of the parts of a batch so far, summed."""
        self._judged: list[tuple[Tensor, Tensor, Tensor]] = []
        """Losses, logits and labels of these parts."""

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that the block has learnt, by block and name, when no batch is in flight."""
        older = None if self._versions is None else self._versions.older
        return {self.index: self._learner.trained({"older": older, "residual": self._rounding.memory})}

    @property
    def in_flight(self) -> tuple[Stashed, ...]:
        """Everything kept of each batch whose gradient has not come, oldest first."""
        return tuple(self._in_flight)

    def run(self, given: Given) -> Iterator[Message]:
        """Run a batch, or go back through the oldest one in flight with its gradient, and update.

        Yields:
            As early as it is complete: of a batch the output for the block above, or from the last block the gradient
            for the one below, and findings; of a gradient, the one for the block below; and the events of the work.
        """
        if isinstance(given, Gradient):
            return self._back(given)
        assert isinstance(given, Batch), "nobody sends readings here"
        self._learner.mode(given.training)
        batch = given.to(self._device, self._precision.dtype)
        return self._train(batch) if batch.training else self._evaluate(batch)

    def _train(self, batch: Batch) -> Iterator[Message]:
        number = batch.id // self._parts
        weights: Any = self._stash.keep(number)
        x = batch.x.detach().requires_grad_(self.index > 0)
        with self._drawing(batch):
            y = weights[0](input_for(weights[0], x))
        findings = Findings(batch)
        findings.finite(y, self.index, f"activation of {batch.name}")
        yield Worked("forward")
        version = self._version if self._versions is None else self._versions.version_for(number)
        entry = Stashed(batch.id, batch.drain, version, x, y, weights)
        if not self._last:
            self._in_flight.append(entry)
            yield self._outgoing(batch, y)
            yield from self._observe(batch, y.detach(), findings)
            yield findings
            return
        losses, logits = weights[1].losses(input_for(weights[1], y), batch.labels)
        findings.finite(losses, self.index, f"loss of {batch.name}")
        self._score(batch, losses, logits, findings)
        yield Worked("loss")
        yield findings
        yield from self._descend(entry, losses.mean(), None)

    def _outgoing(self, batch: Batch, y: Tensor) -> Batch:
        """The batch for the block above, in the wire's format; apart from the one that came, whose buffer is used again."""
        return rounded(replace(batch, x=_apart(y.detach(), batch.x)), self._device, self._precision)

    def _drawing(self, batch: Batch) -> AbstractContextManager[None]:
        """Around a run of the block: its layers draw numbers of the batch's own, or none."""
        number = self._share(batch.id)
        return drawing(self._seed, "layers", self.index, number) if self._draws else nullcontext()

    def _observe(self, batch: Batch, y: Tensor, findings: Findings) -> Iterator[Message]:
        """Train the head that observes, if there is one."""
        if (optimizer := self._learner.head_optimizer) is None:
            return
        losses, logits = self.head.losses(input_for(self.head, y), batch.labels)
        found = gradients(losses.mean(), optimizer.parameters)
        optimizer.step(found, batch.id // self._parts)
        findings.score(self.index, True, losses, logits, batch.labels)
        yield Worked("head")
        yield Learnt(self.index, "head", found)

    def _score(self, batch: Batch, losses: Tensor, logits: Tensor, findings: Findings) -> None:
        """Add the score of a whole batch once its last part is there."""
        self._judged.append((losses.detach(), logits.detach(), batch.labels))
        if self._ends_batch(batch.id):
            findings.score(self.index, True, *(torch.cat(parts) for parts in zip(*self._judged, strict=True)))
            self._judged.clear()

    def _ends_batch(self, number: int) -> bool:
        return (number + 1) % self._parts == 0

    def _back(self, gradient: Gradient) -> Iterator[Message]:
        entry = self._in_flight.popleft()
        signal = gradient.x.to(self._device, self._precision.dtype)
        yield from self._descend(entry, entry.output, signal)

    def _descend(self, entry: Stashed, value: Tensor, signal: Tensor | None) -> Iterator[Message]:
        """Go back through a batch from `<signal, value>`, or a loss; and update, if it is the last part.

        Yields: the gradient for the block below, as soon as it is there.
        """
        below = [entry.x] * (self.index > 0)
        found = gradients(value, [*below, *trainable(entry.weights).values()], signal)
        yield Worked("backward")
        if below:
            findings, dx = Findings(), self._rounding(found[0])
            findings.finite(dx, self.index, f"gradient of batch {entry.batch}")
            yield findings
            x = dx if signal is None else _apart(dx, signal)
            yield Gradient(entry.batch, self.index - 1, x, entry.drain)
        yield from self._update(entry, found[len(below) :])

    def _update(self, entry: Stashed, found: Sequence[Tensor]) -> Iterator[Message]:
        if self._parts > 1:
            shares = [each / self._parts for each in found]
            self._sums = [a + b for a, b in zip(self._sums, shares, strict=True)] if self._sums else shares
            if not self._ends_batch(entry.batch):
                return
            found, self._sums = self._sums, []
        if self._versions is not None:
            self._versions.before_update()
        staleness = self._version - entry.version if self._versions is not None or not self._last else None
        rest, learnt = iter(found), []
        for part, optimizer in self._optimizers.items():
            own = list(islice(rest, len(optimizer.parameters)))
            optimizer.step(own, entry.batch // self._parts)
            learnt.append(Learnt(self.index, part, own, staleness if part == "block" else None))
        self._version += 1
        yield Worked("update")
        yield from learnt

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Iterator[Message]:
        y = self.block(input_for(self.block, batch.x))
        findings = Findings(batch)
        findings.finite(y, self.index, f"activation of {batch.name}")
        if not self._last:
            yield self._outgoing(batch, y)
        if self.head is not None:
            losses, logits = self.head.losses(input_for(self.head, y), batch.labels)
            findings.finite(losses, self.index, f"loss of {batch.name}")
            findings.score(self.index, False, losses, logits, batch.labels)
        yield findings


def _apart(x: Tensor, given: Tensor) -> Tensor:
    """`x`, or a copy if it lies in what the block was given, whose buffer is used again."""
    return x.clone() if x.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() else x
