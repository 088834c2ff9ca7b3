"""A block with its heads and what updates them, ready to run: every trainer is made of these."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fgpipe.config.rng import generator
from fgpipe.gradients.optim import Average, Optimizer, Trained, learning_rate
from fgpipe.models.init import materialize
from fgpipe.models.net import deep_copy
from fgpipe.models.twins import Twin
from fgpipe.plan.plan import Plan, trains_head
from fgpipe.plan.precision import DTYPES


@dataclass(frozen=True)
class Learner:
    """One block of the plan with weights."""

    index: int
    block: nn.Module
    head: Any
    """The trained head, or None; the classifier in the last block's place."""
    guess_head: Any
    """The head that the guess has for itself, or None: untrained, or beside the trained one, its twin among them."""
    optimizer: Optimizer
    head_optimizer: Optimizer | None
    beside_optimizer: Optimizer | None

    @classmethod
    def make(cls, plan: Plan, index: int, device: torch.device, average: Average | None = None) -> "Learner":
        """Draw the weights of a block and its heads.

        Args: average: from the estimates of this replica to their mean over all; None where there is one.
        """
        config, method, net = plan.config, plan.method, plan.net

        def ready(module: nn.Module, purpose: str) -> nn.Module:
            source = generator(config.seed, purpose, index)
            return materialize(module, source, dtype=DTYPES[config.dtype], device=device)

        untrained, beside = method.guesses_by_untrained_head and index != method.last, method.has_beside(index)
        own = deep_copy(net.heads[index]) if untrained else net.beside[index] if beside else None
        guess_head = ready(own, "guess_head") if own is not None else None
        if method.has_copies(index):
            guess_head = cls._twin(plan, index, device)
        head = ready(net.heads[index], "head") if trains_head(config, method, index) else None
        block = ready(net.blocks[index], "block")
        rate = learning_rate(config.optim, batches=plan.facts.train_batches, epochs=config.epochs)
        optimizer = partial(Optimizer, config=config.optim, rate=rate, average=average)
        trained = ([each] if each is not None else None for each in (head, guess_head if beside else None))
        of_head, of_beside = (optimizer(each) if each is not None else None for each in trained)
        return cls(index, block, head, guess_head, optimizer([block]), of_head, of_beside)

    @staticmethod
    def _twin(plan: Plan, index: int, device: torch.device) -> Twin:
        """The twin of a block, with the weights that the blocks above begin with."""
        net, shape, sources = plan.net, plan.method.guess.twin, plan.method.sources(index)
        assert shape is not None, "the block has a twin"

        def ready(module: nn.Module, purpose: str, source: int) -> nn.Module:
            draw = generator(plan.config.seed, purpose, source)
            return materialize(deep_copy(module), draw, dtype=DTYPES[plan.config.dtype], device=device)

        parts = [shape.part(ready(net.blocks[source], "block", source)) for source in sources]
        return Twin(parts, ready(net.heads[sources[-1]], "head", sources[-1]))

    def trained(self, memories: Mapping[str, nn.Module | None]) -> dict[str, Trained]:
        """Everything that it has learnt, by name: `block`, `head` and `beside` if it trains them, and memories that are not None."""
        parts = {"block": Trained(self.block, self.optimizer)}
        if self.head_optimizer is not None:
            parts["head"] = Trained(self.head, self.head_optimizer)
        if self.beside_optimizer is not None or isinstance(self.guess_head, Twin):
            parts["beside"] = Trained(self.guess_head, self.beside_optimizer)
        return parts | {name: Trained(memory, None) for name, memory in memories.items() if memory is not None}

    def mode(self, training: bool) -> None:
        """Put block and head into training or evaluation mode."""
        for module in (self.block, self.head):
            if module is not None and module.training != training:
                module.train(training)
