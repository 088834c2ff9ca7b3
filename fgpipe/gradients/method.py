"""One way to estimate gradients: which guess, in which space and scope, for which target."""

import math
from dataclasses import dataclass

from fgpipe.config import Config
from fgpipe.gradients.guesses import Guess, GuessHead, make


@dataclass(frozen=True)
class Method:
    """Way in which every block of a net of `blocks` blocks learns (paper, sections 3.1 to 3.3).

    `depth` is the target's: the loss at block min(j + depth, J - 1), None for the last. `decode` and `step` say what
    becomes of the scalars and of the coefficients (docs/reference/algorithm.md).
    """

    blocks: int
    guess: Guess
    space: str
    scope: str
    depth: int | None
    decode: str = "plain"
    step: str = "projection"
    samples: int = 1
    """Samples of a batch, in each replica."""
    classes: int = 1
    every: int = 1
    """Lanes ride, and readings come back, with every so many-th batch."""
    idle: frozenset[int] = frozenset()
    """Blocks without trainable parameters: they pass activations and tangents on, and learn nothing."""
    returns_gradients: bool = False
    """The gradient of the last loss comes back from block to block: asynchronous backpropagation."""
    head_learns: str = "labels"
    """From what heads learn that the target's error goes through; others learn from their own losses."""

    @classmethod
    def of(cls, config: Config, classes: int = 1, idle: frozenset[int] = frozenset()) -> "Method":
        assert config.scope is not None
        shape = config.blocks, make(config.guess), config.space, config.scope, config.target.depth
        rest = config.share, classes, config.feedback.every, idle, config.asynchronous
        return cls(*shape, config.decode, config.step, *rest, config.head.learns)

    @property
    def last(self) -> int:
        """The block that carries the net's own classifier and trains on the true gradient of its loss."""
        return self.blocks - 1

    @property
    def guesses_by_trained_head(self) -> bool:
        """The guess differentiates the loss of the trained head, whose gradient the same backward pass gives."""
        return self.guess.head is GuessHead.TRAINED

    @property
    def guesses_by_untrained_head(self) -> bool:
        """The guess differentiates the loss of a head that is never trained, beside the trained one if there is any."""
        return self.guess.head in (GuessHead.DRAWN_PER_BATCH, GuessHead.DRAWN_ONCE)

    def has_beside(self, block: int) -> bool:
        """The guess of the block has a second head, beside the trained one, which learns from its own loss."""
        private = self.guess.twin is not None and self.guess.copied_every is None
        return (self.guess.second_head is not None or private) and self.projects(block)

    def has_copies(self, block: int) -> bool:
        """The block has a twin of the blocks above, whose weights are theirs."""
        return self.guess.copied_every is not None and self.projects(block)

    def sources(self, block: int) -> range:
        """The blocks whose weights travel down to the twin of `block`."""
        shape = self.guess.twin
        return range(0) if shape is None or not self.has_copies(block) else shape.sources(block, self.blocks)

    def copies(self, batch: int) -> bool:
        """Weights are copied after so many batches."""
        return self.guess.copied_every is not None and batch > 0 and batch % self.guess.copied_every == 0

    def distils(self, block: int) -> bool:
        """The head of the block that the error goes through learns when the error comes: the one beside, if there is one."""
        return self.head_learns == "distilled" and self.target(block) != block and block not in self.idle

    def target(self, block: int) -> int:
        """The block whose loss is the target of `block`."""
        return self.last if self.depth is None else min(block + self.depth, self.last)

    def is_plain(self, block: int) -> bool:
        """Nothing is projected: the block descends the gradient of its target itself."""
        return block == self.last or self.guess.is_plain(own_target=self.target(block) == block)

    def projects(self, block: int) -> bool:
        """The block's estimate is a projection on guesses of its own."""
        return not self.is_plain(block) and block not in self.idle

    def waits(self, block: int) -> bool:
        """The block needs scalars, or a gradient, from a higher one before it can update."""
        if self.returns_gradients:
            return block != self.last
        return self.projects(block) and self.target(block) != block

    def asks(self, batch: int) -> bool:
        """Lanes ride with a training batch; with others, blocks use their running coefficients."""
        return batch % self.every == 0

    def readings(self, probes: int) -> tuple[int, ...]:
        """The shape of the readings of so many probes: `[P, S]`, or `[P, B, C]` where every sample has a row."""
        if self.guess.reading.is_row:
            return probes, self.samples, self.classes
        return probes, self.samples if self.scope == "sample" else 1

    def numbers(self, probes: int) -> int:
        """The numbers of the readings of so many probes: the most that ever comes back to a block for one batch."""
        return math.prod(self.readings(probes))

    def trains_head(self, block: int) -> bool:
        """The guess or a target uses the trained head of `block`."""
        return self.guesses_by_trained_head or any(self.target(lower) == block for lower in range(block + 1))

    def keeps_graph(self, block: int) -> bool:
        """The block holds its autograd graph from its forward pass until its scalars, or its gradient, arrive."""
        return (self.space == "activity" or self.returns_gradients) and self.waits(block)
