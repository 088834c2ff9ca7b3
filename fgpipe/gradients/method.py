"""One way to estimate gradients: which guess, in which space and scope, for which target."""

from dataclasses import dataclass

from fgpipe.config import RANDOM, Config

UNTRAINED = ("ntk", "fixed_ntk")


@dataclass(frozen=True)
class Method:
    """What every block of a net of `blocks` blocks does to learn (paper, sections 3.1 to 3.3).

    `depth` is the target's: the loss at block min(j + depth, J - 1), None for the last. `decode` and `step` say what
    becomes of the scalars and of the coefficients (docs/algorithm.md).
    """

    blocks: int
    guess: str
    space: str
    scope: str
    depth: int | None
    decode: str = "plain"
    step: str = "projection"
    directions: int = 0
    """Probes of a block with a subspace guess."""
    idle: frozenset[int] = frozenset()
    """Blocks without trainable parameters: they pass activations and tangents on, and learn nothing."""

    @classmethod
    def of(cls, config: Config, idle: frozenset[int] = frozenset()) -> "Method":
        assert config.scope is not None
        shape = config.model.blocks, config.guess, config.space, config.scope, config.target.depth
        directions = (config.directions or config.share) if config.guess == "local_subspace" else 0
        return cls(*shape, config.decode, config.step, directions, idle)

    @property
    def last(self) -> int:
        """The block that carries the net's own classifier and trains on the true gradient of its loss."""
        return self.blocks - 1

    @property
    def is_random(self) -> bool:
        """The guess is noise, drawn from its key."""
        return self.guess in RANDOM

    @property
    def is_subspace(self) -> bool:
        """Each sample's target is projected on the span of the guesses of all samples (paper, table 6)."""
        return self.guess == "local_subspace"

    @property
    def divides_by_norm(self) -> bool:
        """As eq. 1 has it for deterministic guesses; random ones and orthonormal directions are not divided."""
        return not self.is_random and not self.is_subspace

    @property
    def has_local_guess(self) -> bool:
        """The guess comes from the trained head, whose gradient the same backward pass gives."""
        return self.guess == "local" or self.is_subspace

    @property
    def has_untrained_guess(self) -> bool:
        """The guess comes from a head that is never trained, beside the trained one if there is any."""
        return self.guess in UNTRAINED

    def target(self, block: int) -> int:
        """The block whose loss is the target of `block`."""
        return self.last if self.depth is None else min(block + self.depth, self.last)

    def is_plain(self, block: int) -> bool:
        """Nothing is projected: the block descends the gradient of its target itself."""
        own = self.guess == "end_to_end" or (self.guess == "local" and self.target(block) == block)
        return own or block == self.last

    def projects(self, block: int) -> bool:
        """The block's estimate is a projection on guesses of its own."""
        return not self.is_plain(block) and block not in self.idle

    def waits(self, block: int) -> bool:
        """The block needs scalars from a higher one before it can update."""
        return self.projects(block) and self.target(block) != block

    def trains_head(self, block: int) -> bool:
        """The guess or a target uses the trained head of `block`."""
        return self.has_local_guess or any(self.target(lower) == block for lower in range(block + 1))

    def keeps_graph(self, block: int) -> bool:
        """The block holds its autograd graph from its forward pass until its scalars arrive."""
        return self.space == "activity" and self.waits(block)
