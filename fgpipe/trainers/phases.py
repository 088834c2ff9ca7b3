"""The phases of a block's work: timed for the timeline, and made longer for a slow block."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from fgpipe.observe.timeline import COMPUTE, NOBODY, Timeline
from fgpipe.trainers.straggler import Straggler

_UNTIMED: AbstractContextManager[None] = nullcontext()


CPU = torch.device("cpu")


class Phases(AbstractContextManager[None]):
    """`with phases("forward", batch):` around each piece of work of a block, in its one compute thread; not nested.

    Args:
        timeline: takes them, if it is on.
        straggler: makes compute longer; None for all blocks but the slow one.
        share: of the time between the two ends of a phase, how much is the slow block's own.
        device: whose work is waited for at both ends; on a GPU a phase would otherwise end when it is queued.
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
        self.device = device
        self._on = timeline.on or straggler is not None

    def __call__(self, kind: str, batch: int, other: int = NOBODY) -> AbstractContextManager[None]:
        """A phase; see `timeline.Event`."""
        if not self._on:
            return _UNTIMED
        self._kind, self._batch, self._other = kind, batch, other
        return self

    def __enter__(self) -> None:
        self._synchronize()
        self._began = time.monotonic_ns()

    def __exit__(self, *error: object) -> None:
        self._synchronize()
        if self._straggler is not None and self._kind in COMPUTE:
            took = (time.monotonic_ns() - self._began) * 1e-9
            time.sleep((self._straggler.factor_for(self._batch) - 1) * took * self._share)
        if self._timeline.on:
            self._timeline.add(self._kind, self._block, self._batch, self._began, self._other)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
