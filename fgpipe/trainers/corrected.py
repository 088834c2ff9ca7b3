"""`target=local correct.every=K`: local learning that the true gradient corrects, rarely.

A block descends the gradient of its own loss at once, and waits for nobody. On every K-th batch it does not: the
gradient of the last loss comes down from block to block, late, by the backward pass of asynchronous 1F1B with the
weights of the batch's forward pass, and the block descends that, scaled to the running norm of its local gradients.
Here it is not scalars alone that come back.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fgpipe.gradients.optim import Trained, trainable
from fgpipe.gradients.reverse import gradients
from fgpipe.gradients.running import RunningMean
from fgpipe.models.net import input_for
from fgpipe.observe.events import Learnt, Worked
from fgpipe.plan.plan import Plan
from fgpipe.trainers.asynchronous import AsynchronousStage, Stashed
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch


class CorrectedStage(AsynchronousStage):
    """A block that learns by its own loss, and now and then by the last one."""

    def __init__(self, plan: Plan, learner: Learner, device: torch.device) -> None:
        super().__init__(plan, learner, device)
        self._method = plan.method
        like = torch.empty(0, dtype=self._precision.dtype, device=device)
        self._norm = None if self._last else RunningMean(1, like)
        """Norm of the local gradients, all tensors together; the last block's gradient is the true one."""

    def trained(self) -> dict[int, dict[str, Trained]]:
        memories = {"residual": self._rounding.memory, "norm": self._norm}
        return {self.index: self._learner.trained(memories)}

    def _train(self, batch: Batch) -> Iterator[Message]:
        return super()._train(batch) if self._method.asks(batch.id) else self._learn(batch)

    def _learn(self, batch: Batch) -> Iterator[Message]:
        """Descend the block's own loss, with its head."""
        with self._drawing(batch):
            y = self.block(input_for(self.block, batch.x))
        findings = Findings(batch)
        findings.finite(y, self.index, f"activation of {batch.name}")
        yield Worked("forward")
        if not self._last:
            yield self._outgoing(batch, y)
        losses, logits = self.head.losses(input_for(self.head, y), batch.labels)
        findings.finite(losses, self.index, f"loss of {batch.name}")
        findings.score(self.index, True, losses, logits, batch.labels)
        yield Worked("loss")
        yield findings
        own = list(trainable(self.block).values())
        found = gradients(losses.mean(), [*own, *trainable(self.head).values()])
        of_block, of_head = found[: len(own)], found[len(own) :]
        if self._norm is not None and own:
            self._norm.update(_norm(of_block).unsqueeze(0))
        self._learner.optimizer.step(of_block, batch.id)
        if (optimizer := self._learner.head_optimizer) is not None:
            optimizer.step(of_head, batch.id)
        self._version += 1
        yield Worked("update")
        yield Learnt(self.index, "block", of_block)
        yield Learnt(self.index, "head", of_head)

    def _update(self, entry: Stashed, found: Sequence[Tensor]) -> Iterator[Message]:
        if self._norm is None or not found:
            return super()._update(entry, found)
        tiny = torch.finfo(found[0].dtype).tiny
        factor = self._norm.value[0] / _norm(found).clamp_min(tiny)
        return super()._update(entry, [factor * each for each in found])


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all together, `[]`."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
