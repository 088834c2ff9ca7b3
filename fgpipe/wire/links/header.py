"""One batch between two processes, over `torch.distributed` point to point: two messages, whose order is the protocol.

A header of int64 with the labels comes first, then the activation and its lanes, stacked and channels last (gloo refuses
strided tensors: the NHWC view is contiguous); docs/reference/protocol.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.errors import LinkError
from fgpipe.wire.batch import Batch

MAGIC = 0x66_67_70_69_70_65_01
"""`fgpipe` and the version of the format."""
MAX_DIMENSIONS = 5
FIELDS = 6 + MAX_DIMENSIONS
"""magic, batch id, epoch, flags, R, dimensions of x, their sizes. The labels follow, as many as a training batch has."""
TRAINING, DRAIN = 1, 2
"""Flags."""
IN_FLIGHT = 2
"""Batches that may wait in a sender, and in a receiver."""
TAG = 1
"""Tag of our messages on gloo; `torch.distributed.pipelining` has 0 between the same processes."""


def wire(x: Tensor) -> Tensor:
    """The NHWC view of an activation `[B, C, H, W]`, contiguous if it is channels last; other shapes as they are."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def unwire(x: Tensor) -> Tensor:
    """The inverse of `wire`."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def header_of(batch: Batch, samples: int) -> Tensor:
    """The header of a batch on a link whose training batches have so many samples."""
    lanes = len(batch.tangent.lanes) if batch.tangent else 0
    flags = TRAINING * batch.training | DRAIN * batch.drain
    fields = [MAGIC, batch.id, batch.epoch, flags, lanes, batch.x.dim(), *batch.x.shape]
    header = torch.zeros(FIELDS + samples, dtype=torch.int64)
    header[: len(fields)] = torch.tensor(fields)
    labels = batch.labels if batch.host_labels is None else batch.host_labels
    header[FIELDS : FIELDS + len(labels)] = labels
    return header


@dataclass(frozen=True)
class Layout:
    """The plan's side of a link: what its batches look like, and where their tensors live."""

    shape: tuple[int, ...]
    """`[B, ...]` of a whole batch's activation; test batches may have fewer samples."""
    lanes: tuple[int, ...]
    """The lanes that training batches arrive with, every so many-th of them."""
    dtype: torch.dtype
    device: torch.device
    pinned: bool = False
    """Keep buffers in memory that a GPU copies from directly; for a wire on the host of a block on a GPU."""
    training_shape: tuple[int, ...] | None = None
    """Shape of a training batch's activation, where it is not `shape`."""
    every: int = 1
    """Lanes ride with every so many-th training batch (`Method.every`)."""
    packed: bool = False
    """Payloads are bytes (`plan.int8`), for tensors of `dtype`."""
    labelled: bool = True
    """Labels follow the header; not with gradients."""

    @property
    def labels(self) -> int:
        """Labels that follow the header, zeros where a batch has fewer."""
        return self.shape[0] if self.labelled else 0

    @property
    def trains_on(self) -> tuple[int, ...]:
        """`[B, ...]` of a training batch's activation."""
        return self.training_shape or self.shape

    def lanes_of(self, batch: int) -> tuple[int, ...]:
        """The lanes that a training batch arrives with."""
        return self.lanes if batch % self.every == 0 else ()

    def check(self, header: Sequence[int], sender: str, rank: int) -> tuple[int, int, int, int]:
        """Batch id, epoch, flags and number of samples; the rest of a header can only be what the plan says.

        Raises:
            LinkError: it is not, or a number is out of range; `sender`, of that rank, is named.
        """
        magic, batch, epoch, flags, lanes, dimensions, samples, *sizes = header
        training = bool(flags & TRAINING)
        largest, *shape = self.trains_on if training else self.shape
        padding = [0] * (MAX_DIMENSIONS - 1 - len(shape))
        fits = samples == largest if training else 1 <= samples <= largest
        for name, is_right in (
            ("magic", magic == MAGIC),
            ("batch id", batch >= 0),
            ("epoch", epoch >= 0),
            ("flags", flags in (0, TRAINING, TRAINING | DRAIN)),
            ("lanes", lanes == (len(self.lanes_of(batch)) if training else 0)),
            ("shape", fits and dimensions == 1 + len(shape) and sizes == shape + padding),
        ):
            if not is_right:
                raise LinkError(f"{sender} sent a header with a wrong {name}: {list(header)}", rank)
        return batch, epoch, flags, samples
