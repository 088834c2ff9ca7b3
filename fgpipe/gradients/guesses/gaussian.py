"""`guess=gaussian`: normal noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fgpipe.gradients.guesses.noise import Draw, Noise
from fgpipe.gradients.guesses.registry import guess


@guess("gaussian")
@dataclass(frozen=True)
class Gaussian(Noise):
    """Independent standard normal numbers (paper, section 3.1; Baydin et al. 2022)."""

    draw: ClassVar[Draw] = staticmethod(torch.randn)
