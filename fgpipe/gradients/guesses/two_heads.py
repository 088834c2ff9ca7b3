"""Base of guesses with a second head beside the trained one."""

from dataclasses import dataclass
from typing import ClassVar

from fgpipe.config import Config, HeadConfig
from fgpipe.errors import bad_value
from fgpipe.gradients.guesses.base import Guess, GuessHead

KINDS = ("cnn", "mlp", "linear", "predsim", "spatial", "strided")


@dataclass(frozen=True)
class TwoHeads(Guess):
    """Directions at the block's output, of two heads that learn from their own losses."""

    beside: str = "spatial"
    """The second head; the trained one is `head`."""
    hidden: int | None = None
    """Hidden channels or features of the second head at width 1; None takes what `head.hidden=null` does."""

    spaces: ClassVar[tuple[str, ...]] = ("activity",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED

    @property
    def second_head(self) -> HeadConfig | None:
        return HeadConfig(self.beside, self.hidden)

    def check(self, config: Config) -> None:
        if self.beside not in KINDS:
            raise bad_value("guess.beside", self.beside, " | ".join(KINDS))
        if self.hidden is not None and self.hidden < 1:
            raise bad_value("guess.hidden", self.hidden, "a whole number of at least 1, or null")
