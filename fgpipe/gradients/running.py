"""Running means of what changes slowly from batch to batch."""

import torch
from torch import Tensor, nn

DECAY = 0.95


class RunningMean(nn.Module):
    """Exponentially decaying means, corrected for their start: sum_t DECAY^(T-t) v_t / sum_t DECAY^(T-t).

    A module for its buffers: they are saved with the block.
    """

    total: Tensor
    """`[P]`."""
    weight: Tensor
    """`[]`."""

    def __init__(self, count: int, like: Tensor) -> None:
        """Means of P = `count` values, of the type and on the device of `like`; zero before the first update."""
        super().__init__()
        self.register_buffer("total", like.new_zeros(count))
        self.register_buffer("weight", like.new_zeros(()))

    @property
    def value(self) -> Tensor:
        """`[P]`."""
        return torch.where(self.weight > 0, self.total / self.weight, 0.0)

    def update(self, values: Tensor) -> Tensor:
        """Take in new values `[P]`, and return the means with them."""
        self.total.mul_(DECAY).add_(values, alpha=1 - DECAY)
        self.weight.mul_(DECAY).add_(1 - DECAY)
        return self.value
