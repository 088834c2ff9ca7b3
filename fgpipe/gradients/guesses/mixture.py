"""`guess=mixture`: the block's own gradient, and the target's error through a second head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fgpipe.config import Config
from fgpipe.errors import bad_value
from fgpipe.gradients.estimator import StepRule, mixed
from fgpipe.gradients.guesses.base import View
from fgpipe.gradients.guesses.registry import guess
from fgpipe.gradients.guesses.two_heads import TwoHeads
from fgpipe.gradients.readings import Reading
from fgpipe.gradients.reverse import gradients


@guess("mixture")
@dataclass(frozen=True)
class Mixture(TwoHeads):
    """Two directions of unit norm at the block's output, mixed, at the size of the own gradient; no tangent travels.

    The first is the gradient of the trained head's loss. The second is `second`: `error`, the transposed Jacobian of the
    head beside it, applied to the target's `softmax - onehot`; or one of two controls: `own`, the gradient of that head's own
    loss, which needs no feedback, and `exact`, the target's gradient, which the oracle alone has.
    """

    second: str = "error"
    share: float = 0.5
    """Weight of the second direction; the first has the rest."""

    scopes: ClassVar[tuple[str, ...]] = ("sample",)
    reading: ClassVar[Reading] = Reading.ERROR

    def check(self, config: Config) -> None:
        super().check(config)
        if self.second not in ("error", "own", "exact"):
            raise bad_value("guess.second", self.second, "error | own | exact")
        if self.second == "own" and config.target.depth != 0:
            raise bad_value("guess.second", "own", f"error with target={config.target.name}, or own with target=local")
        if self.second == "exact" and config.tangents != "oracle":
            raise bad_value("guess.second", "exact", "error with tangents=forward, or exact with tangents=oracle")
        if not 0 < self.share <= 1:
            raise bad_value("guess.share", self.share, "a number above 0 and at most 1")

    def propose(self, view: View) -> Sequence[Tensor]:
        """The own gradient; and the second direction, or the logits at which it waits for the error."""
        if self.second == "error":
            return [*view.gradient(), view.logits()]
        return [*view.gradient(), *(view.beside() if self.second == "own" else view.target())]

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        own, second = directions
        if self.second == "error":
            (error,) = readings
            (second,) = gradients(second, places, error / len(error), retain_graph=True)
        return [mixed([own, second], own.new_tensor([1 - self.share, self.share]), own.norm())]
