"""`tangents=oracle`: the same training by two backward passes in one process, in lock-step (paper, A.3).

It computes what forward mode computes, for accuracy studies at a fraction of the time, and the one thing that
forward mode does not: the exact projection of every sample (activity space, scope sample). Tangents are linear, so
the readings of coded lanes are the sums of the exact scalars with their signs: no lane is needed to know them.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import GuessMemory, redraw
from fgpipe.gradients.optim import Trained, in_order, trainable
from fgpipe.gradients.oracle import estimate
from fgpipe.gradients.probes import Decoder
from fgpipe.models.net import input_for
from fgpipe.models.twins import Twin
from fgpipe.observe.events import Aligned, Learnt
from fgpipe.plan.plan import Plan
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.step import Given, Message
from fgpipe.wire.batch import Batch


class OracleStep:
    """All blocks of a net, trained with `gradients.oracle`."""

    index = 0

    def __init__(self, plan: Plan, learners: Mapping[int, Learner], device: torch.device) -> None:
        self.learners = list(learners.values())
        self._method, self._seed, self._device = plan.method, plan.config.seed, device
        self._cosine = plan.config.observe.cosine
        like = next(parameter for each in self.learners for parameter in each.block.parameters())
        self.decoders = [Decoder.of(plan.lanes, j, like) for j in learners]
        self.step_rules = [StepRule.of(self._method.decode, self._method.step, n, like) for n in plan.lanes.counts]
        self.memories = [
            GuessMemory(self._method.guess.remember(trainable(each.block)) if self._method.projects(each.index) else {})
            for each in self.learners
        ]

    def run(self, given: Given) -> Iterator[Message]:
        """Train or test on a batch; yields findings and events."""
        assert isinstance(given, Batch), "nobody sends readings here"
        for each in self.learners:
            each.mode(given.training)
        return self._train(given) if given.training else self._evaluate(given)

    def _train(self, batch: Batch) -> Iterator[Message]:
        images, labels = batch.x.to(self._device), batch.labels.to(self._device)
        for each in self.learners:
            if self._method.copies(batch.id) and isinstance(each.guess_head, Twin):
                self._copy(each.index, each.guess_head)
            elif each.guess_head is not None and self._method.guesses_by_untrained_head:
                redraw(each.guess_head, self._method.guess, self._seed, each.index, batch.id)
        found = estimate(
            self._method,
            [each.block for each in self.learners],
            [each.head for each in self.learners],
            [each.guess_head for each in self.learners],
            images,
            labels,
            seed=self._seed,
            batch=batch.id,
            transmit=partial(self._transmit, batch.id),
            step=self.step_rules.__getitem__ if self._method.asks(batch.id) else self._recall,
            memory=lambda block: self.memories[block].tensors,
            cosine=self._cosine is not None and batch.id % self._cosine == 0,
        )
        findings = Findings()
        if found.cosines is not None:
            findings.tell(torch.stack(found.cosines), partial(Aligned, batch.id))
        for j, each in enumerate(self.learners):
            losses, logits = found.losses[j], found.logits[j]
            if losses is not None:
                findings.finite(losses, j, f"loss of {batch.name}")
            if each.head_optimizer is not None:
                assert losses is not None and logits is not None, "a head that learns has a loss"
                findings.score(j, True, losses, logits, labels)
        yield findings
        for j, each in enumerate(self.learners):
            if memory := self.memories[j].tensors:
                self._method.guess.learn(memory, found.blocks[j])
            estimates = in_order(each.block, found.blocks[j])
            each.optimizer.step(estimates, batch.id)
            yield Learnt(j, "block", estimates)
            if each.head_optimizer is not None:
                estimates = in_order(each.head, found.heads[j])
                each.head_optimizer.step(estimates, batch.id)
                yield Learnt(j, "head", estimates)
            if each.beside_optimizer is not None:
                estimates = in_order(each.guess_head, found.beside[j])
                each.beside_optimizer.step(estimates, batch.id)
                yield Learnt(j, "beside", estimates)

    @torch.no_grad()
    def _copy(self, block: int, twin: Twin) -> None:
        """Give the twin of a block the weights of the blocks above."""
        shape, sources = self._method.guess.twin, self._method.sources(block)
        assert shape is not None, "the block has a twin"
        above = Twin([shape.part(self.learners[k].block) for k in sources], self.learners[sources[-1]].head)
        for own, theirs in zip(twin.parameters(), above.parameters(), strict=True):
            own.copy_(theirs)

    def _recall(self, block: int) -> StepRule:
        return self.step_rules[block].recall

    def _transmit(self, batch: int, scalars: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The scalars as the decoders have them when lanes carry them."""
        if not self._method.asks(batch):
            return {j: torch.zeros_like(each) for j, each in scalars.items()}
        received: dict[int, Tensor] = {}
        for decoder in self.decoders:
            if asking := decoder.asking:
                sent = torch.cat([scalars[j] for j in asking])
                received |= decoder.decode(batch, decoder.lanes.encode(decoder.target, batch, sent))
        return received

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Iterator[Message]:
        x, labels = batch.x.to(self._device), batch.labels.to(self._device)
        findings = Findings()
        for j, each in enumerate(self.learners):
            x = each.block(input_for(each.block, x))
            if each.head is not None:
                losses, logits = each.head.losses(input_for(each.head, x), labels)
                findings.score(j, False, losses, logits, labels)
        yield findings

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that each block has learnt, by block and name."""
        memories: list[dict[str, nn.Module | None]] = [
            {**rule.means, "prediction": decoder.prediction, "guess": memory.or_none}
            for rule, decoder, memory in zip(self.step_rules, self.decoders, self.memories, strict=True)
        ]
        return {j: each.trained(memories[j]) for j, each in enumerate(self.learners)}
