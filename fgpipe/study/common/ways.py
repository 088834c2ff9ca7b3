"""One way to learn, as studies go through them."""

from dataclasses import dataclass

from fgpipe.config import SCOPES
from fgpipe.gradients.guesses import make


@dataclass(frozen=True)
class Way:
    """Guess, the space that it is in, and the target."""

    guess: str
    space: str
    target: str

    def overrides(self) -> list[str]:
        """Name its keys, with one lane, the least compute, wherever anything is projected."""
        keys = [f"guess={self.guess}", f"space={self.space}", f"target={self.target}"]
        if self.guess == "local_subspace":
            return [*keys, "guess.directions=1"]  # which has lanes of its own
        guess = make(self.guess)
        keys.append(f"scope={next(scope for scope in SCOPES[self.space] if scope in guess.scopes)}")
        shares = not guess.is_plain(own_target=self.target == "local") and not guess.reading.is_row
        return keys + ["lanes=1"] * shares
