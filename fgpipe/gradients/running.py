"""Running means of what changes slowly from batch to batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 0.95


@dataclass(eq=False)
class RunningMean:
    """Exponentially decaying means, corrected for their start: sum_t DECAY^(T-t) v_t / sum_t DECAY^(T-t)."""

    total: Tensor
    """`[P]`."""
    weight: Tensor
    """`[]`."""

    @classmethod
    def of(cls, count: int, like: Tensor) -> "RunningMean":
        """Of P values, of the type and on the device of `like`; zero before the first update."""
        return cls(like.new_zeros(count), like.new_zeros(()))

    @property
    def value(self) -> Tensor:
        """`[P]`."""
        return torch.where(self.weight > 0, self.total / self.weight, 0.0)

    def update(self, values: Tensor) -> Tensor:
        """Take in new values `[P]`, and return the means with them."""
        self.total.mul_(DECAY).add_(values, alpha=1 - DECAY)
        self.weight.mul_(DECAY).add_(1 - DECAY)
        return self.value
