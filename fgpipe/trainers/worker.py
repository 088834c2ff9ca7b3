"""The loop of one process: it runs the actions of its steps as soon as what they need is there.

Compute happens in the main thread; what arrives from other processes is put into the inbox by threads, and the main
thread sleeps on it when nothing can go on.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fgpipe.errors import StalledError
from fgpipe.gradients.optim import Trained
from fgpipe.observe.events import Worked
from fgpipe.observe.observers import Observers
from fgpipe.observe.timeline import WAITS, Timeline
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.plan.schedule import Action, Agenda, Apply, Forward
from fgpipe.trainers.findings import Findings, Transfer
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.step import Given, Step
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Weights
from fgpipe.wire.gradients import Gradient
from fgpipe.wire.post import Post

Source = Callable[[int, int], tuple[Tensor, Tensor]]
"""From epoch and index of a batch to images and labels."""
PATIENCE = 10
"""A process that has had nothing to do for this fraction of the deadline asks for the readings that it waits for."""
SHORT = 100_000
"""Nanoseconds of looking into the inbox that the timeline does not call waiting."""


def never() -> bool:
    """Do not stop before the end."""
    return False


class Worker:
    """Trains and tests what one process has of a net: a pipeline's stages, or a reference.

    Args:
        steps: lowest block first.
        observers: of this process.
        phases: the clock of each step's work, by its lowest block; those without have one of their own.
    """

    def __init__(
        self, plan: Plan, steps: Sequence[Step], post: Post, observers: Observers, phases: Mapping[int, Phases]
    ) -> None:
        self.plan, self.observers = plan, observers
        self.steps = {step.index: step for step in steps}
        self.post, self._inbox, self._timeline = post, post.inbox, observers.timeline
        self._dtype = DTYPES[plan.config.dtype]
        self._phases, self._untimed = phases, Phases(0, Timeline())
        self._sent: deque[tuple[int, int, Transfer]] = deque()
        """Findings on their way to the host, of a block and batch, oldest first."""
        waits = {j: self._inbox.waits_for(j) is not None for j in self.steps}
        self._agenda = Agenda(
            {j: (plan.windows[j], waits[j]) for j in self.steps}, plan.topology.replicas > 1, plan.method.every
        )
        self._eager = plan.config.feedback.policy == "eager"
        self._end = 0
        self._first: int | None = None
        """The first training batch since the pipeline was drained; None while testing."""

    def train(
        self,
        epoch: int,
        batches: int,
        source: Source | None,
        indices: range | None = None,
        stop: Callable[[], bool] = never,
    ) -> int:
        """Train for one epoch of `batches` batches, or a part of it, and drain the pipeline.

        Args:
            source: the images, for whoever holds block 0.
            indices: which batches of the epoch, without gaps; all if None.
            stop: asked by whoever holds block 0 as each batch sets out: drain after this one, and end? The answer
                travels with the batch, so that every block ends at the same one.

        Returns:
            The index of the first batch that was not trained.

        Raises:
            RunError: another process is gone, silent or wrong, or a number here is not finite.
        """
        indices, start, parts = indices or range(batches), epoch * batches, self.plan.parts
        self._end = start + indices.stop
        ids = range((start + indices.start) * parts, self._end * parts)
        self._inbox.begin(ids)
        self._first = ids.start
        self._agenda.train(ids)
        whole: tuple[Tensor, ...] = ()

        def first(number: int) -> Batch:
            nonlocal whole
            assert source is not None, "the process of block 0 has the images"
            batch, part = divmod(number, parts)
            if part == 0:
                whole = source(epoch, batch - start)
            x, labels = (each.chunk(parts)[part] for each in whole)
            return Batch(number, epoch, True, x, labels, drain=part == parts - 1 and stop())

        self._run(first, self._timeline)
        self._complete_twins()
        return self._end - start

    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None:
        """Send the test set through; arguments and errors as for `train`."""
        self._agenda.test(batches)
        self._first = None

        def first(batch: int) -> Batch:
            assert source is not None, "the process of block 0 has the images"
            return Batch(batch, epoch, False, *source(epoch, batch))

        self._run(first, Timeline())

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that each block here has learnt, by block and name: all there is to save of a drained pipeline."""
        return {block: parts for step in self.steps.values() for block, parts in step.trained().items()}

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        self.post.close()

    def _run(self, first: Callable[[int], Batch], timeline: Timeline) -> None:
        """Do everything on the agenda; `first` makes the batches of block 0, and `timeline` takes the waits."""
        self.post.streams.begin()
        while choices := self._agenda.first():
            self._tell_arrived()
            began = time.monotonic_ns()
            block, action = self._next(choices)
            if timeline.on and time.monotonic_ns() - began > SHORT:
                kind = WAITS[isinstance(action, Apply)]
                timeline.add(kind, block, action.batch, began, self._awaited(block, action))
            if isinstance(action, Forward):
                self._forward(block, action.batch, first)
            else:
                self._apply(block)
                self._agenda.done(block)
        self._tell_arrived(waiting=True)
        self.post.streams.end()

    def _weights_for(self, block: int, batch: int) -> int:
        """The last weights that the twin of a block has when it runs a training batch: those that the blocks above have
        made when their readings are those that the block itself has applied. A drained pipeline has them all."""
        return -1 if self._first is None else max(self._first, batch + 1 - self.plan.windows[block])

    def _take_weights(self, block: int, batch: int) -> None:
        for weights in self._inbox.take_weights(block, batch):
            self._follow(block, weights, self._phases.get(block, self._untimed))

    def _complete_twins(self) -> None:
        """Wait for all weights that are on their way in a drained pipeline: they are saved with the twins."""
        blocks, end = list(self.steps), self._end * self.plan.parts
        try:
            self._inbox.wait(
                lambda: all(self._inbox.has_weights(j, end) for j in blocks) or None, self.plan.config.deadline
            )
        except TimeoutError:
            late = next(j for j in blocks if not self._inbox.has_weights(j, end))
            sender = self._inbox.awaited_weights(late, end)
            what = f"nothing arrived for {self.plan.config.deadline:g} s; waiting: block {late} for weights of block {sender}"
            raise StalledError(what) from None
        for block in blocks:
            self._take_weights(block, end)

    def _forward(self, block: int, expected: int, first: Callable[[int], Batch]) -> None:
        while self._eager and self._inbox.has_feedback(block):
            self._agenda.applied(block, self._apply(block))
        self._take_weights(block, self._weights_for(block, expected))
        batch = self._inbox.take_batch(block) if self._inbox.holds(block) else first(expected)
        if batch.training and not batch.extra:
            self.observers.metrics.last_batch = batch.id // self.plan.parts
        self._follow(block, batch, self._phases.get(block, self._untimed) if batch.training else self._untimed)
        if batch.extra:
            return  # the step itself is still to come
        self._agenda.done(block)
        if batch.drain:
            self._agenda.drain(block, batch.id)
            self._end = batch.id // self.plan.parts + 1

    def _apply(self, block: int) -> int:
        """Apply the oldest readings, or gradient, that wait for a block; returns their batch."""
        found = self._inbox.take_feedback(block)
        self._follow(block, found, self._phases.get(block, self._untimed))
        return found.batch

    def _follow(self, block: int, given: Given, phases: Phases) -> None:
        """Run a step: post what leaves the block as soon as it is there, and tell the observers the rest."""
        with self.post.streams.work(block):
            if isinstance(given, Batch):
                given = self.post.streams.brought(block, given, self._dtype)
            self._run_step(block, given, phases)

    def _run_step(self, block: int, given: Given, phases: Phases) -> None:
        batch = given.id if isinstance(given, Batch) else given.batch
        phases.begin()
        for message in self.steps[block].run(given):
            if isinstance(message, Batch):
                if not message.extra or self._inbox.holds(block + 1):  # an extra step's output stays in the process
                    self.post.up(block, message)
                    phases.end("send", batch, block + 1)
            elif isinstance(message, Gradient):
                self.post.down(message)
                phases.end("reply", batch, message.receiver)
            elif isinstance(message, Weights):
                self.post.weights(message)
                phases.end("reply", batch, message.receiver)
            elif isinstance(message, Findings):
                self._sent.append((block, batch, message.send()))
                self._tell_arrived()
            elif isinstance(message, Worked):
                phases.end(message.kind, batch)
            else:
                self.observers.observe(message)
            phases.begin()

    def _tell_arrived(self, *, waiting: bool = False) -> None:
        """Pass on what findings say that have arrived; wait for all, or for those of the batch before a block's newest."""
        while self._sent and (waiting or len(self._sent) > len(self.steps) or self._sent[0][-1].arrived):
            block, batch, transfer = self._sent.popleft()
            phases = self._phases.get(block, self._untimed)
            for message in transfer.read():
                if isinstance(message, Feedback):
                    phases.begin()
                    self.post.back(message)
                    phases.end("reply", batch, message.receiver)
                else:
                    self.observers.observe(message)

    def _next(self, choices: Sequence[tuple[int, Action]]) -> tuple[int, Action]:
        """The first of the choices that can go on, once there is one."""
        if not any(map(self._can_go_on, choices)):
            self._tell_arrived(waiting=True)  # nothing else to do, and others may wait for what they say
        deadline = self.plan.config.deadline
        for _ in range(PATIENCE):
            try:
                return self._inbox.wait(lambda: next(filter(self._can_go_on, choices), None), deadline / PATIENCE)
            except TimeoutError:
                self._ask(choices)
        waits = "; ".join(f"block {block} for {self._described(block, action)}" for block, action in choices)
        raise StalledError(f"nothing arrived for {deadline:g} s; waiting: {waits}")

    def _can_go_on(self, choice: tuple[int, Action]) -> bool:
        block, action = choice
        if isinstance(action, Forward):
            there = not self._inbox.holds(block) or self._inbox.has_batch(block)
            return there and self._inbox.has_weights(block, self._weights_for(block, action.batch))
        return self._inbox.has_feedback(block)

    def _ask(self, waiting: Sequence[tuple[int, Action]]) -> None:
        """Ask for the readings that are waited for: the message may be lost, with none after it to show that."""
        for block, action in waiting:
            if isinstance(action, Apply) and (request := self._inbox.overdue_feedback(block)):
                self.post.ask(request)

    def _awaited(self, block: int, action: Action) -> int:
        """The block whose message an action waits for; for the images of block 0, -1."""
        if isinstance(action, Forward) and not self._inbox.has_weights(block, self._weights_for(block, action.batch)):
            return self._inbox.awaited_weights(block, self._weights_for(block, action.batch))
        sender = block - 1 if isinstance(action, Forward) else self._inbox.waits_for(block)
        assert sender is not None
        return sender

    def _described(self, block: int, action: Action) -> str:
        """Message that an action waits for: of which batch, from whom, on which plane, and when something last came there."""
        if isinstance(action, Forward):
            twin_waits = not self._inbox.has_weights(block, self._weights_for(block, action.batch))
            content, plane = ("twin's weights", "feedback") if twin_waits else ("input", "forward")
        else:
            content, plane = self._inbox.described(block)
        heard = self._inbox.last_heard(block, plane)
        return (
            f"its {content} of batch {action.batch} from block {self._awaited(block, action)} ({plane} plane; {heard})"
        )
