"""Who holds a block's place: the claim of a process on it, and whether the one before it still lives."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import psutil

from fgpipe.elastic.places import Places
from fgpipe.elastic.store import StoreClient
from fgpipe.errors import LinkError, UserError

SILENCE = 5.0
"""Seconds without a beat after which a member of another host counts as gone."""
POLL = 0.25
"""Seconds between looks at the store."""
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Presence:
    """A process in a block's place, as the store has it."""

    block: int
    generation: int
    forward: str
    """Where it listens for batches; empty for block 0."""
    feedback: str
    """Where it listens for readings; empty if it asks for none."""
    host: str
    pid: int
    began: float
    """When the process began, by its host's clock."""

    @classmethod
    def here(cls, block: int, generation: int, forward: str, feedback: str = "") -> "Presence":
        """That of this process."""
        began = psutil.Process().create_time()
        return cls(block, generation, forward, feedback, _host(), os.getpid(), began)

    @classmethod
    def of(cls, value: dict[str, Any] | None) -> "Presence | None":
        return None if value is None else cls(**value)

    def value(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, as far as that can be seen from here: it was one of this host."""
        if self.host != _host():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.began or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"generation {self.generation} (pid {self.pid} on host {self.host.partition('/')[0]})"


def _host() -> str:
    """The host, and on it the space in which process ids mean something."""
    return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"


def member(block: int) -> str:
    """Name of a presence in the store."""
    return f"member/{block}"


def beat(block: int) -> str:
    """Name of the signs of life of a member in the store."""
    return f"beat/{block}"


def claim(
    store: StoreClient, places: Places, block: int, deadline: float, listen: Callable[[int], tuple[str, str]]
) -> Presence:
    """Take a block's place, as its next generation.

    Args:
        deadline: seconds that the store may be away.
        listen: from the generation to the addresses where this process listens, `forward` and `feedback`.

    Raises:
        UserError: a living process has the place.
        LinkError: there is no store.
    """
    before = _patiently(deadline, lambda: _vacated(store, places, block))
    generation = places.take(block, 1 + (before.generation if before else 0))
    mine = Presence.here(block, generation, *listen(generation))
    was = before.value() if before else None
    if not _patiently(deadline, lambda: store.replace(member(block), was, mine.value())):
        raise _taken(block, "another process, just now")
    return mine


def _patiently(deadline: float, ask: Callable[[], Answer]) -> Answer:
    """The store's answer, once it is there."""
    give_up = time.monotonic() + deadline
    while True:
        try:
            return ask()
        except LinkError:
            if time.monotonic() > give_up:
                raise
            time.sleep(POLL)


def _taken(block: int, by: object) -> UserError:
    allowed = "another block, or this one when that process has ended"
    return UserError(f"elastic.block={block}: its place is taken by {by}: allowed: {allowed}")


def _vacated(store: StoreClient, places: Places, block: int) -> Presence | None:
    """Wait until it is sure that nobody is in a block's place; returns who was the last, if the store knows.

    A living member writes itself into a store that has been restarted, so an empty one is waited for.
    """
    heard, silent_since = None, time.monotonic()
    first = not places.generations(block)
    while True:
        there = Presence.of(store.get(member(block)))
        if (there is not None and there.has_ended) or (there is None and first):
            return there
        if there is not None:
            beats = store.get(beat(block))
            if heard is not None and beats != heard:
                raise _taken(block, there)
            heard = heard or beats
        if time.monotonic() - silent_since > SILENCE:
            return there
        time.sleep(POLL)
