"""Pipeline of processes in simulated time: a discrete-event model, without clock, sockets and tensors.

A process has one thread, which does one job after another: the first of its highest node's jobs whose message is there,
as `trainers.worker` picks them. A job is work, with messages sent in between. All threads with work share the cores
evenly. A message to another process is copied, leaves after those before it at the link's rate, arrives half a round
trip later (`wire.slow`), and is received by a thread beside the process's own.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from fgpipe.study.simulator.machine import Cores, Machine
from fgpipe.wire.links.header import IN_FLIGHT
from fgpipe.wire.slow import SlowLinks


@dataclass(frozen=True)
class Message:
    """Message that a job waits for, known by its key."""

    key: Hashable
    to: int
    """Process; the sender itself at no cost."""
    size: int
    """Bytes."""
    plane: str
    """`batches`: sent when there is room, received ahead. `gradients`: sent at once, received ahead. `microbatches`: sent at once, received when it is waited for,
    as `torch.distributed.pipelining` does. `scalars`: sent and received at once."""


@dataclass(frozen=True)
class Job:
    """Work on one batch that nothing interrupts."""

    kind: str
    block: int
    batch: int
    needs: Hashable | None
    """Key of a message; None: nothing."""
    steps: tuple[tuple[float, Message | None], ...]
    """Seconds of work, and what is sent then."""


@dataclass(frozen=True)
class Done:
    """Job, and when it was done."""

    job: Job
    process: int
    began: float
    ended: float


@dataclass(eq=False)
class _Process:
    nodes: list[deque[Job]]
    inbox: set[Hashable] = field(default_factory=set)
    thread: "Generator[float | None, None, None] | None" = None
    sleeps: bool = False
    channels: list["_Channel"] = field(default_factory=list)
    """Channels from other processes."""

    def ready(self) -> deque[Job] | None:
        """Find the highest node that can go on."""
        return next((n for n in reversed(self.nodes) if n and (n[0].needs is None or n[0].needs in self.inbox)), None)


@dataclass(eq=False)
class _Channel:
    """One plane from one process to another."""

    sender: _Process
    receiver: _Process
    plane: str
    slow: bool
    free: float = 0.0
    """Time when all that was put has left."""
    leaving: int = 0
    arrived: deque[Message] = field(default_factory=deque)
    moving: bool = False
    """State of the first of them: it is being received."""
    untaken: set[Hashable] = field(default_factory=set)
    """Keys that were received and not taken."""

    def has_room(self) -> bool:
        """Tell whether it has room, as `links.distributed` and `links.slow` do."""
        posted = IN_FLIGHT if self.slow else 0
        return self.plane != "batches" or self.leaving + max(0, len(self.arrived) - posted) < IN_FLIGHT

    def may_receive(self) -> bool:
        if self.plane in ("batches", "gradients"):
            return len(self.untaken) < IN_FLIGHT
        waits = any(node and node[0].needs == self.arrived[0].key for node in self.receiver.nodes)
        return self.receiver.sleeps and waits


class Simulation:
    """One run of programs.

    Args:
        programs: of each process, its nodes' jobs, lowest node first.
        links: between processes.
    """

    def __init__(self, programs: Sequence[Sequence[Iterable[Job]]], links: SlowLinks, machine: Machine) -> None:
        self._links, self._machine, self._cores = links, machine, Cores(machine)
        self._processes = [_Process([deque(jobs) for jobs in nodes]) for nodes in programs]
        self._channels: dict[tuple[int, int, str], _Channel] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number, self._now = count(), 0.0
        self.done: list[Done] = []
        """Jobs in the order of their ends."""
        self.work: list[list[tuple[float, float]]] = [[] for _ in programs]
        """Times when each process began and ended to work, in order; the rest is waiting."""

    def run(self) -> "Simulation":
        """Raises: RuntimeError: a process waits for what never comes."""
        for index, process in enumerate(self._processes):
            process.thread = self._thread(index, process)
            self._resume(process)
        while True:
            at, working = self._events[0][0] if self._events else math.inf, self._cores.next()
            self._now = min(at, working)
            if self._now == math.inf:
                break
            happens = heapq.heappop(self._events)[2] if at <= working else self._cores.pop(self._now)
            happens()
        left = [node[0] for process in self._processes for node in process.nodes if node]
        if left or any(process.sleeps for process in self._processes):
            raise RuntimeError(f"the simulated pipeline stands still before {left}")
        return self

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), happens))

    def _resume(self, process: _Process) -> None:
        """Run a process's thread until it works or sleeps."""
        process.sleeps = False
        assert process.thread is not None
        try:
            seconds = next(process.thread)
        except StopIteration:
            return
        if seconds is not None:
            self._cores.add(self._now, seconds, lambda: self._resume(process))
            return
        process.sleeps = True
        for channel in process.channels:
            self._receive(channel)

    def _wake(self, process: _Process) -> None:
        if process.sleeps:
            self._resume(process)

    def _thread(self, index: int, process: _Process) -> Generator[float | None, None, None]:
        """Yields seconds of work, or None to sleep until something happens."""
        while any(process.nodes):
            node = process.ready()
            if node is None:
                yield None
                continue
            job = node.popleft()
            self._take(process, job.needs)
            began = self._now
            for seconds, message in job.steps:
                yield from self._working(index, seconds)
                if message is not None:
                    yield from self._send(index, process, message)
            self.done.append(Done(job, index, began, self._now))

    def _working(self, index: int, seconds: float) -> Generator[float | None, None, None]:
        if not seconds:
            return
        began = self._now
        yield seconds
        self.work[index].append((began, self._now))

    def _take(self, process: _Process, key: Hashable) -> None:
        process.inbox.discard(key)
        for channel in process.channels:
            if key in channel.untaken:
                channel.untaken.remove(key)
                self._receive(channel)

    def _send(self, index: int, process: _Process, message: Message) -> Generator[float | None, None, None]:
        if message.to == index:
            process.inbox.add(message.key)
            return
        channel = self._channel(index, message)
        if message.plane != "scalars":
            yield from self._working(index, message.size * self._machine.copy)
        while not channel.has_room():
            yield None
        rate = self._links.rate if channel.slow else None
        channel.free = max(channel.free, self._now) + (8 * message.size / rate if rate else 0.0)
        channel.leaving += 1
        self._at(channel.free, lambda: self._left(channel, message))

    def _channel(self, index: int, message: Message) -> _Channel:
        place = (index, message.to, message.plane)
        if place not in self._channels:
            sender, receiver = self._processes[index], self._processes[message.to]
            slow = self._links.sites[index] != self._links.sites[message.to]
            self._channels[place] = channel = _Channel(sender, receiver, message.plane, slow)
            receiver.channels.append(channel)
        return self._channels[place]

    def _left(self, channel: _Channel, message: Message) -> None:
        late = self._links.latency if channel.slow else 0.0
        late += self._machine.scalars if channel.plane == "scalars" else 0.0
        channel.leaving -= 1
        if late:
            self._at(self._now + late, lambda: self._arrive(channel, message))
            self._wake(channel.sender)
        else:
            self._arrive(channel, message)

    def _arrive(self, channel: _Channel, message: Message) -> None:
        if channel.plane == "scalars":
            channel.receiver.inbox.add(message.key)
            self._wake(channel.receiver)
        else:
            channel.arrived.append(message)
            self._receive(channel)

    def _receive(self, channel: _Channel) -> None:
        """Begin with the first message that has arrived, if the receiver lets it: a thread at each end copies it."""
        if channel.moving or not channel.arrived or not channel.may_receive():
            return
        channel.moving, ends = True, [1, 2]

        def copied() -> None:
            ends.pop()
            if not ends:
                self._received(channel)

        fixed = self._machine.message if channel.plane == "microbatches" else 0.0
        for _ in range(2):
            self._cores.add(self._now, channel.arrived[0].size * self._machine.receive + fixed, copied)

    def _received(self, channel: _Channel) -> None:
        key = channel.arrived.popleft().key
        channel.moving = False
        channel.receiver.inbox.add(key)
        channel.untaken.add(key)
        self._wake(channel.receiver)
        self._receive(channel)
        self._wake(channel.sender)
