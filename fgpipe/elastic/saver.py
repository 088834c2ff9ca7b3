"""Saves one block's own state: copied within its step, written in a thread, whole or not there."""

import threading
from collections.abc import Mapping

from fgpipe.config import Config
from fgpipe.elastic.places import Places, plain
from fgpipe.errors import RunError
from fgpipe.saving.checkpoint import Checkpoints, Manifest, config_hash, write_files


class BlockSaver:
    """The states of one generation of a block, numbered from 1.

    Args: train_batches: of an epoch.
    """

    def __init__(self, places: Places, block: int, generation: int, config: Config, train_batches: int) -> None:
        self._checkpoints = Checkpoints(places.generation(block, generation))
        self._places, self._block, self._keep, self._batches = places, block, config.checkpoint.keep, train_batches
        self._config = plain(config)
        self._hash = config_hash(self._config)
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None
        self.saved: int | None = None
        """Updates in the newest state."""
        self._number = 0

    @property
    def busy(self) -> bool:
        """Whether a state is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, updates: int, position: int, contents: Mapping[str, bytes]) -> None:
        """Begin to write a state, once the one before it is written.

        Args:
            updates: that are in it.
            position: of the block in the stream.
            contents: the files (`checkpoint.serialised`).

        Raises:
            CheckpointError: the one before it could not be written.
        """
        self.wait()
        arguments = (updates, position, contents)
        self._thread = threading.Thread(target=self._write, args=arguments, name="saver")
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything is written; errors as for `save`."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _write(self, updates: int, position: int, contents: Mapping[str, bytes]) -> None:
        try:
            self._number += 1
            files = write_files(self._checkpoints.folder(self._number), contents)
            epoch, batch = divmod(position, self._batches)
            self._checkpoints.publish(
                Manifest(self._number, epoch, batch, None, self._config, self._hash, [], 0.0, 0, files)
            )
            self._checkpoints.prune(self._keep)
            self._places.prune(self._block)
            self.saved = updates
        except RunError as error:
            self._error = error
