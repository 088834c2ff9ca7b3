"""The receiving end of a link between two processes: of batches from below, of gradients from above.

gloo sends nothing before the receiver has said that it is ready, which takes a round trip for each message. So on a slow
link the receives of a batch are posted while the one before it is still on its way, where its shape is known by then. On
a fast one they are posted when it has come: gloo's thread at the sender spins as long as another thread of that process
writes, if word of a receive comes meanwhile.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fgpipe.errors import LinkError, first_line
from fgpipe.gradients.dual import Tangent
from fgpipe.observe.timeline import RECEIVE, Timeline
from fgpipe.plan import int8
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import DRAIN, FIELDS, IN_FLIGHT, TAG, TRAINING, Layout, unwire, wire

SOON = 0.01
"""Seconds in which a batch that was delivered is taken if its block has nothing else to do."""


FAR = 0.005
"""Seconds of a wait for a payload whose header has come, by which a link is slow."""


class _Coming(NamedTuple):
    """A batch whose receives are posted."""

    header: Tensor
    work: dist.Work
    payload: Tensor | None
    """None: it is not known yet how large it is."""
    payload_work: dist.Work | None


class Receiver:
    """Receives the batches of the block below into a ring of buffers; in a thread, up to two batches ahead.

    With `gradients`, those of the block above.
    """

    def __init__(
        self,
        block: int,
        peer: int,
        layout: Layout,
        *,
        held: int,
        batches: int,
        timeline: Timeline,
        gradients: bool = False,
    ) -> None:
        """
        Args:
            peer: rank of the process of block `block - 1`; of `block + 1` with gradients.
            held: batches whose input the block may need at one time, the one that it works on included.
            batches: training batches of an epoch.
            timeline: of this process.
        """
        self._block, self._peer, self._layout, self._batches, self._timeline = block, peer, layout, batches, timeline
        self._sender, self._plane = (block + 1, "gradient") if gradients else (block - 1, "forward")
        dtype = torch.int8 if layout.packed else layout.dtype
        self._new = partial(torch.empty, dtype=dtype, device=layout.device, pin_memory=layout.pinned)
        self._early = layout.device.type == "cpu"
        """Post the payload's receive early too; NCCL's would keep a part of the GPU busy until it comes."""
        self._far = not self._early
        """Post receives while the batch before is still on its way."""
        self._ring = [self._new(0) for _ in range(held + IN_FLIGHT)]
        self._room = threading.Semaphore(IN_FLIGHT)
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
        arguments = (batches, deliver, fail)
        name = f"receive-{self._plane}-{self._block}"
        threading.Thread(target=self._run, args=arguments, daemon=True, name=name).start()

    def taken(self) -> None:
        """The block has taken a batch that was delivered, and needs none but the last `held`."""
        self._room.release()

    def _run(self, batches: int, deliver: Callable[[Batch], None], fail: Callable[[Exception], None]) -> None:
        try:
            for _ in range(batches):
                if self._coming is None:
                    self._room.acquire()
                deliver(self._next())
        except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
            fail(error)

    def _next(self) -> Batch:
        coming, self._coming = self._coming or self._post(), None
        self._wait(coming.work)
        began = time.monotonic_ns()
        sender = f"block {self._sender} (rank {self._peer})"
        batch, epoch, flags, samples = self._layout.check(coming.header[:FIELDS].tolist(), sender, self._peer)
        training, drain = bool(flags & TRAINING), bool(flags & DRAIN)
        lanes = self._layout.lanes_of(batch) if training else ()
        payload, work = coming.payload, coming.payload_work
        if payload is None:
            payload, work = self._post_payload(len(lanes) + 1, samples, training)
        following = batch + 1
        ends = drain or following // self._batches != batch // self._batches
        follows = training and not ends and self._room.acquire(timeout=SOON)
        if follows and self._far:
            self._coming = self._post(following if self._early else None)
        if work is not None:
            waits = time.monotonic()
            self._wait(work, payload)
            self._far = not self._early or time.monotonic() - waits > FAR
        if follows and self._coming is None:
            self._coming = self._post(following)
        shape = self._shape(len(lanes) + 1, samples, training)
        if self._layout.packed and payload.numel():
            payload = int8.unpack(payload, shape, len(lanes) + 1)
        stacked = unwire(payload.view(shape))
        tangent = Tangent(lanes, stacked[samples:]) if lanes else None
        labels = coming.header[FIELDS : FIELDS + samples]
        received = Batch(batch, epoch, training, stacked[:samples], labels, tangent, drain)
        self._latest, self._arrived = received.name, time.monotonic()
        if self._timeline.on and training:
            self._timeline.add(RECEIVE, self._block, batch, began, self._sender)
        return received

    def _post(self, early: int | None = None) -> _Coming:
        """Post the receives of the next batch, that of its payload only if it is sure to be the training batch `early`."""
        samples = self._layout.trains_on[0]
        header = torch.empty(FIELDS + self._layout.labels, dtype=torch.int64)
        work = self._receive(header)
        if early is None:
            return _Coming(header, work, None, None)
        return _Coming(header, work, *self._post_payload(len(self._layout.lanes_of(early)) + 1, samples, True))

    def _shape(self, groups: int, samples: int, training: bool) -> torch.Size:
        """Shape of an activation and its lanes, stacked, as the link has it."""
        shape = self._layout.trains_on if training else self._layout.shape
        return wire(torch.empty((groups * samples, *shape[1:]), device="meta")).shape

    def _post_payload(self, groups: int, samples: int, training: bool) -> tuple[Tensor, dist.Work | None]:
        """Its buffer, and what to wait for; nothing comes if it is empty."""
        shape = self._shape(groups, samples, training)
        packed = self._layout.packed and shape.numel()
        payload = self._buffer(torch.Size([int8.packed_size(shape, groups)]) if packed else shape)
        return payload, self._receive(payload) if payload.numel() else None

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
            torch.cuda.current_stream(tensor.device).synchronize()

    def _lost(self, error: Exception) -> LinkError:
        last = (
            f"last came {self._latest}, {time.monotonic() - self._arrived:.1f} s ago"
            if self._latest
            else "nothing came yet"
        )
        what = f"lost block {self._sender} (rank {self._peer}) on the {self._plane} plane; {last}: {first_line(error)}"
        return LinkError(what, self._peer)
