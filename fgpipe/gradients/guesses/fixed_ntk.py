"""`guess=fixed_ntk`: the gradient of the loss of a head that is drawn once and never trained."""

from dataclasses import dataclass
from typing import ClassVar

from fgpipe.gradients.guesses.base import GuessHead
from fgpipe.gradients.guesses.ntk import NTK
from fgpipe.gradients.guesses.registry import guess


@guess("fixed_ntk")
@dataclass(frozen=True)
class FixedNTK(NTK):
    """NTK guesses of the same random head for all batches (paper, section 3.1)."""

    head: ClassVar[GuessHead | None] = GuessHead.DRAWN_ONCE
