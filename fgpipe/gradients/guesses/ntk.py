"""`guess=ntk`: the gradient of the loss of a head that is drawn anew for every batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fgpipe.gradients.guesses.base import Guess, GuessHead, View
from fgpipe.gradients.guesses.registry import guess


@guess("ntk")
@dataclass(frozen=True)
class NTK(Guess):
    """The gradient through random heads, whose mean over draws is a neural tangent kernel's (paper, section 3.1)."""

    head: ClassVar[GuessHead | None] = GuessHead.DRAWN_PER_BATCH

    def propose(self, view: View) -> Sequence[Tensor]:
        return view.gradient()
