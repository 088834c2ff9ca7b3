"""`guess=local`: the gradient of the block's own loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fgpipe.gradients.guesses.base import Guess, GuessHead, View
from fgpipe.gradients.guesses.registry import guess


@guess("local")
@dataclass(frozen=True)
class Local(Guess):
    """The gradient of the loss of the block's trained head (paper, section 3.1); with a local target it is followed as it is."""

    head: ClassVar[GuessHead | None] = GuessHead.TRAINED

    def is_plain(self, own_target: bool) -> bool:
        return own_target

    def propose(self, view: View) -> Sequence[Tensor]:
        return view.gradient()
