"""Readings: the only numbers that come back for a probe, never as large as an activation or as parameters.

Shapes: R lanes; B samples of the batch, C classes; S is B (scope `sample`) or 1.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fgpipe.gradients.dual import Tangent, linearize, linearize_logits, linearize_losses, there
from fgpipe.gradients.reverse import gradients
from fgpipe.models.heads import Head


class Reading(Enum):
    """One kind of numbers."""

    DERIVATIVE = "derivative of the target along the lane: `[S]`"
    LOGITS = "derivative of the target's logits along the lane: `[B, C]`"
    ERROR = "derivative of each sample's target with respect to its logits, softmax - onehot, without a lane: `[B, C]`"

    @property
    def is_row(self) -> bool:
        """Every sample has a row of C numbers."""
        return self is not Reading.DERIVATIVE

    @property
    def has_lane(self) -> bool:
        """A lane is read."""
        return self is not Reading.ERROR


Read = Callable[[Tangent | None], Tensor]
"""Lanes at a head's input -> their readings `[R, S]` or `[R, B, C]`; `[1, B, C]` of an error, without lanes."""


def linearize_head(head: Any, x: Tensor, labels: Tensor, reading: Reading, scope: str) -> tuple[Tensor, Tensor, Read]:
    """Run a head; return its losses `[B]`, its logits `[B, C]`, and what reads its target.

    Args:
        head: as `models.heads.Head`.
        x: `[B, ...]`.
        labels: `[B]`.
    """
    if reading is Reading.LOGITS:
        if type(head).losses is not Head.losses:
            losses, logits, push_logits = linearize_logits(head, x, labels)
            return losses, logits, lambda dx: push_logits(there(dx))
        logits, push_head = linearize(head, x)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses, logits, lambda dx: there(push_head(dx, {})).per_lane()
    losses, logits, push = linearize_losses(head, x, labels)
    if reading is Reading.ERROR:  # at once, as a guess may free the graph
        error = gradients(losses.sum(), [logits], retain_graph=True)[0].unsqueeze(0)
        return losses, logits, lambda dx: error
    return losses, logits, lambda dx: read(push(there(dx)), scope)


def read(derivatives: Tensor, scope: str) -> Tensor:
    """Turn the derivatives `[R, B]` of each sample's own loss into readings `[R, S]` of the mean loss.

    With scope `sample` a reading is the sample's part of the derivative (design, section 3: the samples share one
    tangent). Otherwise it is the derivative of the mean.
    """
    return derivatives / derivatives.shape[1] if scope == "sample" else derivatives.mean(dim=1, keepdim=True)


def arrange(tangent: Tangent | None, lanes: tuple[int, ...], readings: Tensor) -> Tensor:
    """The readings `[R, ...]` of a tangent, in the order of `lanes`."""
    same = tangent is None or tangent.lanes == lanes
    return readings if same else readings[[there(tangent).lanes.index(lane) for lane in lanes]]
