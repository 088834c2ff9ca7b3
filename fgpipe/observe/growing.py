"""Files that grow while a run trains; what cannot be written now, as on a full disk, is written with what comes next."""

import io
import os
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fgpipe.saving.outputs import unwritten


class Growing:
    """A file to which whole records are appended; training goes on when they cannot be."""

    def __init__(self, path: Path) -> None:
        """Args: path: a file, or where one is made with the first record."""
        self.path = path
        self._waiting = b""
        self.missing: str | None = None
        """Reason why the file lacks its last records; None if it has all."""

    def add(self, record: bytes) -> None:
        """Append a record, after those that could not be appended before; the first that cannot is said on stderr."""
        self._waiting += record
        before = self.missing
        self.catch_up()
        if self.missing is not None and before is None:
            print(f"fgpipe: warning: {self.missing}; training goes on", file=sys.stderr, flush=True)

    def catch_up(self) -> None:
        """Append what could not be appended before."""
        try:
            self._append()
        except OSError as error:
            self.missing = unwritten(self.path, error)
        else:
            self._waiting, self.missing = b"", None

    def _append(self) -> None:
        """All that waits, or nothing."""
        if not self._waiting:
            return
        with self.path.open("ab", buffering=0) as file:
            whole, left = file.tell(), self._waiting
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(whole)
                raise


class Events:
    """The event file of one process's part of a run, for TensorBoard."""

    def __init__(self, folder: Path, epochs: int) -> None:
        """Begin a file.

        Args: epochs: that are done; TensorBoard drops what older files have of later ones.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # takes a while to import

        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.file = Growing(folder / name)
        begun = Event(step=epochs, session_log=SessionLog(status=SessionLog.START))
        self.file.add(_records([Event(wall_time=time.time(), file_version="brain.Event:2"), begun]))

    def add(self, epoch: int, scalars: dict[str, float]) -> None:
        """Add the scalars of an epoch, by name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self.file.add(_records([Event(wall_time=time.time(), step=epoch, summary=Summary(value=values))]))


def _records(events: Iterable[Any]) -> bytes:
    """Encode events in the format of TensorFlow's record files."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    content = io.BytesIO()
    for event in events:
        RecordWriter(content).write(event.SerializeToString())
    return content.getvalue()
