"""`guess=error`: the error of the target, sent down as a row for each sample, through the block's own head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses.base import Guess, GuessHead, View
from fgpipe.gradients.guesses.registry import guess
from fgpipe.gradients.readings import Reading
from fgpipe.gradients.reverse import gradients


@guess("error")
@dataclass(frozen=True)
class Error(Guess):
    """The transposed Jacobian of the trained head, applied to the target's `softmax - onehot` (docs/reference/algorithm.md).

    No tangent travels. With a local target it is the gradient of the block's own loss.
    """

    spaces: ClassVar[tuple[str, ...]] = ("activity",)
    scopes: ClassVar[tuple[str, ...]] = ("sample",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED
    reading: ClassVar[Reading] = Reading.ERROR

    def propose(self, view: View) -> Sequence[Tensor]:
        """The head's logits with their graph, which waits for the error."""
        return [view.logits()]

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        (logits,), (error,) = directions, readings
        return gradients(logits, places, error / len(error), retain_graph=True)
