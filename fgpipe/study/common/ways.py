"""One way to learn, as studies go through them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """A guess, the space that it is in, and the target."""

    guess: str
    space: str
    target: str

    def overrides(self) -> list[str]:
        """With one lane, the least compute, wherever anything is projected."""
        keys = [f"guess={self.guess}", f"space={self.space}", f"target={self.target}"]
        if self.guess == "local_subspace":
            return [*keys, "guess.directions=1"]  # which has lanes of its own
        projects = self.guess != "end_to_end" and not (self.guess == "local" and self.target == "local")
        return keys + ["lanes=1"] * projects
