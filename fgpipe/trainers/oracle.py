"""`tangents=oracle`: the same training by two backward passes in one process, in lock-step (paper, A.3).

It computes what forward mode computes, for accuracy studies at a fraction of the time, and the one thing that
forward mode does not: the exact projection of every sample (activity space, scope sample). Tangents are linear, so
the readings of coded lanes are the sums of the exact scalars with their signs: no lane is needed to know them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import Memory, redraw
from fgpipe.gradients.method import Method
from fgpipe.gradients.optim import Optimizer, Trained, in_order, parts, trainable
from fgpipe.gradients.oracle import estimate
from fgpipe.gradients.probes import Decoder, Lanes
from fgpipe.models.net import input_for
from fgpipe.observe.metrics import Metrics
from fgpipe.trainers.finite import check_finite
from fgpipe.trainers.worker import Source, never


class OracleTrainer:
    """Trains blocks and heads with `gradients.oracle`; arguments as for `Stage`, one list entry for each block."""

    def __init__(
        self,
        blocks: list[nn.Module],
        heads: list[Any],
        guess_heads: list[Any],
        *,
        method: Method,
        lanes: Lanes,
        make_optimizer: Callable[[list[nn.Module]], Optimizer],
        metrics: Metrics,
        seed: int,
        cosine: int | None = None,
    ) -> None:
        """Args: cosine: every how many steps the alignment of guesses and global target is measured; None: never."""
        self.blocks, self.heads, self._guess_heads = blocks, heads, guess_heads
        self._method, self._metrics, self._seed, self._cosine = method, metrics, seed, cosine
        self._optimizers = [make_optimizer([block]) for block in blocks]
        self._head_optimizers = [make_optimizer([head]) if head is not None else None for head in heads]
        like = next(parameter for block in blocks for parameter in block.parameters())
        self._device = like.device
        self.decoders = [Decoder.of(lanes, j, like) for j in range(method.blocks)]
        self.step_rules = [StepRule.of(method.decode, method.step, probes, like) for probes in lanes.counts]
        self.memories = [
            Memory(method.guess.remember(trainable(block)) if method.projects(j) else {})
            for j, block in enumerate(blocks)
        ]

    def train(
        self,
        epoch: int,
        batches: int,
        source: Source | None,
        indices: range | None = None,
        stop: Callable[[], bool] = never,
    ) -> int:
        """Train for one epoch or a part of it, as `Worker.train`."""
        self._mode(training=True)
        for index in indices or range(batches):
            self._step(epoch, index, epoch * batches + index, source)
            if stop():
                break
        return index + 1

    def _step(self, epoch: int, index: int, batch: int, source: Source | None) -> None:
        assert source is not None
        self._metrics.last_batch = batch
        images, labels = (tensor.to(self._device) for tensor in source(epoch, index))
        for j, head in enumerate(self._guess_heads):
            if head is not None:
                redraw(head, self._method.guess, self._seed, j, batch)
        found = estimate(
            self._method, self.blocks, self.heads, self._guess_heads, images, labels,
            seed=self._seed, batch=batch, transmit=partial(self._transmit, batch),
            step=self.step_rules.__getitem__, memory=lambda block: self.memories[block].tensors,
            cosine=self._cosine is not None and batch % self._cosine == 0,
        )  # fmt: skip
        if found.cosines is not None:
            self._metrics.record_cosines(batch, torch.stack(found.cosines).tolist())
        for j, losses in enumerate(found.losses):
            if losses is not None:
                check_finite(losses, j, f"loss of batch {batch}")
        for j, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            if memory := self.memories[j].tensors:
                self._method.guess.learn(memory, found.blocks[j])
            self._optimizers[j].step(in_order(block, found.blocks[j]), batch)
            if head is not None:
                self._head_optimizers[j].step(in_order(head, found.heads[j]), batch)
                self._metrics.record(j, True, found.losses[j], found.logits[j], labels)

    def _transmit(self, batch: int, scalars: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What the decoders make of the scalars when the lanes carry them."""
        received: dict[int, Tensor] = {}
        for decoder in self.decoders:
            if asking := decoder.asking:
                sent = torch.cat([scalars[j] for j in asking])
                received |= decoder.decode(batch, decoder.lanes.encode(decoder.target, batch, sent))
        return received

    @torch.no_grad()
    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None:
        """Run the test set, as `Worker.evaluate`."""
        self._mode(training=False)
        assert source is not None
        for index in range(batches):
            x, labels = (tensor.to(self._device) for tensor in source(epoch, index))
            for j, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
                x = block(input_for(block, x))
                if head is not None:
                    self._metrics.record(j, False, *head.losses(input_for(head, x), labels), labels)

    def trained(self) -> dict[int, dict[str, Trained]]:
        """As `Worker.trained`."""
        means = [
            rule.means | {"prediction": decoder.prediction, "guess": memory.or_none}
            for rule, decoder, memory in zip(self.step_rules, self.decoders, self.memories, strict=True)
        ]
        columns = zip(self.blocks, self._optimizers, self.heads, self._head_optimizers, means, strict=True)
        return {j: parts(*column) for j, column in enumerate(columns)}

    def _mode(self, training: bool) -> None:
        for module in (*self.blocks, *self.heads):
            if module is not None:
                module.train(training)

    def close(self) -> None:
        pass
