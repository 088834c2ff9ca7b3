"""recording.py with a feedback plane that loses, doubles, swaps and delays messages between encoding and socket.

Usage: [torchrun ... | python] faulty.py FOLDER; FOLDER/runs.json is as for recording.py and FOLDER/faults.json has
either the probability of each fault, or `{"lost": [[block, batch], ...]}` for one process: the scalars that never come.
Each process writes what it did to FOLDER/faults-RANK.json: the number of each fault, and the scalars that it dropped.
"""

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import fgpipe.trainers.build
import fgpipe.trainers.session
from fgpipe.wire.feedback.messages import Feedback, Lost, decode
from fgpipe.wire.feedback.zmq import ZmqFeedback
from fgpipe.wire.post import Post
from tests.integration.recording import RANK, Recorded, record

FAULTS = ("drop", "duplicate", "reorder", "delay")
DELAY = 0.2
"""Seconds."""


class Faulty(ZmqFeedback):
    """Each message, a request or an answer too, has at most one fault."""

    probabilities: dict[str, float]
    counts: ClassVar[dict[str, int]] = dict.fromkeys(FAULTS, 0)
    dropped: ClassVar[list[tuple[int, int]]] = []
    random = random.Random(f"faults {RANK}")

    def __init__(self, *arguments: Any) -> None:
        self._held: dict[int, bytes] = {}
        self._timers: list[threading.Timer] = []
        super().__init__(*arguments)

    def transmit(self, rank: int, data: bytes) -> None:
        chances = [self.probabilities.get(fault, 0) for fault in FAULTS]
        fault = self.random.choices([*FAULTS, None], [*chances, 1 - sum(chances)])[0]
        if fault is not None:
            self.counts[fault] += 1
        if fault == "drop":
            message = decode(data)
            if isinstance(message, Feedback):
                self.dropped.append((message.receiver, message.batch))
        elif fault == "delay":
            self._timers.append(threading.Timer(DELAY, super().transmit, (rank, data)))
            self._timers[-1].start()
        elif fault == "reorder" and rank not in self._held:
            self._held[rank] = data
        else:
            for _ in range(2 if fault == "duplicate" else 1):
                super().transmit(rank, data)
            if rank in self._held:
                super().transmit(rank, self._held.pop(rank))

    def close(self) -> None:
        for timer in self._timers:
            timer.join()
        super().close()


class Lossy(Post):
    """Knows beforehand what will be lost."""

    lost: ClassVar[set[tuple[int, int]]]

    def back(self, feedback: Feedback) -> None:
        if (feedback.receiver, feedback.batch) in self.lost:
            gone = Lost(feedback.run, feedback.batch, feedback.sender, feedback.receiver)
            self.inbox.deliver_feedback(gone)
        else:
            super().back(feedback)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    faults = json.loads((folder / "faults.json").read_text())
    Lossy.lost = {(block, batch) for block, batch in faults.pop("lost", [])}
    Faulty.probabilities = faults
    for module, name, kind in (
        ("build", "Post", Lossy),
        ("build", "ZmqFeedback", Faulty),
        ("session", "Metrics", Recorded),
    ):
        setattr(getattr(fgpipe.trainers, module), name, kind)
    for name, overrides in json.loads((folder / "runs.json").read_text()).items():
        record(folder, name, overrides)
    (folder / f"faults-{RANK}.json").write_text(json.dumps({**Faulty.counts, "dropped": Faulty.dropped}))
