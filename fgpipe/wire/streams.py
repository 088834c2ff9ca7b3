"""Streams of a GPU: what computes, what copies, and what waits for what. On the CPU everything is in order by itself.

    copies    x of batch 0 | x of batch 1 |            copies from and to the host
    block 0                | batch 0      | batch 1    waits for the copy of its batch
    block 1                               | batch 0    waits for the event in `Batch.ready`

No part of this file has run on a GPU; its order of waits is tested with streams that only record (tests/wire/test_streams.py).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fgpipe.wire.batch import Batch


class Streams:
    """Streams of a process on the CPU, where nothing overlaps; the face of `GpuStreams`."""

    def work(self, block: int) -> AbstractContextManager[Any]:
        """Around the work of a block."""
        return nullcontext()

    def brought(self, block: int, batch: Batch, dtype: torch.dtype) -> Batch:
        """The batch for the work of a block: on its device, in its format, its tensors there when its stream gets to them."""
        return batch

    def handed(self, batch: Batch) -> Batch:
        """The batch as a block hands it to another block of the process."""
        return batch

    def to_host(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """A copy on the host, and the event to wait for before its numbers are there; None if they are."""
        return tensor, None

    def begin(self) -> None:
        """Let no block's work begin before everything that was queued so far."""

    def end(self) -> None:
        """Wait until all work is done."""


class GpuStreams(Streams):
    """Streams on a GPU: copies have one to themselves, and each of `apart` has; other blocks share the current one.

    Args:
        apart: blocks with a stream of their own (`streams=true`).
        backend, keep: `torch.cuda`, and what keeps a tensor's memory until a stream has used it.
    """

    def __init__(
        self,
        device: torch.device,
        apart: Sequence[int] = (),
        backend: Any = torch.cuda,
        keep: Callable[[Tensor, Any], None] = Tensor.record_stream,
    ) -> None:
        self._device, self._backend, self._keep = device, backend, keep
        self._shared = backend.current_stream(device)
        self._copies = backend.Stream(device)
        self._apart = {block: backend.Stream(device) for block in apart}
        self._copied: Any = None
        """Event of the newest copy from the host, whose buffer must not be written again before."""

    def work(self, block: int) -> AbstractContextManager[Any]:
        return self._backend.stream(self._of(block))

    def brought(self, block: int, batch: Batch, dtype: torch.dtype) -> Batch:
        stream = self._of(block)
        if batch.x.device != self._device:
            if self._copied is not None:
                self._copied.synchronize()
            with self._backend.stream(self._copies):
                batch = batch.to(self._device, dtype, non_blocking=True)
                self._copied = self._copies.record_event()
            batch = replace(batch, ready=self._copied)
        if batch.ready is not None:
            stream.wait_event(batch.ready)
            for tensor in (batch.x, batch.labels, *([batch.tangent.value] if batch.tangent else [])):
                self._keep(tensor, stream)
        return replace(batch, ready=None)

    def handed(self, batch: Batch) -> Batch:
        return replace(batch, ready=self._backend.current_stream(self._device).record_event())

    def to_host(self, tensor: Tensor) -> tuple[Tensor, Any]:
        self._copies.wait_event(self._backend.current_stream(self._device).record_event())
        with self._backend.stream(self._copies):
            host = torch.empty_like(tensor, device="cpu", pin_memory=self._device.type == "cuda")
            host.copy_(tensor, non_blocking=True)
            self._keep(tensor, self._copies)
            return host, self._copies.record_event()

    def begin(self) -> None:
        for stream in (self._copies, *self._apart.values()):
            stream.wait_stream(self._shared)

    def end(self) -> None:
        self._backend.synchronize(self._device)

    def _of(self, block: int) -> Any:
        return self._apart.get(block, self._shared)
