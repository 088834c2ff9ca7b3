"""This process among the others: rendezvous, sums over processes, and who is to blame when the job is ended."""

import ctypes
import itertools
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, its default arguments would keep the group, and its threads, to the end
from torch import Tensor

from fgpipe.cluster.start import Start
from fgpipe.errors import LinkError, UserError, bad_value, one_line
from fgpipe.plan.topology import Topology

Facts = tuple[int | str, ...]
_runs = itertools.count()
"""Runs that this process has begun; every process begins the same ones."""
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Environment variables of torchrun."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""


@dataclass(frozen=True)
class Place:
    """Place of this process, as torchrun tells it; alone without torchrun."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def several_hosts(self) -> bool:
        return self.local_world_size < self.world_size

    @classmethod
    def from_environment(cls) -> "Place":
        """Read torchrun's variables, which are all there, or none: then this process is alone.

        Raises:
            UserError: names one that is without the others, empty or out of range, as one that was left over may be.
        """
        there = [name for name in NUMBERS if name in os.environ]
        if not there:
            return cls(rank=0, world_size=1, local_rank=0, local_world_size=1)
        if missing := [name for name in NUMBERS if name not in os.environ]:
            raise _left_over(there[0], f"only with {', '.join(missing)}")
        rank, world_size, local_rank, local_world_size = map(_whole, NUMBERS)
        if world_size < 1:
            raise _left_over("WORLD_SIZE", "at least 1")
        bounds = {
            "RANK": (0, world_size - 1),
            "LOCAL_WORLD_SIZE": (1, world_size),
            "LOCAL_RANK": (max(0, rank + local_world_size - world_size), min(rank, local_world_size - 1)),
        }
        if world_size > 1:
            bounds["MASTER_PORT"] = (1, 65535)
            if not os.environ.get("MASTER_ADDR"):
                raise _left_over("MASTER_ADDR", "a host")
        for name, (least, most) in bounds.items():
            if not least <= _whole(name) <= most:
                raise _left_over(name, f"{least} to {most}")
        return cls(rank, world_size, local_rank, local_world_size)

    def threads(self, wanted: int | str) -> int:
        """CPU threads of this process; `auto` shares the host's cores among its processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size) if wanted == "auto" else int(wanted)

    def device(self, wanted: str) -> torch.device:
        """The device to compute on. Ranks of a host take its GPUs in turn, and share them if there are fewer.

        Raises:
            UserError: `cuda` is wanted and there is none.
        """
        if wanted == "cuda" and not torch.cuda.is_available():
            raise bad_value("device", wanted, "auto | cpu, as this machine has no GPU that PyTorch can use")
        if wanted == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wire_device(self, device: torch.device) -> torch.device:
        """The device of the forward plane's tensors, as far as this host knows: the GPU if each of its ranks has one, else the
        host's memory."""
        own_gpu = device.type == "cuda" and torch.cuda.device_count() >= self.local_world_size
        return device if own_gpu else torch.device("cpu")


def _whole(name: str) -> int:
    """The number that a variable has."""
    if not re.fullmatch("[0-9]{1,9}", os.environ.get(name, "")):
        raise _left_over(name, "a whole number")
    return int(os.environ[name])


def _left_over(name: str, allowed: str) -> UserError:
    there = " ".join(each for each in NUMBERS if each in os.environ)
    allowed = f"{allowed}, as torchrun sets it; to run in one process, unset {there}"
    error = bad_value(name, os.environ.get(name, ""), allowed)
    error.alone = True
    return error


class Cluster:
    """The processes of a run, or just this one. The store is there at once; `connect` makes the process group."""

    def __init__(self, place: Place, deadline: float = 60.0) -> None:
        """Args: deadline: seconds that a process waits for another one, in the start and later.

        Raises:
            LinkError: there is no rendezvous store where torchrun's variables say.
        """
        self.place, self._deadline = place, deadline
        self.store: dist.Store | None = None
        if place.world_size > 1:
            # The store outlives a run: torchrun keeps it over restarts, and a program may call `train.run` again.
            attempt = f"fgpipe/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_runs)}"
            patience = timedelta(seconds=deadline)
            try:
                shared, _, _ = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=patience))
            except dist.DistError as error:
                where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                raise LinkError(
                    f"start: no rendezvous at {where} (MASTER_ADDR, MASTER_PORT): {one_line(error)}"
                ) from error
            self.store = dist.PrefixStore(attempt, shared)
            self._start = Start(self.store, place.rank, place.world_size, deadline)
            follow_launcher()
        self.run = 0
        self.preempted = False
        """SIGTERM has asked for a last checkpoint (`save_on_sigterm`)."""
        self.leaving = False
        """The last checkpoint is written, or a bad end is being reported: SIGTERM changes nothing, whoever is gone."""
        self.on_end: Callable[[str, int], bool] = lambda cause, rank: False
        """Told the cause, and the rank at fault, when SIGTERM ends the process."""
        self._saves = False
        self.hosts = [0]
        """For each rank, the first rank of its host."""
        self.wire = torch.device("cpu")
        """Device of the forward plane's tensors: the GPU (NCCL) if every rank of every host has its own."""
        self._others: dict[int, int] = {}
        """Rank and pid of the other processes of this host."""
        self._restore: Callable[[], object] = lambda: None

    def loading(self) -> AbstractContextManager[None]:
        """Show that this process is alive while it loads, or downloads, the data: the others wait in `share`."""
        return nullcontext() if self.store is None else self._start.working()

    def share(self, facts: Facts | None, source: int, name: str) -> Facts:
        """Share what a process found when it loaded the data, numbers and text; the others pass None and wait.

        Args:
            source: the rank of that process.
            name: of these facts.

        Raises:
            LinkError: it gave no sign of life for as long as the deadline.
        """
        if self.store is None:
            assert facts is not None
            return facts
        if facts is not None:
            self.store.set(name, json.dumps(facts))
        return tuple(json.loads(self._start.get(name, source).decode()))

    def connect(self, topology: Topology, wire: torch.device, *, alone: bool = False) -> None:
        """Make the process group, agree on the run's id, and say who is gone when the job is ended.

        Args:
            wire: device of the forward plane's tensors, as far as this host knows; all take the host's memory if one does.
            alone: make a group even if this is the only process.

        Raises:
            LinkError: not every process came within the deadline.
        """
        self.wire = wire
        if self.store is None:
            if alone:
                dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            return
        rank, others = self.place.rank, range(self.place.world_size)
        self.store.set(f"wire/{rank}", wire.type)
        self._start.meet("the process group", lambda other: f"{prefix(topology, other)} rank {other}")
        if any(self.store.get(f"wire/{other}") != b"cuda" for other in others):
            self.wire = torch.device("cpu")
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.wire.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", self.store),
                rank=rank,
                world_size=self.place.world_size,
                timeout=timedelta(seconds=self._deadline),
            )
            if rank == 0:
                self.store.set("run", str(secrets.randbits(63)))
            self.run = int(self.store.get("run"))
        except RuntimeError as error:
            raise LinkError(f"start: no process group within {self._deadline:g} s: {one_line(error)}") from error
        pids = torch.zeros(self.place.world_size, dtype=torch.int64)
        pids[rank] = os.getpid()
        hosts = torch.zeros_like(pids)
        hosts[rank] = rank - self.place.local_rank
        pid_of, self.hosts = self.sum(pids).tolist(), self.sum(hosts).tolist()
        mine = [other for other, host in enumerate(self.hosts) if host == self.hosts[rank] and other != rank]
        self._others = {other: pid_of[other] for other in mine}
        self._topology = topology
        signal.signal(signal.SIGTERM, self._terminate)

    def save_on_sigterm(self) -> None:
        """Have SIGTERM set `preempted`, unless a process of this host is gone: then the job ends at once."""
        self._saves = True
        if self.store is None and threading.current_thread() is threading.main_thread():
            self._restore = partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            signal.signal(signal.SIGTERM, self._terminate)

    def restore_signals(self) -> None:
        """Undo `save_on_sigterm` in a process that may go on after the run."""
        self._restore()

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGTERM, from a person or a scheduler, or from torchrun when a worker has died.

        torchrun knows ranks only: of the survivors of a host the first one names the blocks that are gone.
        """
        if self.leaving:
            return
        gone = self.gone()
        if self._saves and not gone:
            self.preempted = True
            return
        rank, cause = next(iter(gone.items()), (self.place.rank, "SIGTERM, while all processes of its host were alive"))
        if not self.on_end(cause, rank) and all(other in gone for other in self._others if other < self.place.rank):
            for what in gone.values():
                print(f"{what}; the job ends", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + signum)

    def gone(self, patience: float = 0.0) -> dict[int, str]:
        """The other processes of this host that have ended, or are stopped, by rank, with a line about each.

        Args: patience: seconds to wait for one; its connections break a little before it has ended.
        """
        give_up = time.monotonic() + patience
        while True:
            states = {rank: _state(pid) for rank, pid in self._others.items()}
            found = {
                rank: f"{prefix(self._topology, rank)} rank {rank} (pid {self._others[rank]}) is {state}"
                for rank, state in states.items()
                if state is not None
            }
            if found or time.monotonic() >= give_up:
                return found
            time.sleep(0.05)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place.

        Raises:
            LinkError: another process is gone, or silent past the deadline.
        """
        if self.store is not None:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise LinkError(f"a sum over all processes failed: {one_line(error)}") from error
        return tensor

    def collect(self, table: Tensor, rank: int) -> list[Tensor]:
        """Every process's `table` `[any, columns]` of int64, at `rank`; nothing at the others. Collective."""
        rows = torch.zeros(self.place.world_size, dtype=torch.int64)
        rows[self.place.rank] = len(table)
        counts = self.sum(rows).tolist()
        if self.place.rank != rank:
            if len(table):
                dist.send(table, rank)
            return []
        tables = [
            table if other == rank else table.new_empty(count, table.shape[1]) for other, count in enumerate(counts)
        ]
        for other, received in enumerate(tables):
            if other != rank and len(received):
                dist.recv(received, other)
        return tables

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.sum(torch.zeros(1))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def follow_launcher() -> None:
    """SIGTERM for this process when torchrun dies, even by SIGKILL: nobody else would end it."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _state(pid: int) -> str | None:
    """`gone`, `stopped`, or None for a process that goes on."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return {"Z": "gone", "X": "gone", "T": "stopped"}.get(file.read().rpartition(")")[2].split()[0])
    except OSError:
        return "gone"


def prefix(topology: Topology, rank: int | None = None) -> str:
    """`[block 3]`, `[blocks 2-4]`, or `[block 3, replica 1]` where there are several: how lines of a process begin."""
    rank = topology.rank if rank is None else rank
    blocks = topology.of(rank)
    which = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]}-{blocks[-1]}"
    return f"[{which}, replica {topology.replica_of(rank)}]" if topology.replicas > 1 else f"[{which}]"
