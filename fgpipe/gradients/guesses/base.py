"""Base of all guesses: what each says of itself, and what it may look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from fgpipe.config import Config, HeadConfig
from fgpipe.config.rng import drawing, generator
from fgpipe.errors import UserError, bad_value
from fgpipe.gradients import estimator
from fgpipe.gradients.dual import Factor, Tangent, insert
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.readings import Reading
from fgpipe.models.init import initialize
from fgpipe.models.twins import TwinShape

DOT = "/"
"""Dot in the name of a memory, as names of parameters have, within the name of a buffer."""


class GuessHead(Enum):
    """The head whose loss a guess differentiates, through the head and the block."""

    TRAINED = "trained on its own loss"
    DRAWN_PER_BATCH = "never trained, its weights drawn for every batch"
    DRAWN_ONCE = "never trained, its weights drawn once"


@dataclass
class View:
    """One block on one batch, as its guess sees it."""

    places: Sequence[Tensor]
    """Places of directions: the block's trainable parameters (weight space), or its output alone (activity space)."""
    key: tuple[int, int, int]
    """Seed, block, and the number under which the batch's random draws are made; PyTorch's generator is seeded by it."""
    gradient: Callable[[], Sequence[Tensor]]
    """The gradient of the loss of the guess's `head`, shaped as `places`; the first call makes a backward pass."""
    logits: Callable[[], Tensor]
    """The logits `[B, C]` of the block's trained head, or of the one beside it if the guess has one (its twin), with a graph
    down to `places`, which lives on when the head learns."""
    beside: Callable[[], Sequence[Tensor]]
    """The gradient of the loss of the head beside the trained one, or of the twin, shaped as `places`; a backward pass."""
    target: Callable[[], Sequence[Tensor]]
    """The target's gradient, shaped as `places`: for controls by the oracle, which alone has it."""
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of `Guess.remember`, to be written in place."""


@dataclass(frozen=True)
class Guess:
    """Source of a block's directions, and what becomes of their readings.

    Subclasses are frozen dataclasses; their fields, all with defaults, are the keys of `guess.*`. Shapes: P probes of a
    block, S samples (scope sample) or 1, B samples of the batch. An instance serves all blocks and keeps nothing.
    """

    name: ClassVar[str] = ""
    spaces: ClassVar[tuple[str, ...]] = ("weight", "activity")
    scopes: ClassVar[tuple[str, ...]] = ("tensor", "block", "sample", "batch")
    head: ClassVar[GuessHead | None] = None
    """None: no gradient is needed, and in weight space no graph."""
    reading: ClassVar[Reading] = Reading.DERIVATIVE
    """The numbers that come back for each probe."""
    divided: ClassVar[bool] = True
    """Coefficients are divided by |g|^2 (eq. 1), as deterministic directions want it; random ones have E[gg^T] = I."""
    kept: ClassVar[bool] = True
    """Directions are kept until their readings come; otherwise they are made again, of `places` and `key` alone."""
    steady: ClassVar[bool] = True
    """Directions of neighbouring batches are alike enough for running means of their coefficients."""
    centred: ClassVar[bool] = False
    """Coefficients have mean zero, so that a running mean of them says nothing."""

    def check(self, config: Config) -> None:
        """Refuse what the guess cannot be combined with, beyond `spaces` and `scopes`.

        Raises:
            UserError: with key, value and what is allowed.
        """

    @property
    def second_head(self) -> HeadConfig | None:
        """A second head of every block but the last, which learns from its own loss and teaches its block nothing by itself."""
        return None

    @property
    def twin(self) -> TwinShape | None:
        """A second head of every block but the last, made of the blocks above."""
        return None

    @property
    def copied_every(self) -> int | None:
        """Batches from one copy of the twin's weights to the next; None: it learns from its own loss."""
        return None

    def is_plain(self, own_target: bool) -> bool:
        """A block descends the gradient of its target itself, so that nothing is projected.

        Args: own_target: the target is the block's own loss.
        """
        return False

    def probes(self, scope: str, tensors: int, samples: int) -> int:
        """The number of probes of a block with so many trainable tensors, on a batch of so many samples."""
        return tensors if scope == "tensor" else 1

    def remember(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's memory before the first batch, by name; it is saved and restored with the block."""
        return {}

    @property
    def remembers(self) -> bool:
        """Blocks have a memory."""
        return type(self).remember is not Guess.remember

    def propose(self, view: View) -> Sequence[Tensor]:
        """The directions of a batch, shaped as `view.places`; or whatever a guess's own `estimate` needs."""
        raise NotImplementedError

    def proposed(self, view: View) -> Sequence[Tensor]:
        """The directions of `propose`.

        What `propose` draws from PyTorch's generator depends on the view's `key` alone.

        Raises:
            UserError: it wants a part of the view that there is not; or lanes carry the directions, `estimate` is that of all
                guesses, and they are not shaped as `view.places`.
        """
        if self.head is None:
            view = replace(
                view, gradient=lacking("gradient", "the attribute head, as in head = fgpipe.GuessHead.TRAINED")
            )
        seed, *counters = view.key
        with drawing(seed, "propose", *counters):
            found = self.propose(view)
        if self.reading.has_lane and type(self).estimate is Guess.estimate:
            self._check_shapes(found, view)
        return found

    def _check_shapes(self, found: object, view: View) -> None:
        wanted, given = [_shape(place) for place in view.places], found if isinstance(found, list | tuple) else ()
        what = f"propose to return tensors shaped as view.places, of block {view.key[1]} "
        if len(given) != len(wanted):
            what += f"a list of {len(wanted)} tensors, not {len(given) or type(found).__name__}"
            raise bad_value("guess", self.name, what)
        for at, (each, shape) in enumerate(zip(map(_shape, given), wanted, strict=True)):
            if each != shape:
                raise bad_value("guess", self.name, what + f"direction {at} with shape {shape}, not {each}")

    def insert(
        self, tangent: Tangent | None, direction: Tensor, carriers: Sequence[Mapping[int, Factor]], y: Tensor
    ) -> Tangent | None:
        """Add the block's probes to the lanes at its output `y` (activity space).

        Args: carriers: of each probe, the lanes that carry it and with what factor.
        """
        return insert(tangent, direction, carriers[0])

    def inner(self, gradient: Sequence[Tensor], directions: Sequence[Tensor], scope: str) -> Tensor:
        """The exact readings `[P, S]`: <gradient, direction> of each probe; what tangents are held to."""
        products = [x * y for x, y in zip(gradient, directions, strict=True)]
        if scope == "sample":
            return products[0].sum(tuple(range(1, products[0].dim()))).unsqueeze(0)
        inner = torch.stack([product.sum() for product in products]).unsqueeze(1)
        return inner if scope == "tensor" else inner.sum(0, keepdim=True)

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The gradient estimate, shaped as `places`, from readings `[P, S]` (eq. 1, 4, 5), or rows `[P, B, C]`."""
        norms = estimator.squared_norms(directions, scope) if self.divided else None
        factors = step.factors(estimator.coefficients(readings, norms))
        return estimator.scaled(directions, factors, scope)

    def learn(self, memory: Mapping[str, Tensor], estimates: Mapping[str, Tensor]) -> None:
        """Take the estimate of the block's parameters into its memory, in place, as the update is made."""


def _shape(value: object) -> object:
    """A tensor's shape, or the type of anything else."""
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def lacking(part: str, needs: str) -> Callable[[], NoReturn]:
    """Stand for a part of a `View` that a block does not have: a call is refused, and says what it needs."""

    def refuse() -> NoReturn:
        raise UserError(f"view.{part}(): allowed: with {needs}")

    return refuse


class GuessMemory(nn.Module):
    """Memory of a guess for one block; a module for its buffers, which are saved with the block."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", DOT), tensor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Buffers by name, to be written in place."""
        return {name.replace(DOT, "."): tensor for name, tensor in self.named_buffers()}

    @property
    def or_none(self) -> "GuessMemory | None":
        """Itself, if it holds anything."""
        return self if self.tensors else None


def redraw(head: nn.Module, guess: Guess, seed: int, block: int, batch: int) -> None:
    """Give an untrained head its weights: new ones for every batch, or always the same."""
    counter = batch if guess.head is GuessHead.DRAWN_PER_BATCH else 0
    device = next(head.parameters(), torch.empty(0)).device
    initialize(head, generator(seed, guess.name, block, counter, device=device))
