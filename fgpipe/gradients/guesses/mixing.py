"""Base of guesses that mix a block's own gradient with a second direction at its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fgpipe.config import Config
from fgpipe.errors import bad_value
from fgpipe.gradients.estimator import StepRule, mixed
from fgpipe.gradients.guesses.base import Guess, GuessHead, View
from fgpipe.gradients.readings import Reading
from fgpipe.gradients.reverse import gradients


@dataclass(frozen=True)
class Mixing(Guess):
    """Two directions of unit norm at the block's output, mixed, at the size of the own gradient; no tangent travels.

    The first is the gradient of the trained head's loss. The second is `second`: `error`, the transposed Jacobian of the
    head beside it, applied to the target's `softmax - onehot`; `own`, the gradient of that head's own loss, which needs no
    error from above; or `exact`, the target's gradient, which the oracle alone has.

    With directions g and h, a share s and u(x) = x / |x| the estimate is |g| u((1 - s) u(g) + s u(h)); h itself with s = 1, g
    itself on batches between those with a second direction.
    """

    second: str = "error"
    share: float = 0.5
    """Weight of the second direction; the first has the rest."""
    second_every: int = 1
    """Batches from one with a second direction to the next."""

    spaces: ClassVar[tuple[str, ...]] = ("activity",)
    scopes: ClassVar[tuple[str, ...]] = ("sample",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED
    reading: ClassVar[Reading] = Reading.ERROR
    seconds: ClassVar[tuple[str, ...]] = ("error", "own")

    def check(self, config: Config) -> None:
        if self.second not in self.seconds:
            raise bad_value("guess.second", self.second, " | ".join(self.seconds))
        if self.second == "own" and config.target.depth != 0:
            raise bad_value("guess.second", "own", f"error with target={config.target.name}, or own with target=local")
        if self.second == "exact" and config.tangents != "oracle":
            raise bad_value("guess.second", "exact", "error with tangents=forward, or exact with tangents=oracle")
        if not 0 < self.share <= 1:
            raise bad_value("guess.share", self.share, "a number above 0 and at most 1")
        if self.second_every < 1:
            raise bad_value("guess.second_every", self.second_every, "a whole number of at least 1")
        if self.second_every > 1 and config.replicas > 1:
            raise bad_value("guess.second_every", self.second_every, f"1 with replicas={config.replicas}")
        if self.second_every > 1 and self.share == 1:
            raise bad_value("guess.second_every", self.second_every, "1 with guess.share=1")

    def propose(self, view: View) -> Sequence[Tensor]:
        """The own gradient, unless its share is 0; and the second direction, or the logits at which it waits for the error."""
        first = view.gradient() if self.share < 1 else ()
        _, _, draw = view.key
        if draw % self.second_every:
            return first
        if self.second == "error":
            return [*first, view.logits()]
        return [*first, *(view.beside() if self.second == "own" else view.target())]

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        if self.share < 1 and len(directions) == 1:
            return directions
        *first, second = directions
        if self.second == "error":
            (error,) = readings
            (second,) = gradients(second, places, error / len(error), retain_graph=True)
        if not first:
            return [second]
        (own,) = first
        return [mixed([own, second], own.new_tensor([1 - self.share, self.share]), own.norm())]
