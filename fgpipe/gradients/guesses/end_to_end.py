"""`guess=end_to_end`: no guess, but backpropagation: every block descends the gradient of the last loss."""

from dataclasses import dataclass

from fgpipe.gradients.guesses.base import Guess
from fgpipe.gradients.guesses.registry import guess


@guess("end_to_end")
@dataclass(frozen=True)
class EndToEnd(Guess):
    """The control that every guess is compared with."""

    def is_plain(self, own_target: bool) -> bool:
        return True
