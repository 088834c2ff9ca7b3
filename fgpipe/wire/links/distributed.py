"""A link between two processes, over `torch.distributed` point to point.

One batch is two messages, and their order is the protocol (docs/protocol.md): a header of int64 with the labels, and
the activation and its lanes, stacked and channels last (gloo refuses strided tensors: the NHWC view is contiguous).

gloo sends nothing before the receiver has said that it is ready, which takes a round trip for each message. So the
receives of a batch are posted while the one before it is still on its way, where its shape is known by then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fgpipe.errors import first_line
from fgpipe.gradients.dual import Tangent
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.timeline import RECEIVE, Timeline
from fgpipe.wire.links.base import Batch, Link
from fgpipe.wire.slow import Delay

MAGIC = 0x66_67_70_69_70_65_01
"""`fgpipe` and the version of the format."""
MAX_DIMENSIONS = 5
FIELDS = 6 + MAX_DIMENSIONS
"""magic, batch id, epoch, flags, R, dimensions of x, their sizes. The labels follow, as many as a training batch has."""
TRAINING, DRAIN = 1, 2
"""Flags."""
IN_FLIGHT = 2
"""Batches that may wait in a sender, and in a receiver."""
TAG = 1
"""Of our messages on gloo; `torch.distributed.pipelining` has 0 between the same processes."""
SOON = 0.01
"""Seconds in which a batch that was delivered is taken if its block has nothing else to do."""


class LinkError(RuntimeError):
    """The other end went away, stayed silent past the deadline, or sent something that is not a batch of ours.

    Attributes:
        rank: of the other end; None if it can be any.
    """

    def __init__(self, what: str, rank: int | None = None) -> None:
        super().__init__(what)
        self.rank = rank


def wire(x: Tensor) -> Tensor:
    """The NHWC view of an activation `[B, C, H, W]`, contiguous if it is channels last; other shapes as they are."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def unwire(x: Tensor) -> Tensor:
    """The inverse of `wire`."""
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


def _on_wire(payload: Tensor, device: torch.device) -> Tensor:
    """The payload where the wire's tensors live; from a GPU to the host by way of pinned memory."""
    if payload.device.type == device.type:
        return payload
    return torch.empty_like(payload, device=device, pin_memory=True).copy_(payload)


class DistributedLink(Link):
    """Sends to the process of the block above. At most two batches wait here; then `send` blocks."""

    def __init__(
        self, block: int, peer: int, samples: int, ledger: Ledger, device: torch.device, delay: Delay | None = None
    ) -> None:
        """
        Args:
            peer: rank of the process of block `block + 1`.
            samples: of a training batch; test batches may have fewer.
            device: where the wire's tensors live.
            delay: makes the link slower than it is.
        """
        self._block, self._peer, self._samples = block, peer, samples
        self._ledger, self._device, self._delay = ledger, device, delay
        self._pending: deque[_Sending] = deque()

    def send(self, batch: Batch) -> None:
        x = wire(batch.x)
        stacked = torch.cat([x, wire(batch.tangent.value)]) if batch.tangent else x.contiguous()
        payload = _on_wire(stacked, self._device)
        lanes = len(batch.tangent.lanes) if batch.tangent else 0
        fields = [
            MAGIC,
            batch.id,
            batch.epoch,
            TRAINING * batch.training | DRAIN * batch.drain,
            lanes,
            batch.x.dim(),
            *batch.x.shape,
        ]
        header = torch.zeros(FIELDS + self._samples, dtype=torch.int64)
        header[: len(fields)] = torch.tensor(fields)
        header[FIELDS : FIELDS + len(batch.labels)] = batch.labels
        messages = [header, payload] if payload.numel() else [header]
        if self._delay is None:
            self._post(batch.name, messages)
        else:
            size = sum(message.nbytes for message in messages)
            self._delay.put(size, partial(self._post, batch.name, messages), room=IN_FLIGHT)
        one = payload.nbytes // (lanes + 1)
        count = self._ledger.count
        count(self._block, self._block + 1, "activations", one)
        if lanes:
            count(self._block, self._block + 1, "tangents", lanes * one)
        count(self._block, self._block + 1, "control", header.nbytes)

    def _post(self, name: str, messages: list[Tensor]) -> None:
        if len(self._pending) == IN_FLIGHT:
            self._wait_for_oldest()
        sending = _Sending(name, time.monotonic(), messages, [])
        try:
            sending.works.extend(dist.isend(message, self._peer, tag=TAG) for message in messages)
        except RuntimeError as error:
            raise self._lost(sending, error) from error
        self._pending.append(sending)

    def _wait_for_oldest(self) -> None:
        sending = self._pending.popleft()
        try:
            for work in sending.works:
                work.wait()
        except RuntimeError as error:
            raise self._lost(sending, error) from error

    def _lost(self, sending: "_Sending", error: Exception) -> LinkError:
        way = f"{sending.name} was on its way to it for {time.monotonic() - sending.began:.1f} s"
        what = f"lost block {self._block + 1} (rank {self._peer}) on the forward plane; {way}: {first_line(error)}"
        return LinkError(what, self._peer)

    def close(self) -> None:
        if self._delay is not None:
            self._delay.close()
        while self._pending:
            self._wait_for_oldest()


class _Sending(NamedTuple):
    """A batch that may not have arrived yet."""

    name: str
    began: float
    """`time.monotonic`."""
    messages: list[Tensor]
    """They must live as long."""
    works: list[dist.Work]


class _Coming(NamedTuple):
    """A batch whose receives are posted."""

    header: Tensor
    work: dist.Work
    payload: Tensor | None
    """None: it is not known yet how large it is."""
    payload_work: dist.Work | None


class Receiver:
    """Receives the batches of the block below into a ring of buffers; in a thread, up to two batches ahead."""

    def __init__(
        self,
        block: int,
        peer: int,
        *,
        shape: tuple[int, ...],
        lanes: tuple[int, ...],
        held: int,
        batches: int,
        dtype: torch.dtype,
        device: torch.device,
        pinned: bool,
        timeline: Timeline,
    ) -> None:
        """
        Args:
            peer: rank of the process of block `block - 1`.
            shape: `[B, ...]` of a training batch's activation; test batches may have fewer samples.
            lanes: the lanes that training batches arrive with.
            held: batches whose input the block may need at one time, the one that it works on included.
            batches: training batches of an epoch.
            dtype, device: of the wire's tensors.
            pinned: in memory that a GPU copies from directly; for a wire on the host of a block on a GPU.
            timeline: of this process.
        """
        self._timeline = timeline
        self._block, self._peer, self._shape, self._lanes, self._batches = block, peer, shape, lanes, batches
        self._new = partial(torch.empty, dtype=dtype, device=device, pin_memory=pinned)
        self._early = device.type == "cpu"
        """Post the payload's receive early too; NCCL's would keep a part of the GPU busy until it comes."""
        self._ring = [self._new(0) for _ in range(held + IN_FLIGHT)]
        self._room: threading.Semaphore | None = None
        self._coming: _Coming | None = None
        self._received = 0
        self._latest, self._arrived = "", 0.0
        """The last batch that came, and when (`time.monotonic`)."""

    def start(self, batches: int, deliver: Callable[[Batch], None], fail: Callable[[Exception], None]) -> None:
        """Start to receive that many batches, and no more, in a thread.

        Args:
            deliver: called with each batch; its tensors live until `held` later ones are taken.
            fail: called with the `LinkError` that ended the thread.
        """
        self._room = threading.Semaphore(IN_FLIGHT)
        arguments = (batches, deliver, fail)
        threading.Thread(target=self._run, args=arguments, daemon=True, name=f"receive-{self._block}").start()

    def taken(self) -> None:
        """The block has taken a batch that was delivered, and needs none but the last `held`."""
        assert self._room is not None
        self._room.release()

    def _run(self, batches: int, deliver: Callable[[Batch], None], fail: Callable[[Exception], None]) -> None:
        assert self._room is not None
        try:
            for _ in range(batches):
                if self._coming is None:
                    self._room.acquire()
                deliver(self.receive())
        except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
            fail(error)

    def receive(self, shape: tuple[int, ...] | None = None) -> Batch:
        """The next batch, received in this thread.

        Args:
            shape: of its activation, if it is not the plan's, and of all that follow in its epoch.

        Raises:
            LinkError: what came is not a batch, or nothing came.
        """
        shape = shape or self._shape
        coming, self._coming = self._coming or self._post(None), None
        self._wait(coming.work)
        began = time.monotonic_ns()
        batch, epoch, flags, samples = self._check(coming.header[:FIELDS].tolist(), shape)
        training, drain = bool(flags & TRAINING), bool(flags & DRAIN)
        lanes = self._lanes if training else ()
        payload, work = coming.payload, coming.payload_work
        if payload is None:
            payload, work = self._post_payload((len(lanes) + 1) * samples, shape)
        ends = drain or (batch + 1) % self._batches == 0
        if training and not ends and (self._room is None or self._room.acquire(timeout=SOON)):
            self._coming = self._post(shape)
        if work is not None:
            self._wait(work, payload)
        stacked = unwire(payload)
        tangent = Tangent(lanes, stacked[samples:]) if lanes else None
        labels = coming.header[FIELDS : FIELDS + samples]
        received = Batch(batch, epoch, training, stacked[:samples], labels, tangent, drain)
        self._latest, self._arrived = received.name, time.monotonic()
        if self._timeline.on and training:
            self._timeline.add(RECEIVE, self._block, batch, began, self._block - 1)
        return received

    def _post(self, shape: tuple[int, ...] | None) -> _Coming:
        """Post the receives of the next batch.

        Args: shape: of its activation, if it is sure to be a training batch.
        """
        header = torch.empty(FIELDS + self._shape[0], dtype=torch.int64)
        work = self._receive(header)
        if shape is None or not self._early:
            return _Coming(header, work, None, None)
        return _Coming(header, work, *self._post_payload((len(self._lanes) + 1) * shape[0], shape))

    def _post_payload(self, samples: int, shape: tuple[int, ...]) -> tuple[Tensor, dist.Work | None]:
        """Its buffer, and what to wait for; nothing comes if it is empty."""
        stacked = torch.empty((samples, *shape[1:]), device="meta")
        payload = self._buffer(wire(stacked).shape)
        return payload, self._receive(payload) if payload.numel() else None

    def _check(self, header: list[int], expected: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Batch id, epoch, flags and number of samples; the rest of a header can only be what the plan says."""
        magic, batch, epoch, flags, lanes, dimensions, samples, *sizes = header
        largest, *shape = expected
        padding = [0] * (MAX_DIMENSIONS - len(expected))
        fits = samples == largest if flags & TRAINING else 1 <= samples <= largest
        for name, is_right in (
            ("magic", magic == MAGIC),
            ("batch id", batch >= 0),
            ("epoch", epoch >= 0),
            ("flags", flags in (0, TRAINING, TRAINING | DRAIN)),
            ("lanes", lanes == (len(self._lanes) if flags & TRAINING else 0)),
            ("shape", fits and dimensions == len(expected) and sizes == shape + padding),
        ):
            if not is_right:
                sender = f"block {self._block - 1} (rank {self._peer})"
                raise LinkError(f"{sender} sent a header with a wrong {name}: {header}", self._peer)
        return batch, epoch, flags, samples

    def _buffer(self, shape: torch.Size) -> Tensor:
        slot = self._received % len(self._ring)
        self._received += 1
        if self._ring[slot].numel() < shape.numel():
            self._ring[slot] = self._new(shape.numel())
        return self._ring[slot][: shape.numel()].view(shape)

    def _receive(self, tensor: Tensor) -> dist.Work:
        try:
            work = dist.irecv(tensor, self._peer, tag=TAG)
        except RuntimeError as error:
            raise self._lost(error) from error
        assert work is not None
        return work

    def _wait(self, work: dist.Work, tensor: Tensor | None = None) -> None:
        """Args: tensor: what it receives, if that may be on a GPU."""
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error
        if (
            tensor is not None and tensor.is_cuda
        ):  # NCCL's wait orders streams, not the host; another thread's stream uses it
            torch.cuda.current_stream().synchronize()

    def _lost(self, error: Exception) -> LinkError:
        last = (
            f"last came {self._latest}, {time.monotonic() - self._arrived:.1f} s ago"
            if self._latest
            else "nothing came yet"
        )
        what = f"lost block {self._block - 1} (rank {self._peer}) on the forward plane; {last}: {first_line(error)}"
        return LinkError(what, self._peer)
