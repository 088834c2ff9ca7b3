"""`tangents=oracle`: the same training by two backward passes in one process, in lock-step (paper, A.3).

It computes what forward mode computes, for accuracy studies at a fraction of the time, and the one thing that
forward mode does not: the exact projection of every sample (activity space, scope sample).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fgpipe.gradients.guess import redraw
from fgpipe.gradients.method import Method
from fgpipe.gradients.oracle import estimate
from fgpipe.observe.metrics import Metrics
from fgpipe.optim import Optimizer, in_order
from fgpipe.runtime.worker import Source


class OracleTrainer:
    """Trains blocks and heads with `gradients.oracle`; arguments as for `Stage`, one list entry for each block."""

    def __init__(
        self,
        blocks: list[nn.Module],
        heads: list[Any],
        guess_heads: list[Any],
        *,
        method: Method,
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
        self._device = next(blocks[0].parameters()).device

    def train(self, epoch: int, batches: int, source: Source | None) -> None:
        """Train for one epoch, as `Worker.train`."""
        self._mode(training=True)
        for index in range(batches):
            self._step(epoch, index, epoch * batches + index, source)

    def _step(self, epoch: int, index: int, batch: int, source: Source | None) -> None:
        assert source is not None
        images, labels = (tensor.to(self._device) for tensor in source(epoch, index))
        for j, head in enumerate(self._guess_heads):
            if head is not None:
                redraw(head, self._method.guess, self._seed, j, batch)
        found = estimate(
            self._method,
            self.blocks,
            self.heads,
            self._guess_heads,
            images,
            labels,
            seed=self._seed,
            batch=batch,
            cosine=self._cosine is not None and batch % self._cosine == 0,
        )
        if found.cosines is not None:
            self._metrics.record_cosines(batch, torch.stack(found.cosines).tolist())
        for j, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            self._optimizers[j].step(in_order(block, found.blocks[j]), batch)
            if head is not None:
                self._head_optimizers[j].step(in_order(head, found.heads[j]), batch)
                self._metrics.record(j, True, found.losses[j], found.logits[j], labels)

    @torch.no_grad()
    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None:
        """Run the test set, as `Worker.evaluate`."""
        self._mode(training=False)
        assert source is not None
        for index in range(batches):
            x, labels = (tensor.to(self._device) for tensor in source(epoch, index))
            for j, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
                x = block(x)
                if head is not None:
                    self._metrics.record(j, False, *head.losses(x, labels), labels)

    def _mode(self, training: bool) -> None:
        for module in (*self.blocks, *self.heads):
            if module is not None:
                module.train(training)

    def close(self) -> None:
        pass
