"""One block's step: forward, guess, tangents, and the update when its scalars are there. It knows no processes.

Where the formulas are: guesses (section 3.1) in `gradients.guesses`, the estimate (eq. 1, 4, 5) in
`gradients.estimator`, tangents in `gradients.dual`, lanes in `gradients.probes`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.gradients import Direction, Push, PushLosses, Tangent, linearize, linearize_losses
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import Memory, View, redraw
from fgpipe.gradients.method import Method
from fgpipe.gradients.optim import Optimizer, Trained, parts, trainable
from fgpipe.gradients.probes import Decoder, Lanes, arrange, read, restrict, widen
from fgpipe.gradients.reverse import gradients
from fgpipe.models.net import deep_copy, input_for
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.precision import Precision
from fgpipe.trainers.finite import check_finite
from fgpipe.trainers.phases import Phases
from fgpipe.wire.feedback.messages import Feedback
from fgpipe.wire.links.base import Batch


@dataclass(eq=False)
class InFlight:
    """What a block keeps of a batch until its scalars arrive."""

    batch: int
    draw: int
    """The number under which its noise is drawn."""
    version: int
    """Updates of the block before its forward pass."""
    directions: Sequence[Tensor] | None
    """None for those that are made again."""
    output: Tensor | None
    """The block's output with its graph (activity space)."""
    weights: nn.Module | None
    """The module that the graph belongs to (activity space)."""


class Stage:
    """A block with its heads and optimizers.

    Args:
        block: the net's block; in the last one's place `head` is the classifier.
        head: the trained head, or None.
        guess_head: the untrained head that the guess differentiates, or None.
        make_optimizer: from modules to an optimizer of their parameters.
        window: batches that may be in flight here.
        run: id of the run, for messages.
        phases: times the work of training, and makes a slow block slow.
        precision: of compute, and of what is sent up.
        replica, replicas: which share of every batch comes here, and of how many.
    """

    def __init__(
        self,
        index: int,
        block: nn.Module,
        head: Any,
        guess_head: Any,
        *,
        method: Method,
        lanes: Lanes,
        make_optimizer: Callable[[list[nn.Module]], Optimizer],
        metrics: Metrics,
        seed: int,
        window: int,
        run: int = 0,
        phases: Phases,
        precision: Precision,
        replica: int = 0,
        replicas: int = 1,
    ) -> None:
        self.index, self.block, self.head, self.guess_head = index, block, head, guess_head
        self._method, self._lanes, self._metrics, self._seed, self._run = method, lanes, metrics, seed, run
        self._replica, self._replicas = replica, replicas
        self._plain, self._projects, self._last = method.is_plain(index), method.projects(index), index == method.last
        self._phase, self._precision = phases, precision
        self._optimizer = make_optimizer([block])
        self._head_optimizer = make_optimizer([head]) if head is not None else None
        self._device = phases.device
        like = torch.empty(0, dtype=precision.dtype, device=self._device)
        self.decoder = Decoder.of(lanes, index, like)
        self.step_rule = StepRule.of(method.decode, method.step, lanes.counts[index], like)
        self.memory = Memory(method.guess.remember(trainable(block)) if self._projects else {})
        self._in_flight: deque[InFlight] = deque()
        self._version = 0
        stashed = method.keeps_graph(index) and window > 1
        self._stash = [_sharing_buffers(block) for _ in range(window)] if stashed else [block]

    def trained(self) -> dict[str, Trained]:
        """What the block has learnt, by name: all its state when no batch is in flight."""
        means = self.step_rule.means | {"prediction": self.decoder.prediction, "guess": self.memory.or_none}
        return parts(self.block, self._optimizer, self.head, self._head_optimizer, means)

    @property
    def in_flight(self) -> tuple[InFlight, ...]:
        """What is kept of each batch whose scalars have not been applied, oldest first."""
        return tuple(self._in_flight)

    def has_applied(self, batch: int) -> bool:
        """The scalars of a batch that was forwarded have been applied, and of all earlier ones."""
        return not self._in_flight or self._in_flight[0].batch > batch

    def train(self, batch: Batch, send: Callable[[Batch], None] | None, reply: Callable[[Feedback], None]) -> None:
        """Run one training batch: output and lanes upwards, scalars to who asked, and what can be learnt at once. An extra
        step is not counted in the metrics.

        Args:
            send: takes the batch for the block above, as early as it is complete; not called by the last block. None for
                an extra step whose output stays here.
            reply: takes the scalars of each block whose target is the loss here.
        """
        self._mode(training=True)
        if not batch.extra:
            self._metrics.last_batch = batch.id
        with self._precision.casting(self._device):
            self._train(batch.to(self._device, self._precision.dtype), send, reply)

    def _train(self, batch: Batch, send: Callable[[Batch], None] | None, reply: Callable[[Feedback], None]) -> None:
        weights = self._weights_for(batch.id)
        with self._phase("forward", batch.id):
            y, push = self._primal(weights, batch)
            y = y.to(self._precision.dtype)
            check_finite(y, self.index, f"activation of {batch.name}")
        above = self._lanes.on_link(self.index)
        if send is not None and not self._last and not above:
            with self._phase("send", batch.id, self.index + 1):
                send(self._outgoing(batch, y, None))
        losses, push_losses = self._own_loss(y, batch)
        directions, head_gradients = self._guess(y, losses, weights, batch) if self._projects else (None, None)
        dy = self._push(push, batch, y, directions)
        if above:  # all lanes of the plan, in its order: the receiver counts on it
            tangent = widen(restrict(dy, above), above, y.detach())
            with self._phase("send", batch.id, self.index + 1):
                send(self._outgoing(batch, y, tangent))
        scalars = self._evaluate_targets(dy, push_losses, batch, reply)
        if self._plain:
            self._descend(losses, weights, batch)
            return
        if self._head_optimizer is not None:
            with self._phase("head", batch.id):
                found = head_gradients or gradients(losses.mean(), self._head_optimizer.parameters)
                self._head_optimizer.step(found, batch.id)
        if not self._projects:
            return
        entry = InFlight(
            batch.id,
            self._draw(batch),
            self._version,
            directions=directions if self._method.guess.kept else None,
            output=y if self._method.space == "activity" else None,
            weights=weights,
        )
        if scalars is None:
            self._in_flight.append(entry)
        else:
            self._update(entry, scalars)

    def _outgoing(self, batch: Batch, y: Tensor, tangent: Tangent | None) -> Batch:
        """The batch for the block above, in the wire's format; apart from the one that came, whose buffer is used again."""
        same = y.untyped_storage().data_ptr() == batch.x.untyped_storage().data_ptr()
        x = y.detach().clone() if same else y.detach()
        return replace(batch, x=x, tangent=tangent).to(self._device, self._precision.wire)

    def _weights_for(self, batch: int) -> nn.Module:
        """The module that runs the batch: the block, or a copy that keeps this batch's weights for its graph."""
        weights = self._stash[batch % len(self._stash)]
        if weights is not self.block:
            with torch.no_grad():
                torch._foreach_copy_(list(weights.parameters()), list(self.block.parameters()))
        return weights

    def _primal(self, weights: nn.Module, batch: Batch) -> tuple[Tensor, Push | None]:
        guessing = self._projects and (self._method.space == "activity" or self._method.guess.head is not None)
        with torch.set_grad_enabled(self._plain or guessing):
            if batch.tangent is None and not self._projects:
                return weights(input_for(weights, batch.x)), None
            return linearize(weights, batch.x)

    def _own_loss(self, y: Tensor, batch: Batch) -> tuple[Tensor | None, PushLosses | None]:
        """The trained head's losses `[B]`, and their push if lanes are read here; they reach into the block where its
        gradient or guess comes from them."""
        if self.head is None:
            return None, None
        attached = self._plain or (self._projects and self._method.guesses_by_trained_head)
        with self._phase("loss", batch.id), torch.enable_grad():
            losses, logits, push = linearize_losses(self.head, y if attached else y.detach(), batch.labels)
            check_finite(losses, self.index, f"loss of {batch.name}")
        if not batch.extra:
            self._metrics.record(self.index, True, losses, logits, batch.labels)
        return losses, push if self._lanes.read_at(self.index) else None

    def _guess(
        self, y: Tensor, losses: Tensor | None, weights: nn.Module, batch: Batch
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        """The directions and, where the same backward pass gives it, the gradient of the trained head."""
        places = list(trainable(weights).values()) if self._method.space == "weight" else [y]
        of_head: Sequence[Tensor] | None = None

        def gradient() -> Sequence[Tensor]:
            nonlocal of_head
            if self.guess_head is None:
                both = gradients(losses.mean(), [*places, *self._head_optimizer.parameters])
                of_head = both[len(places) :]
                return both[: len(places)]
            redraw(self.guess_head, self._method.guess, self._seed, self.index, batch.draw)
            with torch.enable_grad():
                guess_losses, _ = self.guess_head.losses(input_for(self.guess_head, y), batch.labels)
            return gradients(guess_losses.mean(), places)

        with self._phase("guess", batch.id):
            return self._method.guess.propose(self._view(places, self._draw(batch), gradient)), of_head

    def _view(self, places: Sequence[Tensor], draw: int, gradient: Callable[[], Sequence[Tensor]]) -> View:
        return View(places, (self._seed, self.index, draw), gradient, self.memory.tensors)

    def _push(self, push: Push | None, batch: Batch, y: Tensor, directions: Sequence[Tensor] | None) -> Tangent | None:
        """The lanes at the block's output: those from below, and the block's own probes."""
        if push is None:
            return None
        with self._phase("push", batch.id):
            dy = self._push_lanes(push, batch, y, directions)
            if dy is None:
                return None
            value = dy.value.to(self._precision.dtype)
            check_finite(value, self.index, f"tangent of {batch.name}")
            return Tangent(dy.lanes, value)

    def _push_lanes(self, push: Push, batch: Batch, y: Tensor, directions: Sequence[Tensor] | None) -> Tangent | None:
        if directions is None:
            return push(batch.tangent, {})
        carriers = self._lanes.carriers(self.index, self._draw(batch), y)
        if self._method.space == "activity":
            return self._method.guess.insert(push(batch.tangent, {}), directions[0], carriers, y)
        per_tensor = carriers if self._method.scope == "tensor" else carriers * len(directions)
        named = zip(trainable(self.block), directions, per_tensor, strict=True)
        return push(batch.tangent, {name: Direction(each, lanes) for name, each, lanes in named})

    def _evaluate_targets(
        self, dy: Tangent | None, push_losses: PushLosses | None, batch: Batch, reply: Callable[[Feedback], None]
    ) -> Tensor | None:
        """Send each block below the scalars that it asked for; return `[P, S]` if the block's target is its own loss."""
        wanted = self._lanes.read_at(self.index)
        evaluated = restrict(dy, wanted)
        if evaluated is None or push_losses is None:
            return None
        with self._phase("read", batch.id):
            readings = arrange(evaluated, wanted, read(push_losses(evaluated), self._method.scope))
            check_finite(readings, self.index, f"scalar of {batch.name}")
            decoded = self.decoder.decode(self._draw(batch), readings)
        own = decoded.pop(self.index, None)
        for block, scalars in decoded.items():
            probes = tuple(range(len(scalars)))
            feedback = Feedback(self._run, batch.id, self.index, block, probes, tuple(scalars.flatten().tolist()))
            with self._phase("reply", batch.id, block):
                reply(feedback)
        return own

    def _descend(self, losses: Tensor, weights: nn.Module, batch: Batch) -> None:
        """Plain gradient descent of block and head on their own loss."""
        with self._phase("update", batch.id):
            found = gradients(losses.mean(), [*trainable(weights).values(), *self._head_optimizer.parameters])
            split = len(self._optimizer.parameters)
            self._optimizer.step(found[:split], batch.id)
            self._head_optimizer.step(found[split:], batch.id)

    def apply(self, feedback: Feedback) -> None:
        """Update with the scalars of the oldest batch in flight."""
        entry = self._in_flight.popleft()
        assert entry.batch == feedback.batch, "the mailbox keeps the order of the batches"
        self._metrics.record_staleness(self.index, self._version - entry.version)
        parameter = self._optimizer.parameters[0]
        scalars = torch.tensor(feedback.scalars, dtype=parameter.dtype, device=parameter.device)
        self._update(entry, scalars.view(len(feedback.probes), -1))

    def skip(self, batch: int) -> None:
        """Forget the oldest batch in flight without an update: its scalars are lost."""
        entry = self._in_flight.popleft()
        assert entry.batch == batch, "the mailbox keeps the order of the batches"
        self._metrics.count(self.index, "skipped")

    def _update(self, entry: InFlight, scalars: Tensor) -> None:
        """Apply c g (eq. 4), or what c g gives when it is back-propagated through the block alone (eq. 5)."""
        with self._phase("update", entry.batch):
            estimates = self._estimates(entry, scalars)
            if self.memory.tensors:
                named = dict(zip(trainable(self.block), estimates, strict=True))
                self._method.guess.learn(self.memory.tensors, named)
            self._optimizer.step(estimates, entry.batch)
        self._version += 1

    def _estimates(self, entry: InFlight, scalars: Tensor) -> Sequence[Tensor]:
        method, directions = self._method, entry.directions
        if directions is None:
            places = self._optimizer.parameters if method.space == "weight" else [entry.output]
            directions = method.guess.propose(self._view(places, entry.draw, _no_gradient))
        estimate = method.guess.estimate(directions, scalars, method.scope, self.step_rule)
        if method.space == "weight":
            return estimate
        return gradients(entry.output, list(trainable(entry.weights).values()), estimate[0])

    def _draw(self, batch: Batch) -> int:
        """The number under which noise and codes are drawn: of this share among all of the run's in activity space, so
        that no two samples have the same; of the batch in weight space, so that all replicas try one direction."""
        return batch.draw * self._replicas + self._replica if self._method.space == "activity" else batch.draw

    @torch.no_grad()
    def evaluate(self, batch: Batch, send: Callable[[Batch], None]) -> None:
        """Run one test batch; the head's loss and accuracy go to the metrics."""
        self._mode(training=False)
        with self._precision.casting(self._device):
            self._evaluate(batch.to(self._device, self._precision.dtype), send)

    def _evaluate(self, batch: Batch, send: Callable[[Batch], None]) -> None:
        y = self.block(input_for(self.block, batch.x)).to(self._precision.dtype)
        check_finite(y, self.index, f"activation of {batch.name}")
        if not self._last:
            send(self._outgoing(batch, y, None))
        if self.head is not None:
            losses, logits = self.head.losses(input_for(self.head, y), batch.labels)
            check_finite(losses, self.index, f"loss of {batch.name}")
            self._metrics.record(self.index, False, losses, logits, batch.labels)

    def _mode(self, training: bool) -> None:
        for module in (self.block, self.head):
            if module is not None and module.training != training:
                module.train(training)


def _sharing_buffers(block: nn.Module) -> nn.Module:
    """A copy with parameters of its own that writes the same running statistics."""
    twin = deep_copy(block)
    for own, shared in zip(twin.modules(), block.modules(), strict=True):
        own._buffers = shared._buffers
    return twin


def _no_gradient() -> Sequence[Tensor]:
    raise AssertionError("directions that are not kept are made again of places and key alone")
