"""`guess=twins`: an error through a copy of what the net has above the block."""

from dataclasses import dataclass

from fgpipe.config import Config
from fgpipe.errors import bad_value
from fgpipe.gradients.guesses.mixing import Mixing
from fgpipe.gradients.guesses.registry import guess
from fgpipe.models.twins import TwinShape


@guess("twins")
@dataclass(frozen=True)
class Twins(Mixing):
    """The transposed Jacobian of the next blocks and their head, with weights that travel down now and then.

    With the target's error, all blocks, weights of every batch and one batch in flight it is backpropagation's gradient.
    `private` is the control: a head of the same shape, which learns from its own loss.
    """

    share: float = 1.0
    ahead: int | None = 1
    """Blocks that are copied; None: all above."""
    every: int = 8
    """Batches from one copy to the next."""
    path: str = "whole"
    """`whole`, or `skip`: residual blocks without their bodies, others whole."""
    weights: str = "copied"
    """`copied`, or `private`."""

    @property
    def twin(self) -> TwinShape | None:
        return TwinShape(self.ahead, self.path)

    @property
    def copied_every(self) -> int | None:
        return self.every if self.weights == "copied" else None

    def check(self, config: Config) -> None:
        super().check(config)
        for key, value in (("ahead", self.ahead), ("every", self.every)):
            if value is not None and value < 1:
                null = ", or null" if key == "ahead" else ""
                raise bad_value(f"guess.{key}", value, f"a whole number of at least 1{null}")
        choices = ("path", self.path, ("whole", "skip")), ("weights", self.weights, ("copied", "private"))
        for key, chosen, allowed in choices:
            if chosen not in allowed:
                raise bad_value(f"guess.{key}", chosen, " | ".join(allowed))
        if self.weights == "copied":
            if config.replicas > 1:
                raise bad_value(
                    "replicas", config.replicas, "1 with guess=twins, whose weights come from block to block"
                )
            if config.head.learns != "labels":
                raise bad_value("head.learns", config.head.learns, "labels with guess=twins guess.weights=copied")
