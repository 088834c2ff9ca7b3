"""A batch on its way up."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fgpipe.gradients.dual import Tangent
from fgpipe.plan.precision import Precision


@dataclass(eq=False)
class Batch:
    """One batch between two blocks. Labels travel with it, and every scalar will name its id."""

    id: int
    """Counted from 0 over the whole run; test batches from 0 in every evaluation."""
    epoch: int
    training: bool
    x: Tensor
    """Activation, `[B, ...]`."""
    labels: Tensor
    """`[B]`, int64."""
    tangent: Tangent | None = None
    drain: bool = False
    """No other training batch follows until every block has applied its scalars."""
    ready: Any = None
    """Event of a GPU after which the tensors are there (`wire.streams`); None where they are."""
    host_labels: Tensor | None = None
    """The labels on the host, where `labels` are on a GPU: a header takes them without waiting for it."""
    extra: int = 0
    """Number of an extra step (`wire.replay`), which has the id of the step that comes next and never goes on a wire: how many
    its buffer has given, this one included. 0: a step of the epoch."""

    @property
    def draw(self) -> int:
        """Name of a training batch in random draws: its id; of each extra step, a negative number."""
        return -self.extra or self.id

    @property
    def name(self) -> str:
        """Name of the batch in messages."""
        if self.extra:
            return f"an extra step before batch {self.id}"
        return f"batch {self.id}" if self.training else f"test batch {self.id}"

    def to(self, device: torch.device, dtype: torch.dtype, *, non_blocking: bool = False) -> "Batch":
        """The batch on a device, its activation and tangent in a format; itself if it is so already."""
        if self.x.device == device and self.labels.device == device and self.x.dtype == dtype:
            return self
        tangent = self.tangent and Tangent(
            self.tangent.lanes, self.tangent.value.to(device, dtype, non_blocking=non_blocking)
        )
        x, labels = (
            each.to(device, kind, non_blocking=non_blocking) for each, kind in ((self.x, dtype), (self.labels, None))
        )
        on_host = self.labels if self.labels.device.type == "cpu" else self.host_labels
        return replace(self, x=x, labels=labels, tangent=tangent, host_labels=on_host)


def rounded(batch: Batch, device: torch.device, precision: Precision) -> Batch:
    """A batch for the block above, in the format of a link."""
    if not precision.int8:
        return batch.to(device, precision.wire)
    x, tangent = precision.rounded(batch.x), batch.tangent
    if tangent is not None:
        tangent = Tangent(tangent.lanes, precision.rounded(tangent.value, len(tangent.lanes)))
    return replace(batch, x=x, tangent=tangent)


def canonical(x: Tensor) -> Tensor:
    """`x` as channels last, with the strides that the wire gives it.

    Where a dimension has size 1, several strides mean the same layout and kernels choose by strides; batches that
    never crossed a wire must look as if they had, or one process and eight would round differently.
    """
    if x.dim() != 4:
        return x.contiguous()
    _, channels, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


def within_process(batch: Batch) -> Batch:
    """The batch as it would look if it had crossed a wire."""
    tangent = batch.tangent and Tangent(batch.tangent.lanes, canonical(batch.tangent.value))
    return replace(batch, x=canonical(batch.x), tangent=tangent)
