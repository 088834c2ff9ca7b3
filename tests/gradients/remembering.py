"""A guess with a memory, for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgpipe.gradients.guesses import Guess, GuessHead, View, guess


@guess("running_mean")
@dataclass(frozen=True)
class RunningMean(Guess):
    """The mean of past estimates and the local gradient: `decay` of the former."""

    decay: float = 0.5

    spaces: ClassVar[tuple[str, ...]] = ("weight",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED

    def remember(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(each) for name, each in parameters.items()}

    def propose(self, view: View) -> Sequence[Tensor]:
        pairs = zip(view.memory.values(), view.gradient(), strict=True)
        return [self.decay * mean + (1 - self.decay) * gradient for mean, gradient in pairs]

    def learn(self, memory: Mapping[str, Tensor], estimates: Mapping[str, Tensor]) -> None:
        for mean, estimate in zip(memory.values(), estimates.values(), strict=True):
            mean.lerp_(estimate, 1 - self.decay)
