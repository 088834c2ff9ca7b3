"""Measurements of a run: loss and accuracy per block and phase, staleness, and what happened to scalars on their way.

Summed over processes at the epoch's end.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgpipe.observe.events import Aligned, Learnt, Scored, Skipped, StepEvent

PHASES = ("test", "train")
"""Indexed by `training`."""
INCIDENTS = ("duplicates", "asked", "skipped")
"""Scalars of a block: came again and were dropped; were asked for again; were lost, so that an update was skipped."""
REPLAYS = ("extra", "reused", "past_limit", "unseen")
"""Counts of a block's replay buffer: extra steps, beside those of the epoch; steps of the epoch on a batch that was
used before, when no other would come, and of these past the limit of reuse; batches that no step was made on."""


@dataclass(frozen=True)
class Score:
    """Mean loss and accuracy (0 to 1) over `samples` samples."""

    loss: float
    accuracy: float
    samples: int


class Metrics:
    """Sums of one process, in float64; blocks of other processes stay zero, so that a sum over processes merges them.

    Any thread may `count`; all else is for the one that trains.
    """

    def __init__(
        self,
        blocks: int,
        on_batch: Callable[[Score], None] | None = None,
        on_cosines: Callable[[int, Sequence[float]], None] | None = None,
    ) -> None:
        """Args:
        on_batch: called after each training batch of the last block, with its score since the last `take`.
        on_cosines: called with the step and the cosines of all blocks below the last, when they are measured.
        """
        self.blocks, self._on_batch, self._on_cosines = blocks, on_batch, on_cosines
        self._sums = self._zeros()
        self._staleness = torch.zeros(blocks, 4, dtype=torch.float64)
        self._counting = threading.Lock()
        self._incidents: Counter[tuple[int, str]] = Counter()
        self.last_batch: int | None = None
        """The last training batch that a block of this process began."""

    def _zeros(self) -> list[list[list[float]]]:
        return [[[0.0, 0.0, 0.0] for _ in range(self.blocks)] for _ in PHASES]

    def observe(self, event: StepEvent) -> None:
        """Take in what happened in a step."""
        if isinstance(event, Scored):
            self._record(event)
        elif isinstance(event, Learnt) and event.staleness is not None:
            self.record_staleness(event.block, event.staleness)
        elif isinstance(event, Skipped):
            self.count(event.block, "skipped")
        elif isinstance(event, Aligned) and self._on_cosines is not None:
            self._on_cosines(event.batch, event.cosines)

    def _record(self, score: Scored) -> None:
        found = score.loss, score.correct, score.samples
        sums = [total + each for total, each in zip(self._sums[score.training][score.block], found, strict=True)]
        self._sums[score.training][score.block] = sums
        if score.training and score.block == self.blocks - 1 and self._on_batch is not None:
            self._on_batch(_score(*sums))

    def record_staleness(self, block: int, updates: int) -> None:
        """A block applied feedback that is `updates` updates older than its weights."""
        count, total, least, most = self._staleness[block].tolist()
        least = min(least, updates) if count else updates
        self._staleness[block] = torch.tensor([count + 1, total + updates, least, max(most, updates)])

    def count(self, block: int, incident: str) -> None:
        """Something happened to scalars or batches of a block: one of `INCIDENTS` or `REPLAYS`."""
        with self._counting:
            self._incidents[block, incident] += 1

    def take(self) -> Tensor:
        """float64 `[2, J, 3]`: phase, block, (sum of losses, correct, samples) since the last call."""
        sums, self._sums = self._sums, self._zeros()
        return torch.tensor(sums, dtype=torch.float64)

    def merge(self, leave: Callable[[Tensor], Tensor]) -> None:
        """Leave the scores of the replicas to the first: `leave` gives it the sum, and the others zero."""
        self._sums = leave(torch.tensor(self._sums, dtype=torch.float64)).tolist()

    def staleness(self) -> Tensor:
        """float64 `[J, 4]`: batches, sum, minimum and maximum over the whole run."""
        return self._staleness.clone()

    def state(self, block: int) -> dict[str, list[Any]]:
        """One block's sums as numbers, for a checkpoint."""
        return {"scores": [phase[block] for phase in self._sums], "staleness": self._staleness[block].tolist()}

    def restore(self, block: int, state: Mapping[str, list[Any]]) -> None:
        """Go on from what `state` gave."""
        for phase, scores in zip(self._sums, state["scores"], strict=True):
            phase[block] = scores
        self._staleness[block] = torch.tensor(state["staleness"], dtype=torch.float64)

    def incidents(self, names: Sequence[str] = INCIDENTS) -> Tensor:
        """int64 `[J, names]`, over the whole run."""
        return torch.tensor([[self._incidents[block, each] for each in names] for block in range(self.blocks)])


def scores(sums: Tensor) -> dict[str, dict[int, Score]]:
    """Phase -> block -> score, blocks without a head left out; from `Metrics.take` summed over processes."""
    table: dict[str, dict[int, Score]] = {}
    for phase in (1, 0):
        table[PHASES[phase]] = {
            block: _score(loss, correct, samples)
            for block, (loss, correct, samples) in enumerate(sums[phase].tolist())
            if samples
        }
    return table


def _score(loss: float, correct: float, samples: float) -> Score:
    return Score(loss / samples, correct / samples, int(samples))


def staleness_report(table: Tensor) -> dict[int, dict[str, float]]:
    """Block -> minimum, mean and maximum staleness in updates; blocks that apply no feedback have 0."""
    report = {}
    for block, (count, total, least, most) in enumerate(table.tolist()):
        report[block] = {"min": least, "mean": total / count if count else 0.0, "max": most}
    return report


def incident_report(table: Tensor, names: Sequence[str] = INCIDENTS) -> dict[int, dict[str, int]]:
    """Block -> incident -> number."""
    return {block: dict(zip(names, counts, strict=True)) for block, counts in enumerate(table.tolist())}
