"""Base of guesses with a second head beside the trained one."""

from dataclasses import dataclass
from typing import ClassVar

from fgpipe.config import RULES, Config, HeadConfig
from fgpipe.errors import bad_value
from fgpipe.gradients.guesses.base import Guess, GuessHead


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
        super().check(config)
        for key, of_head in (("beside", "head.name"), ("hidden", "head.hidden")):
            accepts, allowed = RULES[of_head]
            if not accepts(value := getattr(self, key)):
                raise bad_value(f"guess.{key}", value, allowed)
