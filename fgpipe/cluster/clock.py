"""Distances between the monotonic clocks of the hosts, by round trips between processes.

Processes of one host share CLOCK_MONOTONIC. For another host, one of its processes answers with the time it has; of
several round trips the shortest counts (as in NTP, RFC 5905, section 10). The answer was made within it, so the error
is at most half of it, whatever the ways there and back take.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

ROUNDS = 20


@dataclass(frozen=True)
class Offset:
    """Lead of a process's clock over rank 0's."""

    nanoseconds: int
    uncertainty: int
    """Nanoseconds either way; 0 on the same host."""
    at: int
    """Time of the measurement, by rank 0's clock."""


def offsets(
    rank: int, hosts: Sequence[int], total: Callable[[Tensor], Tensor], now: Callable[[], int] = time.monotonic_ns
) -> list[Offset]:
    """Measure the offset of every rank; collective.

    Args:
        hosts: for each rank, the first rank of its host.
        total: the sum over processes.
        now: this process's clock.
    """
    table = torch.zeros(len(hosts), 3, dtype=torch.int64)
    for leader in sorted(set(hosts)):
        if rank == 0:
            found = _ask(leader, now) if leader else (0, 0, now())
            table[[other for other, first in enumerate(hosts) if first == leader]] = torch.tensor(found)
        elif rank == leader:
            _answer(now)
    return [Offset(*row) for row in total(table).tolist()]


def _ask(leader: int, now: Callable[[], int]) -> tuple[int, int, int]:
    """Offset, uncertainty and when, of the shortest of some round trips to a process."""
    found = []
    for _ in range(ROUNDS):
        theirs = torch.zeros(1, dtype=torch.int64)
        began = now()
        dist.send(theirs, leader)
        dist.recv(theirs, leader)
        ended = now()
        found.append((ended - began, int(theirs) - (began + ended) // 2, ended))
    trip, offset, at = min(found)
    return offset, trip // 2 + 1, at


def _answer(now: Callable[[], int]) -> None:
    for _ in range(ROUNDS):
        time_here = torch.zeros(1, dtype=torch.int64)
        dist.recv(time_here, 0)
        time_here[0] = now()
        dist.send(time_here, 0)


def to_rank_0(time: int, before: Offset, after: Offset) -> int:
    """A time of a process by rank 0's clock, from its offsets at two moments; clocks drift evenly in between."""
    span = after.at - before.at
    passed = (time - before.nanoseconds - before.at) / span if span else 0.0
    return time - before.nanoseconds - round((after.nanoseconds - before.nanoseconds) * passed)
