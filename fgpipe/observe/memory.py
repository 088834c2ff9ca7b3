"""The most memory that this process has held while it trained (`summary.json`)."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

RESETS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first starts the highest resident size (VmHWM in the second) afresh."""


class Memory:
    """Bytes: on the CPU of the whole process (resident size), on a GPU of PyTorch's tensors there.

    What came before training, or in an earlier run of the same process, does not count. Where there is no `RESETS`, it
    does: the peak is then that of the process's life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.before = 0
        """Held when training began."""
        self.peak = 0
        """The most held within `training`."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count a stretch of training; tests and checkpoints do not count."""
        if not self.peak:
            self.before = self._held()
        self._start_afresh()
        yield
        self.peak = max(self.peak, self._highest())

    def _held(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return psutil.Process().memory_info().rss

    def _start_afresh(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                RESETS.write_text("5")

    def _highest(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with suppress(OSError):
            if found := re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE):
                return int(found[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
