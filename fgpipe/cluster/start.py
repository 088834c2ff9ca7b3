"""The start of a run, before its processes have connections: nobody waits past the deadline, and who is late is named."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from fgpipe.errors import LinkError, first_line

BEAT, POLL = 1.0, 0.1
"""Seconds between signs of life, and between looks for them."""


class Late(LinkError):
    """Processes did not come to a step of the start within the deadline.

    Attributes:
        rank: the first of them.
        speaker: the first of the others, which says it for all.
    """

    def __init__(self, what: str, late: list[int], world_size: int) -> None:
        super().__init__(what, late[0])
        self.speaker = next((rank for rank in range(world_size) if rank not in late), late[0])


class Start:
    """The steps that all processes take, through the rendezvous store."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, deadline: float) -> None:
        """Args:
        deadline: seconds that a process waits at a step for the others.
        """
        self._store, self._rank, self._world_size, self._deadline = store, rank, world_size, deadline

    def meet(self, step: str, name: Callable[[int], str]) -> None:
        """Wait until every process is at this step.

        Args:
            name: what messages call a rank.

        Raises:
            Late: not all came.
            LinkError: the store is gone.
        """
        keys = [f"{step}/{rank}" for rank in range(self._world_size)]
        with self._reaching():
            self._store.set(keys[self._rank], "")
            try:
                self._store.wait(keys, timedelta(seconds=self._deadline))
            except dist.DistStoreError:
                late = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                if late:
                    raise self._late(late, f"{', '.join(map(name, late))} did not come to {step}") from None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Give signs of life to those who wait in `get` for what is worked out here."""
        done = threading.Event()

        def beat() -> None:
            with suppress(dist.DistNetworkError):  # the main thread meets it too
                while not done.wait(BEAT):
                    self._store.add("alive", 1)

        thread = threading.Thread(target=beat, daemon=True, name="signs of life")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def get(self, key: str, rank: int) -> bytes:
        """Wait for what `rank` sets, however long it takes as long as there are signs of life.

        Raises:
            Late: there was none for as long as the deadline.
            LinkError: the store is gone.
        """
        beats, heard = 0, time.monotonic()
        with self._reaching():
            while not self._store.check([key]):  # a wait that is over has PyTorch warn, on stderr
                time.sleep(POLL)
                now = self._store.add("alive", 0)
                if now != beats:
                    beats, heard = now, time.monotonic()
                elif time.monotonic() - heard > self._deadline:
                    raise self._late([rank], f"rank {rank}, which loads the data, gave no sign of life")
            return self._store.get(key)

    def _late(self, ranks: list[int], what: str) -> Late:
        return Late(f"start: {what} within {self._deadline:g} s", ranks, self._world_size)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except dist.DistNetworkError as error:
            raise LinkError(f"start: the rendezvous store is gone: {first_line(error)}") from error
