"""One block's step: forward, guess, tangents, and the update when its readings are there. It knows no processes.

The formulas are elsewhere: guesses (section 3.1) in `gradients.guesses`, the estimate (eq. 1, 4, 5) in
`gradients.estimator`, tangents in `gradients.dual`, lanes in `gradients.probes`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from fgpipe.config.rng import drawing
from fgpipe.gradients import Direction, Push, Tangent, linearize
from fgpipe.gradients.distillation import distilling
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.frozen import frozen_logits, frozen_losses
from fgpipe.gradients.guesses import GuessMemory, View, lacking, redraw
from fgpipe.gradients.optim import Trained, trainable
from fgpipe.gradients.probes import Decoder, restrict, widen
from fgpipe.gradients.readings import Read, arrange, linearize_head
from fgpipe.gradients.reverse import gradients
from fgpipe.models.net import input_for, may_draw
from fgpipe.observe.events import Learnt, Skipped, Worked
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import Precision
from fgpipe.trainers.copies import Copies
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.stash import Stash
from fgpipe.trainers.step import Given, Message, Part
from fgpipe.wire.batch import Batch, rounded
from fgpipe.wire.feedback.messages import Feedback, Weights
from fgpipe.wire.gradients import Gradient


@dataclass(eq=False)
class InFlight:
    """Everything that a block keeps of a batch until its readings arrive."""

    batch: int
    draw: int
    """The number under which its noise is drawn."""
    version: int
    """Updates of the block before its forward pass."""
    directions: Sequence[Tensor] | None
    """None for those that are made again."""
    output: Tensor | None
    """The block's output with its graph (activity space)."""
    weights: nn.Module
    """The module that ran the batch, to which the graph belongs."""
    lesson: "Lesson | None" = None
    """For the head that the error goes through, if it is distilled."""


@dataclass(eq=False)
class Lesson:
    """Everything that a head keeps of a batch to learn from its error."""

    logits: Tensor
    """`[B, C]`, with a graph down to `parameters`."""
    parameters: Sequence[Tensor]
    """Copies of the head's, of its forward pass."""
    labels: Tensor


class Stage:
    """A block that learns by a guess, or by its own loss.

    Args: run: id of the run, for messages.
    """

    def __init__(self, plan: Plan, learner: Learner, device: torch.device, run: int = 0) -> None:
        index, method, lanes, window = learner.index, plan.method, plan.lanes, plan.windows[learner.index]
        self.index, self.block, self.head, self.guess_head = index, learner.block, learner.head, learner.guess_head
        self._learner, self._optimizer, self._head_optimizer = learner, learner.optimizer, learner.head_optimizer
        self._method, self._lanes, self._seed, self._run, self._device = method, lanes, plan.config.seed, run, device
        self._share = plan.topology.share
        self._reading = method.guess.reading
        self._plain, self._projects, self._last = method.is_plain(index), method.projects(index), index == method.last
        self._distils_own = method.distils(index) and learner.beside_optimizer is None
        self._precision, self._draws = Precision.of(plan.config), may_draw(self.block)
        like = torch.empty(0, dtype=self._precision.dtype, device=device)
        self.decoder = Decoder.of(lanes, index, like)
        self.step_rule = StepRule.of(method.decode, method.step, lanes.counts[index], like)
        self.memory = GuessMemory(method.guess.remember(trainable(self.block)) if self._projects else {})
        self._in_flight: deque[InFlight] = deque()
        self._version, self._waits = 0, method.waits(index)
        self._copies = Copies(plan, index, self.block, self.head, self.guess_head, run)
        stashed = method.keeps_graph(index) and window > 1
        self._stash = Stash(self.block, window if stashed else 0)

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that the block has learnt, by block and name, when no batch is in flight."""
        means = {**self.step_rule.means, "prediction": self.decoder.prediction, "guess": self.memory.or_none}
        return {self.index: self._learner.trained(means)}

    @property
    def in_flight(self) -> tuple[InFlight, ...]:
        """Everything kept of each batch whose readings have not been applied, oldest first."""
        return tuple(self._in_flight)

    def run(self, given: Given) -> Iterator[Message]:
        """Run a batch, or update with the readings of the oldest one in flight; forget that one if they are lost.

        Yields:
            As early as it is complete: of a training batch the output and lanes for the block above, and findings, with
            the readings for each block whose target is the loss here; of a test batch output and findings; and the events
            of the work.
        """
        if isinstance(given, Batch):
            self._learner.mode(given.training)
            batch = given.to(self._device, self._precision.dtype)
            with self._precision.casting(self._device):
                yield from self._train(batch) if batch.training else self._evaluate(batch)
            if batch.training and not self._waits:
                yield from self._copies.after(batch.id)
        elif isinstance(given, Weights):
            self._copies.take(given)
        else:
            assert not isinstance(given, Gradient), "nobody sends gradients here"
            yield from self._apply(given) if isinstance(given, Feedback) else self._skip()
            yield from self._copies.after(given.batch)

    def _skip(self) -> Iterator[Message]:
        self._in_flight.popleft()
        yield Skipped(self.index)

    def _train(self, batch: Batch) -> Iterator[Message]:
        weights, asks = self._stash.keep(batch.id), self._method.asks(batch.id)
        y, push = self._primal(weights, batch)
        y = y.to(self._precision.dtype)
        findings = Findings(batch)
        findings.finite(y, self.index, f"activation of {batch.name}")
        yield Worked("forward")
        above = self._lanes.on_link(self.index) if asks else ()
        if not self._last and not above:
            yield self._outgoing(batch, y, None)
        losses, read = yield from self._own_loss(y, batch, findings)
        directions, head_gradients, lesson = None, None, None
        if self._projects:
            directions, head_gradients, lesson = yield from self._guess(y, losses, weights, batch)
            yield Worked("guess")
        dy = None
        if push is not None:
            dy = self._push(push, batch, y, directions, findings)
            yield Worked("push")
        if above:  # all lanes of the plan, in its order: the receiver counts on it
            yield self._outgoing(batch, y, widen(restrict(dy, above), above, y.detach()))
        own = yield from self._evaluate_targets(dy, read, batch, findings)
        yield findings
        if self._plain:
            assert losses is not None, "a block that learns by its loss has a head"
            yield from self._descend(losses, weights, batch)
            return
        if self._head_optimizer is not None and losses is not None and not self._distils_own:
            found = head_gradients or gradients(losses.mean(), self._head_optimizer.parameters)
            self._head_optimizer.step(found, batch.id)
            yield Worked("head")
            yield Learnt(self.index, "head", found)
        if not self._projects:
            return
        entry = InFlight(
            batch.id,
            self._draw(batch),
            self._version,
            directions=directions if self._method.guess.kept else None,
            output=y if self._method.space == "activity" else None,
            weights=weights,
            lesson=lesson,
        )
        if not asks:
            yield from self._update(entry, None)
        elif own is None:
            self._in_flight.append(entry)
        else:
            yield from self._update(entry, own)

    def _outgoing(self, batch: Batch, y: Tensor, tangent: Tangent | None) -> Batch:
        """The batch for the block above, in the wire's format; apart from the one that came, whose buffer is used again."""
        same = y.untyped_storage().data_ptr() == batch.x.untyped_storage().data_ptr()
        x = y.detach().clone() if same else y.detach()
        return rounded(replace(batch, x=x, tangent=tangent), self._device, self._precision)

    def _primal(self, weights: nn.Module, batch: Batch) -> tuple[Tensor, Push | None]:
        guessing = self._projects and (self._method.space == "activity" or self._method.guess.head is not None)
        with torch.set_grad_enabled(self._plain or guessing), self._drawing(batch):
            if batch.tangent is None and not (self._projects and self._method.asks(batch.id)):
                return weights(input_for(weights, batch.x)), None
            return linearize(weights, batch.x)

    def _drawing(self, batch: Batch) -> AbstractContextManager[None]:
        """Around a run of the block: its layers draw numbers of the batch's own, or none."""
        number = self._share(batch.draw)
        return drawing(self._seed, "layers", self.index, number) if self._draws else nullcontext()

    def _own_loss(self, y: Tensor, batch: Batch, findings: Findings) -> Part[tuple[Tensor | None, Read | None]]:
        """The trained head's losses `[B]`, and how they are read; they reach into the block where its gradient or guess
        comes from them."""
        if self.head is None:
            return None, None
        attached = self._plain or (self._projects and self._method.guesses_by_trained_head)
        with torch.enable_grad():
            x = y if attached else y.detach()
            losses, logits, read = linearize_head(self.head, x, batch.labels, self._reading, self._method.scope)
            findings.finite(losses, self.index, f"loss of {batch.name}")
        yield Worked("loss")
        if not batch.extra:
            findings.score(self.index, True, losses, logits, batch.labels)
        return losses, read if self._lanes.asking(self.index) and self._method.asks(batch.id) else None

    def _guess(
        self, y: Tensor, losses: Tensor | None, weights: nn.Module, batch: Batch
    ) -> Part[tuple[Sequence[Tensor], Sequence[Tensor] | None, Lesson | None]]:
        """The directions and, where the same backward pass gives it, the gradient of the trained head; what a head is to
        learn from the error. The one beside learns, unless it is distilled."""
        places = list(trainable(weights).values()) if self._method.space == "weight" else [y]
        of_head: Sequence[Tensor] | None = None
        lesson: Lesson | None = None

        def gradient() -> Sequence[Tensor]:
            nonlocal of_head
            if self._method.guesses_by_trained_head:
                assert losses is not None and self._head_optimizer is not None, "the guess has a trained head"
                both = gradients(losses.mean(), [*places, *self._head_optimizer.parameters])
                of_head = both[len(places) :]
                return both[: len(places)]
            redraw(self.guess_head, self._method.guess, self._seed, self.index, batch.draw)
            with torch.enable_grad():
                guess_losses, _ = self.guess_head.losses(input_for(self.guess_head, y), batch.labels)
            return gradients(guess_losses.mean(), places)

        def logits() -> Tensor:
            nonlocal lesson
            through = self.guess_head if self._method.has_copies(self.index) else self.head
            found, copies = frozen_logits(through, y, batch.labels, learns=self._distils_own)
            lesson = Lesson(found, copies, batch.labels) if self._distils_own else None
            return found

        def of_twin() -> Sequence[Tensor]:
            twin_losses, _, _ = frozen_losses(self.guess_head, y, batch.labels)
            return gradients(twin_losses.mean(), places)

        if (optimizer := self._learner.beside_optimizer) is None:
            beside = of_twin if self._method.has_copies(self.index) else lacking("beside", "a second head or a twin")
            view = self._view(places, self._draw(batch), gradient, logits, beside)
            return self._method.guess.proposed(view), of_head, lesson
        second, logits_beside, copies = frozen_losses(self.guess_head, y, batch.labels)
        found = gradients(second.mean(), [*places, *copies], retain_graph=True)
        view = self._view(places, self._draw(batch), gradient, lambda: logits_beside, lambda: found[: len(places)])
        directions = self._method.guess.proposed(view)
        if self._method.distils(self.index):
            return directions, of_head, Lesson(logits_beside, copies, batch.labels)
        optimizer.step(found[len(places) :], batch.id)
        yield Learnt(self.index, "beside", found[len(places) :])
        return directions, of_head, None

    def _view(
        self,
        places: Sequence[Tensor],
        draw: int,
        gradient: Callable[[], Sequence[Tensor]],
        logits: Callable[[], Tensor],
        beside: Callable[[], Sequence[Tensor]],
    ) -> View:
        target = lacking("target", "tangents=oracle, which alone has it")
        return View(
            places, (self._seed, self.index, draw), cache(gradient), logits, beside, target, self.memory.tensors
        )

    def _push(
        self, push: Push, batch: Batch, y: Tensor, directions: Sequence[Tensor] | None, findings: Findings
    ) -> Tangent | None:
        """The lanes at the block's output: those from below, and the block's own probes."""
        dy = self._push_lanes(push, batch, y, directions)
        if dy is None:
            return None
        value = dy.value.to(self._precision.dtype)
        findings.finite(value, self.index, f"tangent of {batch.name}")
        return Tangent(dy.lanes, value)

    def _push_lanes(self, push: Push, batch: Batch, y: Tensor, directions: Sequence[Tensor] | None) -> Tangent | None:
        if directions is None or not self._reading.has_lane:
            return push(batch.tangent, {})
        carriers = self._lanes.carriers(self.index, self._draw(batch), y)
        if self._method.space == "activity":
            return self._method.guess.insert(push(batch.tangent, {}), directions[0], carriers, y)
        per_tensor = carriers if self._method.scope == "tensor" else carriers * len(directions)
        named = zip(trainable(self.block), directions, per_tensor, strict=True)
        own = {name: Direction(each, {lane: float(lanes[lane]) for lane in lanes}) for name, each, lanes in named}
        return push(batch.tangent, own)

    def _evaluate_targets(
        self, dy: Tangent | None, read: Read | None, batch: Batch, findings: Findings
    ) -> Part[Tensor | None]:
        """Send each block below the readings that it asked for; return those of the block's own probes, if it has any."""
        wanted = self._lanes.read_at(self.index)
        evaluated = restrict(dy, wanted)
        if read is None or (evaluated is None and self._reading.has_lane):
            return None
        readings = arrange(evaluated, wanted, read(evaluated))
        findings.finite(readings, self.index, f"reading of {batch.name}")
        decoded = self.decoder.decode(self._draw(batch), readings)
        yield Worked("read")
        own = decoded.pop(self.index, None)
        for block, found in decoded.items():
            findings.tell(found, partial(self._feedback, batch.id, block, tuple(range(len(found)))))
        return own

    def _feedback(self, batch: int, block: int, probes: tuple[int, ...], numbers: Sequence[float]) -> Feedback:
        return Feedback(self._run, batch, self.index, block, probes, tuple(numbers))

    def _descend(self, losses: Tensor, weights: nn.Module, batch: Batch) -> Iterator[Message]:
        """Plain gradient descent of block and head on their own loss."""
        optimizers = [self._optimizer, *filter(None, [self._head_optimizer])]
        found = gradients(losses.mean(), [*trainable(weights).values(), *optimizers[-1].parameters])
        split = len(self._optimizer.parameters)
        for optimizer, part in zip(optimizers, (found[:split], found[split:]), strict=True):
            optimizer.step(part, batch.id)
        yield Worked("update")
        yield Learnt(self.index, "block", found[:split])
        yield Learnt(self.index, "head", found[split:])

    def _apply(self, feedback: Feedback) -> Iterator[Message]:
        """Update with the readings of the oldest batch in flight."""
        entry = self._in_flight.popleft()
        parameter = self._optimizer.parameters[0]
        numbers = torch.tensor(feedback.numbers, dtype=parameter.dtype, device=parameter.device)
        shape = self._method.readings(len(feedback.probes))
        yield from self._update(entry, numbers.view(shape), self._version - entry.version)

    def _update(self, entry: InFlight, readings: Tensor | None, staleness: int | None = None) -> Iterator[Message]:
        """Apply c g (eq. 4), or what c g gives when it is back-propagated through the block alone (eq. 5).

        Args: readings: None where no lane rode with the batch; then c is the running one.
        """
        estimates = self._estimates(entry, readings)
        if self.memory.tensors:
            self._method.guess.learn(self.memory.tensors, dict(zip(trainable(self.block), estimates, strict=True)))
        self._optimizer.step(estimates, entry.batch)
        self._version += 1
        yield Worked("update")
        yield Learnt(self.index, "block", estimates, staleness)
        if entry.lesson is not None and readings is not None:
            yield from self._distil(entry.lesson, readings[0], entry.batch)

    def _distil(self, lesson: Lesson, error: Tensor, batch: int) -> Iterator[Message]:
        """Update the head that the error has gone through."""
        part, optimizer = "beside", self._learner.beside_optimizer
        if optimizer is None:
            part, optimizer = "head", self._head_optimizer
        assert optimizer is not None, "the head is trained"
        found = gradients(lesson.logits, lesson.parameters, distilling(lesson.logits, lesson.labels, error))
        optimizer.step(found, batch)
        yield Worked("head")
        yield Learnt(self.index, part, found)

    def _estimates(self, entry: InFlight, readings: Tensor | None) -> Sequence[Tensor]:
        method, directions, y = self._method, entry.directions, entry.output
        places: Sequence[Tensor] = self._optimizer.parameters if y is None else [y]
        if directions is None:
            no = [lacking(part, "kept = True") for part in ("gradient", "logits", "beside")]
            directions = method.guess.proposed(self._view(places, entry.draw, *no))
        step = self.step_rule
        if readings is None:
            readings, step = places[0].new_zeros(method.readings(self._lanes.counts[self.index])), self.step_rule.recall
        estimate = method.guess.estimate(directions, readings, method.scope, step, places)
        if y is None:
            return estimate
        return gradients(y, list(trainable(entry.weights).values()), estimate[0])

    def _draw(self, batch: Batch) -> int:
        """The number under which noise and codes are drawn: of this share among all of the run's in activity space, so
        that no two samples have the same; of the batch in weight space, so that all replicas try one direction."""
        return self._share(batch.draw) if self._method.space == "activity" else batch.draw

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Iterator[Message]:
        y = self.block(input_for(self.block, batch.x)).to(self._precision.dtype)
        findings = Findings(batch)
        findings.finite(y, self.index, f"activation of {batch.name}")
        if not self._last:
            yield self._outgoing(batch, y, None)
        if self.head is not None:
            losses, logits = self.head.losses(input_for(self.head, y), batch.labels)
            findings.finite(losses, self.index, f"loss of {batch.name}")
            findings.score(self.index, False, losses, logits, batch.labels)
        yield findings
