"""Moments at which a run saves, and how its processes do it together.

Saved is at drained points only, where no batch is in flight: after every `checkpoint.every_steps` batches, at the end
of an epoch that is the best so far or the last, and where `Saver.stop` asks for an extra drain.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fgpipe.cluster.process import Cluster
from fgpipe.cluster.replicas import Replicas
from fgpipe.gradients.optim import Trained
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.plan import Plan
from fgpipe.saving.checkpoint import (
    CheckpointError,
    Checkpoints,
    Manifest,
    Stored,
    config_hash,
    names_of,
    read_block,
    write_block,
)

State = Mapping[int, Mapping[str, Trained]]
"""Everything that each block has learnt, by block and name."""


class Preempted(Exception):
    """SIGTERM came, and the run is saved; the line says where and how it goes on."""


class Saver:
    """The checkpoints of one run, seen from one of its processes; every method but `stop` is collective.

    Args:
        run: the run's folder, which every process can write to.
        resumed: the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        replicas: Replicas,
        run: Path,
        metrics: Metrics,
        ledger: Ledger,
        resumed: Manifest | None,
    ) -> None:
        self._plan, self._cluster, self._replicas, self._run = plan, cluster, replicas, run
        self._metrics, self._ledger = metrics, ledger
        self._config = plan.config.checkpoint
        self._checkpoints = Checkpoints(run)
        self.extra_drains = resumed.extra_drains if resumed else 0
        last = str(plan.method.last)
        self._best = max((line["test"][last]["accuracy"] for line in resumed.epochs), default=-1.0) if resumed else -1.0
        self._saved_at = time.monotonic()
        if self._is_reporter:
            self._checkpoints.discard(after=plan.step)
        if self._config.on:
            cluster.save_on_sigterm()

    @property
    def _is_reporter(self) -> bool:
        return self._cluster.place.rank == self._plan.topology.reporter

    def restore(self, trained: State, folder: Path) -> None:
        """Give the blocks of this process the state in a checkpoint's folder.

        Raises:
            CheckpointError: it cannot be read, or is of another net.
        """
        for block, parts in trained.items():
            counters = read_block(folder, block, parts)
            if self._replicas.index == 0:
                self._metrics.restore(block, counters["metrics"])
                self._ledger.restore(block, counters["traffic"])

    def segment(self, epoch: int, first: int) -> range:
        """The batches of an epoch from `first` on that are trained before the pipeline drains."""
        batches, every = self._plan.facts.train_batches, self._config.every_steps
        if every is None:
            return range(first, batches)
        start = epoch * batches
        return range(first, min(batches, (start + first) // every * every + every - start))

    def stop(self) -> bool:
        """Tell whether to drain after the batch that sets out now: preempted, or the minutes are over, in any replica."""
        wanted = self._cluster.preempted or self._minutes_are_over()
        return self._config.on and self._replicas.any(0, wanted)

    def _minutes_are_over(self) -> bool:
        minutes = self._config.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def after_segment(
        self, trained: State, epoch: int, segment: range, end: int, epochs: list[dict[str, Any]], train_seconds: float
    ) -> None:
        """Save in mid-epoch.

        Args:
            trained: of the blocks of this process, from the trainer.
            end: index of the next batch; before the segment's end if `stop` was heard.
            epochs: the lines of those that are done, known to the reporting process.
            train_seconds: of this epoch so far.

        Raises:
            Preempted: and the run is saved.
            CheckpointError: it is not.
        """
        self.extra_drains += end < segment.stop
        self._save(trained, epoch, end, None, epochs, train_seconds)

    def after_epoch(self, trained: State, epoch: int, test_accuracy: float, epochs: list[dict[str, Any]]) -> None:
        """Save at the end of an epoch, after its evaluation, if it is time or worth it; see `after_segment`."""
        if not self._config.on:
            return
        best, self._best = test_accuracy > self._best, max(test_accuracy, self._best)
        done, every = (epoch + 1) * self._plan.facts.train_batches, self._config.every_steps
        # only the process of block 0 goes by its clock, as in `stop`
        is_source = self._cluster.place.rank == self._plan.topology.source
        wanted = self._cluster.preempted or (is_source and self._minutes_are_over())
        agreed = self._cluster.sum(torch.tensor([int(wanted)])).item()
        if agreed or best or epoch + 1 == self._plan.config.epochs or (every is not None and done % every == 0):
            self._save(trained, epoch + 1, 0, test_accuracy, epochs, 0.0)

    def _save(
        self,
        trained: State,
        epoch: int,
        batch: int,
        test_accuracy: float | None,
        epochs: list[dict[str, Any]],
        train_seconds: float,
    ) -> None:
        """Write this process's blocks, in replica 0; the reporting process completes the checkpoint when all have.

        All processes raise the CheckpointError that one of them meets.
        """
        step = epoch * self._plan.facts.train_batches + batch
        folder = self._checkpoints.folder(step)
        leave = partial(self._replicas.left_to_first, self._plan.topology.local)
        self._metrics.merge(leave)
        self._ledger.merge(leave)
        mine, error = {}, None
        try:
            for block, parts in trained.items() if self._replicas.index == 0 else ():
                mine[block] = self._write(folder, block, parts)
        except CheckpointError as found:
            error = found
        files = self._shared(mine)
        if self._is_reporter and all(stored.bytes for stored in files.values()):
            config = json.loads(json.dumps(asdict(self._plan.config)))
            hashed = config_hash(config)
            manifest = Manifest(
                step, epoch, batch, test_accuracy, config, hashed, epochs, train_seconds, self.extra_drains, files
            )
            try:
                self._checkpoints.publish(manifest)
                self._checkpoints.prune(self._config.keep)
            except CheckpointError as found:
                error = found
        self._saved_at = time.monotonic()
        told = torch.tensor([self._cluster.preempted, error is not None], dtype=torch.int64)
        asked, failed = self._cluster.sum(told).tolist()  # and wait for the reporter
        if failed:
            raise error or _met_elsewhere(folder)
        if asked and step < self._plan.config.epochs * self._plan.facts.train_batches:
            self._cluster.leaving = True
            self._cluster.barrier()
            raise Preempted(f"saved {folder} on SIGTERM; the same command with run_dir={self._run} resume=auto goes on")

    def _write(self, folder: Path, block: int, parts: Mapping[str, Trained]) -> dict[str, Stored]:
        counters = {"metrics": self._metrics.state(block), "traffic": self._ledger.state(block)}
        return write_block(folder, block, parts, counters)

    def _shared(self, mine: Mapping[int, dict[str, Stored]]) -> dict[str, Stored]:
        """The files of all processes, once they are written, of 0 bytes where they cannot be: sizes and hashes travel as sums of numbers."""
        table = torch.zeros(self._plan.method.blocks, 2, 5, dtype=torch.int64)
        for block, files in mine.items():
            for row, stored in zip(table[block], files.values(), strict=True):
                digest = bytes.fromhex(stored.sha256)
                words = [int.from_bytes(digest[at : at + 8], "big", signed=True) for at in range(0, 32, 8)]
                row.copy_(torch.tensor([stored.bytes, *words]))
        files = {}
        for block, rows in enumerate(self._cluster.sum(table).tolist()):
            for name, (size, *words) in zip(names_of(block), rows, strict=True):
                files[name] = Stored(size, b"".join(word.to_bytes(8, "big", signed=True) for word in words).hex())
        return files


def _met_elsewhere(folder: Path) -> CheckpointError:
    error = CheckpointError(f"{folder} cannot be written")
    error.elsewhere = True
    return error
