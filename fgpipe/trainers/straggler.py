"""A block, or all of a process, slower than it is (`slow.*`), for studies: the process sleeps after each piece of work."""

import math
from dataclasses import dataclass

import torch

from fgpipe.config import SlowConfig
from fgpipe.config.rng import generator


@dataclass(frozen=True)
class Straggler:
    """Factor by which the work on a batch takes longer."""

    factor: float
    jitter: float
    block: int
    seed: int

    @classmethod
    def of(cls, config: SlowConfig, seed: int, block: int, position: int = 0) -> "Straggler | None":
        """None for all blocks but the slow ones.

        Args: position: of the block's process in the pipeline.
        """
        slow = block == config.block or position == config.process
        return cls(config.factor, config.jitter, block, seed) if slow else None

    def factor_for(self, batch: int) -> float:
        """Factor by which all work on a batch takes longer, at least 1.

        `factor` times a log-normal variable of mean 1, exp(s z - s^2 / 2) with z normal and s the jitter, as service
        times of shared machines have: never negative, now and then much longer. The same for the same seed, block and
        batch. Where it would be below 1 it is 1, which raises the mean of factors near 1.
        """
        if not self.jitter:
            return self.factor
        z = torch.randn((), generator=generator(self.seed, "slow", self.block, batch), dtype=torch.float64).item()
        return max(1.0, self.factor * math.exp(self.jitter * z - self.jitter**2 / 2))
