"""The pieces of a block's work: timed for the timeline, and made longer for a slow block."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from fgpipe.observe.timeline import COMPUTE, NOBODY, Timeline
from fgpipe.plan.plan import Plan
from fgpipe.trainers.straggler import Straggler

_UNTIMED: AbstractContextManager[None] = nullcontext()


CPU = torch.device("cpu")


class Phases(AbstractContextManager[None]):
    """A clock of one block's work in its one compute thread: `begin()`, then `end("forward", batch)` after each piece.

    `with phases("forward", batch):` is the same around a piece.

    Args:
        timeline: takes them, if it is on.
        straggler: makes compute longer; None for all blocks but the slow one.
        share: the slow block's own part of the time between the two ends of a piece.
        device: whose work is waited for at both ends; on a GPU a piece would otherwise end when it is queued.
    """

    def __init__(
        self,
        block: int,
        timeline: Timeline,
        straggler: Straggler | None = None,
        share: float = 1.0,
        device: torch.device = CPU,
    ) -> None:
        self._block, self._timeline, self._straggler, self._share = block, timeline, straggler, share
        self._device = device
        self._on = timeline.on or straggler is not None
        self._began = 0

    @classmethod
    def of(cls, plan: Plan, block: int, timeline: Timeline, device: torch.device) -> "Phases":
        """The clock of a block of the plan."""
        straggler = Straggler.of(plan.config.slow, plan.config.seed, block, plan.topology.position)
        return cls(block, timeline, straggler, device=device)

    @classmethod
    def of_backward(cls, plan: Plan, timeline: Timeline, device: torch.device) -> "Phases":
        """The clock of a backward pass of all blocks here as one, which counts as the first's."""
        slow, local, flops = plan.config.slow, plan.topology.local, plan.forward.flops
        if slow.block is None or slow.block not in local:
            straggler = Straggler.of(slow, plan.config.seed, local[0], plan.topology.position)
            return cls(local[0], timeline, straggler, device=device)
        share = flops[slow.block] / sum(flops[j] for j in local)
        return cls(local[0], timeline, Straggler.of(slow, plan.config.seed, slow.block), share, device)

    def begin(self) -> None:
        """Begin a piece of work."""
        if self._on:
            self._synchronize()
            self._began = time.monotonic_ns()

    def end(self, kind: str, batch: int, other: int = NOBODY) -> None:
        """End it; see `timeline.Event`."""
        if not self._on:
            return
        self._synchronize()
        if self._straggler is not None and kind in COMPUTE:
            took = (time.monotonic_ns() - self._began) * 1e-9
            time.sleep((self._straggler.factor_for(batch) - 1) * took * self._share)
        if self._timeline.on:
            self._timeline.add(kind, self._block, batch, self._began, other)

    def __call__(self, kind: str, batch: int, other: int = NOBODY) -> AbstractContextManager[None]:
        if not self._on:
            return _UNTIMED
        self._piece = (kind, batch, other)
        return self

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *error: object) -> None:
        self.end(*self._piece)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
