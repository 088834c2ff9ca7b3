"""What a member knows of the others, and tells them of itself: a thread that talks to the store, for whom nobody waits."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from fgpipe.elastic.presence import SILENCE, Presence, beat, member
from fgpipe.elastic.store import PATIENCE, StoreClient
from fgpipe.errors import LinkError

BEAT = 0.5
"""Seconds between signs of life."""
STOP = "stop"
"""Name of the request to end, in the store: for each block, the last generation that is asked to."""


class Directory:
    """The members of a run, as the store last knew them.

    While the store is away all is as it was; when it is back, this member writes itself into it again.
    """

    def __init__(self, store: StoreClient, mine: Presence, watched: Iterable[int]) -> None:
        """Args: watched: blocks whose members are looked for."""
        self._store, self._mine, self._watched = store, mine, tuple(watched)
        self.say: Callable[[], dict[str, Any]] = dict
        """Asked for what this member says of itself, in the thread."""
        self._members: dict[int, Presence] = {}
        self._beats: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self.superseded: Presence | None = None
        """Who has taken this member's place."""
        self.stop = False
        """Somebody has asked the run to end."""
        self._beat, self._answered = 0, 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="directory")
        self._thread.start()

    def of(self, block: int) -> Presence | None:
        """The newest member that was in a block's place."""
        return self._members.get(block)

    def generation(self, block: int) -> int:
        """The newest generation of a block; 0 if there is none yet."""
        return self._members[block].generation if block in self._members else 0

    def alive(self, block: int) -> bool:
        """Whether a block's member had given a sign of life of late, when the store last answered."""
        return block in self._heard and self._answered - self._heard[block] < SILENCE

    def figures(self, block: int) -> dict[str, Any]:
        """What a block's member has last said of itself."""
        return self._beats.get(block, {})

    def close(self) -> None:
        """Say the last, and stop."""
        self._closing.set()
        self._thread.join(2 * PATIENCE)

    def _run(self) -> None:
        self._exchange()
        while not self._closing.wait(BEAT):
            self._exchange()
        self._exchange()

    def _exchange(self) -> None:
        with suppress(LinkError):  # the store will be back; the members go on without
            self._speak()
            self._listen()

    def _speak(self) -> None:
        there = Presence.of(self._store.get(member(self._mine.block)))
        if there is None:
            self._store.replace(member(self._mine.block), None, self._mine.value())
        elif there != self._mine and there.generation >= self._mine.generation:
            self.superseded = there
            return
        self._beat += 1
        said = {"beat": self._beat, "generation": self._mine.generation, **self.say()}
        self._store.set(beat(self._mine.block), said)

    def _listen(self) -> None:
        for block in self._watched:
            there, said = Presence.of(self._store.get(member(block))), self._store.get(beat(block))
            if there is not None and there.generation >= self.generation(block):
                self._members[block] = there
            if said is not None and said != self._beats.get(block) and said["generation"] >= self.generation(block):
                self._beats[block], self._heard[block] = said, time.monotonic()
        self._answered = time.monotonic()
        stopped = (self._store.get(STOP) or {}).get(str(self._mine.block), 0)
        self.stop = self.stop or stopped >= self._mine.generation
