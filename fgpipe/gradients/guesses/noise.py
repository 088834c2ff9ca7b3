"""Base of random guesses: directions of zero mean and unit covariance, drawn from their key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fgpipe.config.rng import generator
from fgpipe.gradients.guesses.base import Guess, View

Draw = Callable[..., Tensor]
"""A shape, and `generator`, `dtype` and `device` -> numbers."""


@dataclass(frozen=True)
class Noise(Guess):
    """Unbiased: c = <target gradient, g>, not divided, as E[gg^T] = I. The same key always gives the same directions."""

    divided: ClassVar[bool] = False
    kept: ClassVar[bool] = False
    centred: ClassVar[bool] = True
    draw: ClassVar[Draw]

    def propose(self, view: View) -> Sequence[Tensor]:
        source = generator(view.key[0], "guess", *view.key[1:], device=view.places[0].device)
        return [_drawn(type(self).draw, place, source) for place in view.places]


def _drawn(draw: Draw, like: Tensor, source: torch.Generator) -> Tensor:
    options: dict[str, Any] = {"generator": source, "dtype": like.dtype, "device": like.device}
    noise = draw(like.shape, **options)
    return noise.contiguous(memory_format=torch.channels_last) if like.dim() == 4 else noise
