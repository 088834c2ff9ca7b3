"""`guess=mixture`: the block's own gradient, and the target's error through a second head."""

from dataclasses import dataclass
from typing import ClassVar

from fgpipe.gradients.guesses.mixing import Mixing
from fgpipe.gradients.guesses.registry import guess
from fgpipe.gradients.guesses.two_heads import TwoHeads


@guess("mixture")
@dataclass(frozen=True)
class Mixture(TwoHeads, Mixing):
    """The second direction comes through a head of any kind, which learns from its own loss."""

    seconds: ClassVar[tuple[str, ...]] = ("error", "own", "exact")
