"""`guess=rademacher`: random signs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fgpipe.gradients.guesses.noise import Draw, Noise
from fgpipe.gradients.guesses.registry import guess


def _signs(shape: torch.Size, **options: Any) -> Tensor:
    return torch.randint(0, 2, shape, **options).mul_(2).sub_(1)


@guess("rademacher")
@dataclass(frozen=True)
class Rademacher(Noise):
    """Independent signs, +1 or -1 (paper, section 3.1)."""

    draw: ClassVar[Draw] = staticmethod(_signs)
