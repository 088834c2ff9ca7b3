"""Counts of a block in a file that is mapped into memory: what was counted is there whatever ends the process."""

import mmap
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

from fgpipe.saving import durable

FIELDS = (
    "updates",
    "extra",
    "fallback",
    "skipped",
    "sent",
    "dropped",
    "received",
    "missed",
    "refused",
    "late",
    "lost",
    "restarts",
    "position",
)
"""Of all generations: updates of the block; of these, made on a batch that was used before, and on its own loss in place
of the target; batches whose readings did not come; batches sent up, and dropped as nobody above took them; batches that
came, that were sent and did not, and messages refused; readings of no batch in flight; updates that no saved state has,
of generations that ended; restarts; the batch of the stream after the last one that it took."""
SIZE = 8


class Tally:
    """The counts of one generation of a block, which begin with those of the one before it.

    Several threads may add.
    """

    def __init__(self, path: Path, begin: Mapping[str, int]) -> None:
        """Raises: OSError: the file cannot be made."""
        durable.write(path, b"".join(struct.pack("=q", begin.get(name, 0)) for name in FIELDS))
        with path.open("r+b") as file:
            self._memory = memoryview(mmap.mmap(file.fileno(), SIZE * len(FIELDS))).cast("q")
        self._adding = threading.Lock()

    def __getitem__(self, name: str) -> int:
        return self._memory[FIELDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._memory[FIELDS.index(name)] = value

    def add(self, name: str, number: int = 1) -> None:
        with self._adding:
            self._memory[FIELDS.index(name)] += number

    @property
    def kept(self) -> int:
        """Updates that the block's weights have in them."""
        return self["updates"] - self["lost"]

    def counts(self) -> dict[str, int]:
        return dict(zip(FIELDS, self._memory.tolist(), strict=True))

    @staticmethod
    def read(path: Path) -> dict[str, int]:
        """The counts in a file; none if it is not there, or another version's.

        Raises:
            OSError: it cannot be read.
        """
        content = path.read_bytes() if path.exists() else b""
        numbers = [number for (number,) in struct.iter_unpack("=q", content[: len(content) // SIZE * SIZE])]
        return dict(zip(FIELDS, numbers, strict=True)) if len(numbers) == len(FIELDS) else {}
