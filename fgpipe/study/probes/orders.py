"""Orders of events, read off a timeline: pure functions from events to the batches where an order does not hold.

A lock is a fact about causes, and a timeline has only times. So each check asks for an order that a lock makes
impossible, and a run with a deliberately slow block makes sure that it is no accident when it is there.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fgpipe.observe.timeline import Event


@dataclass(frozen=True)
class Span:
    """Time from first beginning to last end of what a block did with a batch, in nanoseconds; all microbatches."""

    began: int
    ended: int


@dataclass(frozen=True)
class OrderCheck:
    """Outcome of one check on one block."""

    batches: int
    """Number of batches that were looked at."""
    broken: tuple[str, ...]
    """Lines, one for each batch where the order does not hold."""

    @property
    def holds(self) -> bool:
        """Tell whether the order holds for every batch, and there were some."""
        return self.batches > 0 and not self.broken


Spans = Mapping[tuple[str, int], Mapping[int, Span]]
"""Spans by kind and block, then by batch."""


def spans(events: Iterable[Event]) -> Spans:
    """Find when each block did what with each batch."""
    found: dict[tuple[str, int], dict[int, Span]] = defaultdict(dict)
    for event in events:
        batches = found[event.kind, event.block]
        known = batches.get(event.batch, Span(event.began, event.ended))
        batches[event.batch] = Span(min(known.began, event.began), max(known.ended, event.ended))
    return defaultdict(dict, found)


def update_unlocked(found: Spans, block: int) -> OrderCheck:
    """Check that the block's update for a batch begins before the block above has finished its forward pass of it."""
    updates, above = found["update", block], found["forward", block + 1]
    broken = []
    for batch, update in updates.items():
        if batch not in above:
            broken.append(f"batch {batch}: block {block + 1} has no forward pass of it")
        elif update.began >= above[batch].ended:
            late = _ms(update.began - above[batch].ended)
            broken.append(
                f"batch {batch}: block {block} updated {late} after block {block + 1} had finished its forward pass"
            )
    return OrderCheck(len(updates), tuple(broken))


def backward_unlocked(found: Spans, block: int, slow: int) -> OrderCheck:
    """Check that the block's update begins when its scalars are there, and has no part of a backward pass above.

    No backward pass is recorded for any block above (`backward` events are those whose gradient goes to the block
    below); and the slow block above has not finished the update in which it makes its own, inside its process.
    """
    updates, scalars, top = found["update", block], found["scalars", block], found["update", slow]
    backward = {
        batch for (kind, other), batches in found.items() if kind == "backward" and other > block for batch in batches
    }
    broken = []
    for batch, update in updates.items():
        if batch not in scalars:
            broken.append(f"batch {batch}: block {block} updated without scalars")
        elif update.began < scalars[batch].ended:
            broken.append(
                f"batch {batch}: block {block} updated {_ms(scalars[batch].ended - update.began)} before its scalars"
            )
        elif batch in backward:
            broken.append(f"batch {batch}: a block above {block} made a backward pass")
        elif batch not in top or update.began >= top[batch].ended:
            broken.append(f"batch {batch}: block {block} updated when block {slow} had finished its own update")
    return OrderCheck(len(updates), tuple(broken))


def backward_locked(found: Spans, block: int) -> OrderCheck:
    """Check that the block's update for a batch begins only after the gradient from a backward pass above."""
    above = min((other for kind, other in found if kind == "backward" and other > block), default=None)
    updates, gradients = found["update", block], found["backward", above] if above is not None else {}
    broken = []
    for batch, update in updates.items():
        if batch not in gradients:
            broken.append(f"batch {batch}: no block above {block} made a backward pass")
        elif update.began < gradients[batch].ended:
            early = _ms(gradients[batch].ended - update.began)
            broken.append(f"batch {batch}: block {block} updated {early} before the gradient from block {above}")
    return OrderCheck(len(updates), tuple(broken))


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3f} ms"
