"""One block of an elastic run: it trains on what comes from below, sends up what it makes, and waits for nobody.

A block that is away takes no other along. The ones below drop what they would send it; the ones above train on what
their buffers hold; and when it is back, with its newest saved state, it goes on with the batch that comes next.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from fgpipe.data import Batches
from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.outgoing import Outgoing
from fgpipe.elastic.pace import Pace
from fgpipe.elastic.places import Places
from fgpipe.elastic.saver import BlockSaver
from fgpipe.elastic.tally import Tally
from fgpipe.elastic.target import BRIEF, Target
from fgpipe.observe.events import Learnt
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import Plan
from fgpipe.saving.checkpoint import read_block, serialised
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Lost, Weights
from fgpipe.wire.gradients import Gradient

QUIET = 2.0
"""Seconds without a batch after which none is on its way any more, if the block below has made all its steps."""
LOOK = 0.1
"""Seconds between looks whether the run is over, for a block that has made all its steps."""


class Ending(Enum):
    """Why a member leaves."""

    OVER = "the run is over"
    DONE = "all blocks have made all their steps"
    STOPPED = "the run is asked to end"
    PREEMPTED = "SIGTERM"
    SUPERSEDED = "another process has its place"


class Member:
    """The loop of one block.

    Args:
        stage: the block.
        target: its way to its target.
        tally: of its generation.
        source: its images, for block 0; the buffer of what comes, for others.
        post: to the block above, and to those that ask here.
    """

    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        target: Target,
        tally: Tally,
        source: Batches | Buffer,
        post: Outgoing,
        saver: BlockSaver,
        observers: Observers,
    ) -> None:
        self._plan, self._stage, self._target, self.tally, self._source = plan, stage, target, tally, source
        self._post = post
        self._block, self._saver, self._pace = stage.index, saver, Pace()
        self._every, self._due = plan.config.checkpoint.every_steps or 1, False
        self._observers = observers
        self._batches = plan.facts.train_batches
        self._end = plan.config.epochs * self._batches
        self._epochs: dict[int, list[float]] = {}
        """Of each epoch, the sums of losses, of correct answers and of samples in training."""
        self.done = False
        """All steps are made, and saved."""
        self._error: Exception | None = None
        self._preempted = False

    def fail(self, error: Exception) -> None:
        """A thread has ended with an error, which ends the member."""
        self._error = error

    def preempt(self) -> None:
        """SIGTERM has come."""
        self._preempted = True

    def figures(self) -> dict[str, Any]:
        """What the member says of itself in the store."""
        return {**self.tally.counts(), "rate": self._pace.rate, "saved": self._saver.saved, "done": self.done}

    def restore(self, places: Places, warn: Callable[[str], None]) -> None:
        """Take the newest state of the block that any generation has saved, and count what it lacks.

        Raises:
            CheckpointError: there are states, and none can be read.
        """
        tally, found = self.tally, places.newest(self._block, warn)
        own: dict[str, Any] = {"kept": 0, "position": 0, "done": False}
        if found is not None:
            counters = read_block(found[0], self._block, self._stage.trained()[self._block])
            self._observers.metrics.restore(self._block, counters["metrics"])
            self._observers.metrics.take()
            self._observers.ledger.restore(self._block, counters["traffic"])
            own = counters["elastic"]
            self._epochs = {int(epoch): sums for epoch, sums in counters["epochs"].items()}
        tally["lost"] = tally["updates"] - own["kept"]
        tally["position"] = max(tally["position"], own["position"])
        self.done = own["done"]

    def run(self, places: Places, directory: Directory) -> Ending:
        """Train until the run ends, or this member's part in it; everything is saved then.

        Raises:
            RunError: a number is not finite, a message from below is wrong, or a state cannot be written.
        """
        while (ending := self._ending(places, directory)) is None:
            if self.done or not self._may_begin(directory):
                time.sleep(LOOK)
            elif self._answered():
                continue
            elif (batch := self._next(directory)) is not None:
                self._step(batch)
            elif self._target.in_flight == 0 and self._nothing_will_come(directory):
                self.tally["position"] = self._end
                self._save(done=True)
                self.done = True
            if self._due and not self._saver.busy:
                self._save(done=False)
        if ending is not Ending.SUPERSEDED and not self.done:
            self._save(done=False)
        self._saver.wait()
        return ending

    def _ending(self, places: Places, directory: Directory) -> Ending | None:
        if self._error is not None:
            raise self._error
        if directory.superseded is not None:
            return Ending.SUPERSEDED
        if self.done and places.summary.exists():
            return Ending.OVER
        if directory.stop:
            return Ending.STOPPED
        if self._preempted:
            return Ending.PREEMPTED
        others = range(1, self._plan.method.blocks)
        if self.done and self._block == 0 and all(directory.figures(j).get("done") for j in others):
            return Ending.DONE
        return None

    def _may_begin(self, directory: Directory) -> bool:
        """Whether this is not a block 0 for whose first batch not all others are here yet."""
        others = range(1, self._plan.method.blocks)
        return self._block > 0 or self.tally["position"] > 0 or all(map(directory.generation, others))

    def _answered(self) -> bool:
        """Apply readings that have come, or give up those that have not; whether there were any, or others are waited for."""
        ends = self.tally["position"] >= self._end
        found = False
        for answer in self._target.answers(self._pace, wait=self._target.full or ends):
            self._follow(self._stage, answer)
            found = True
        return found or self._target.full

    def _next(self, directory: Directory) -> Batch | None:
        """The batch to train on, or to train on again; None if there is none now."""
        position = self.tally["position"]
        if not self._target.may_begin:
            time.sleep(BRIEF)
            return None
        if isinstance(self._source, Batches):
            if position >= self._end:
                return None
            epoch, index = divmod(position, self._batches)
            return Batch(position, epoch, True, *self._source.train(epoch, index))
        patience = BRIEF if self._target.in_flight else self._pace.patience
        if (batch := self._source.take(patience)) is not None or position >= self._end:
            return batch
        if self._pace.patience or not self._pace.known or directory.figures(self._block - 1).get("done"):
            return None
        if not self._target.may_repeat or (self._plan.config.target.depth != 0 and directory.alive(self._block - 1)):
            return None  # an extra step is on the block's own loss: only while nobody is below
        return self._source.again(position)

    def _nothing_will_come(self, directory: Directory) -> bool:
        if self.tally["position"] >= self._end:
            return True
        if not isinstance(self._source, Buffer) or not directory.figures(self._block - 1).get("done"):
            return False
        return not self._source.unused and time.monotonic() - self._source.came > QUIET

    def _step(self, batch: Batch) -> None:
        self._pace.begin(extra=batch.extra > 0)
        if not batch.extra:
            self.tally["position"] = batch.id + 1  # before the step: no generation takes a batch that another had
        stage = self._target.stage_for(batch)
        self._follow(stage, batch)
        if not batch.extra:
            self._score(batch.epoch)

    def _follow(self, stage: Stage, given: Batch | Feedback | Lost) -> None:
        """Run a step, post what leaves the block, and count its updates."""
        extra = isinstance(given, Batch) and given.extra > 0
        for message in stage.run(given):
            if isinstance(message, Batch):
                if not extra:
                    self._post.up(message, self._pace.interval)
            elif isinstance(message, Findings):
                for found in message.send().read():
                    if isinstance(found, Feedback):
                        self._post.back(found)
                    else:
                        self._observers.observe(found)
            else:
                assert not isinstance(message, Gradient | Weights), "what an elastic block learns by is scalars"
                self._observers.observe(message)
                if isinstance(message, Learnt) and message.part == "block":
                    self._learnt(extra=extra, fallback=stage is not self._stage)

    def _learnt(self, *, extra: bool, fallback: bool) -> None:
        self.tally.add("updates")
        self.tally.add("extra", extra)
        self.tally.add("fallback", fallback)
        self._due |= self.tally.kept % self._every == 0

    def _score(self, epoch: int) -> None:
        found = self._observers.metrics.take()[1, self._block].tolist()
        before = self._epochs.get(epoch, [0.0, 0.0, 0.0])
        self._epochs[epoch] = [total + each for total, each in zip(before, found, strict=True)]

    def _save(self, *, done: bool) -> None:
        """Copy the state and begin to write it; wait for it if it is the last."""
        self._due = False
        kept, position = self.tally.kept, self.tally["position"]
        if kept == self._saver.saved and not done:
            return
        running = self._epochs.get(position // self._batches, [0.0, 0.0, 0.0])
        staleness = self._observers.metrics.state(self._block)["staleness"]
        counters = {
            "metrics": {"scores": [[0.0, 0.0, 0.0], running], "staleness": staleness},
            "traffic": self._observers.ledger.state(self._block),
            "elastic": {"kept": kept, "position": position, "done": done},
            "epochs": self._epochs,
        }
        with torch.no_grad():
            contents = serialised(self._block, self._stage.trained()[self._block], counters)
        self._saver.save(kept, position, contents)
        if done:
            self._saver.wait()
