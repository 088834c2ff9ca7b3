"""Batches of noise for a block of a plan."""

import torch

from fgpipe.gradients.dual import Tangent
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.wire.batch import Batch, canonical


def noise(plan: Plan, block: int, batch: int) -> Batch:
    """A training batch as the block below would send it, with all lanes of the plan; the same for the same arguments."""
    source = torch.Generator().manual_seed(batch)
    dtype, samples = DTYPES[plan.config.dtype], plan.config.share
    lanes = plan.lanes.on_link(block - 1) if block else ()

    def draw(count: int) -> torch.Tensor:
        return canonical(torch.randn(count, *plan.forward.shapes[block], generator=source, dtype=dtype))

    labels = torch.randint(plan.facts.classes, (samples,), generator=source)
    tangent = Tangent(lanes, draw(len(lanes) * samples)) if lanes else None
    return Batch(batch, 0, True, draw(samples), labels, tangent)
