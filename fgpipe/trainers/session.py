"""One run, from configuration to summary, in this process or as one of torchrun's."""

import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgpipe.cluster.interface import Interface
from fgpipe.cluster.process import Cluster, Place, prefix
from fgpipe.cluster.replicas import Replicas
from fgpipe.cluster.start import Late
from fgpipe.cluster.tracer import Tracer
from fgpipe.config import Config, check_world
from fgpipe.config.rng import generator
from fgpipe.data import Batches
from fgpipe.errors import (
    LinkError,
    OutputError,
    RunError,
    UserError,
    bad_value,
    one_line,
    typed_line,
)
from fgpipe.models.init import materialize
from fgpipe.models.net import Net, fingerprints
from fgpipe.observe.ledger import Ledger, bytes_back, report
from fgpipe.observe.memory import Memory
from fgpipe.observe.metrics import REPLAYS, Metrics, incident_report, scores, staleness_report
from fgpipe.observe.observers import Observers
from fgpipe.observe.progress import Progress, closing_table
from fgpipe.observe.record import RunFolder, scores_of
from fgpipe.plan import modules, placement
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.plan.topology import Topology
from fgpipe.saving import resume, verdict
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest, read_net
from fgpipe.saving.outputs import unwritten
from fgpipe.trainers.build import build_trainer
from fgpipe.trainers.data_owner import met_here_alone, share_data
from fgpipe.trainers.saver import Preempted, Saver, State
from fgpipe.trainers.worker import Worker


def run(config: Config, net: Net | None = None, *, restore: bool = True) -> dict[str, Any]:
    """Train and test a net as `config` says, in this process or as one of torchrun's.

    Afterwards the number of threads, and who shows warnings, are as before. How the C library keeps memory is the
    program's to choose, as it cannot be undone: `fgpipe.train` calls `cluster.allocator.keep_pages`.

    Args:
        config: from `compose_config`.
        net: blocks and heads of your own; None builds the configuration's ResNet-18.
        restore: if `resume=auto` finds the run finished, the net gets the weights of its last checkpoint.

    Returns:
        The figures of `summary.json` on the reporting process, an empty dict on the others.

    Raises:
        UserError: the configuration cannot be run here, the data cannot be read, the run folder cannot be written, or
            another run is writing to it.
        RunError: another process is gone, silent or wrong (LinkError, FeedbackError, StalledError), training has diverged
            (NotFiniteError), or a checkpoint cannot be written or read (CheckpointError); a line on stderr says where.
        Preempted: SIGTERM came, and the run is saved.
        OutputError: the run is done and its figures are printed, but not all of its files could be written.
    """
    place = Place.from_environment()
    if net is not None:
        if config.model.modules is not None:
            raise bad_value("model.modules", config.model.modules, "null with a net of your own, which has its modules")
        config = replace(config, model=replace(config.model, blocks=len(net.blocks)))
    config = modules.resolved(config, max(1, place.world_size // config.replicas))
    check_world(config, place.world_size)
    pipelines = placement.read(config.placement, place.world_size, config.replicas)
    if (done := resume.check_run_dir(config)) is not None:
        if net is not None and restore:
            _restore(net, config, place.device(config.device))
        return _already(done, config) if place.rank == pipelines[0][-1] else {}
    with _undone(place.threads(config.threads)), ExitStack() as claim:
        return _perform(config, net, place, pipelines, claim)


def _perform(
    config: Config, net: Net | None, place: Place, pipelines: Sequence[Sequence[int]], claim: ExitStack
) -> dict[str, Any]:
    """`run`, where there is something to do.

    Args: claim: holds the run folder, in the process that decides which one it is.
    """
    pipelined = config.pipelined
    alone = place.world_size == 1 and not pipelined  # a process group needs one, even of one process
    interface = Interface.find(config.interface, place.several_hosts, alone=alone)
    device = place.device(config.device)
    with _said(place):
        cluster = Cluster(place, config.deadline)
        if cluster.store is None:  # a program may go on after a run that failed; others would be waited for
            claim.callback(cluster.close)
        batches, step, folder, facts = share_data(config, cluster, [ranks[0] for ranks in pipelines], claim)
    source = resume.source(config)
    resumed = Checkpoints(source).manifest(step) if source is not None and step else None
    plan = Plan.make(config, facts, net, place.rank, place.world_size, step, tuple(map(tuple, pipelines)))
    _prefix_warnings(plan.topology)
    with _said(place), interface.confines_gloo():
        cluster.connect(plan.topology, place.wire_device(device), alone=pipelined)
        replicas = Replicas.connect(plan.topology, cluster.wire, config.deadline, pipelined)
    if net is not None and place.world_size > 1:
        _check_same(net, cluster)
    if place.rank == plan.topology.reporter and (
        crossed := placement.wide_boundary(plan.topology, cluster.hosts, plan.link_bytes)
    ):
        print(f"fgpipe: warning: {crossed}", file=sys.stderr, flush=True)
    wide = config.head.name in ("spatial", "strided") or plan.method.guess.second_head is not None
    counted = net is None and (config.model.modules is not None or wide)
    if place.rank == plan.topology.reporter and counted:
        for j, share in modules.dear_heads(config, plan.forward.flops).items():
            line = f"heads of block {j} have {share:.0%} of its FLOPs (head.hidden makes them smaller)"
            print(f"fgpipe: note: {line}", file=sys.stderr, flush=True)
    return _Run(plan, cluster, replicas, device, batches, folder, resumed).execute()


def _check_same(net: Net, cluster: Cluster) -> None:
    """Compare the nets that the processes have built.

    Raises:
        UserError: in every process, if two differ.
    """
    every = torch.zeros(cluster.place.world_size, len(net.blocks), dtype=torch.int64)
    every[cluster.place.rank] = fingerprints(net)
    if len(differing := (cluster.sum(every) != every[0]).nonzero()):
        rank, block = differing[0].tolist()
        raise UserError(
            f"block {block} of the net, or its head, has other weights in process {rank} than in process 0: allowed: the "
            "same net in every process, as after torch.manual_seed(0)"
        )


class _Run:
    """The epochs of one process, and the report if it is the one that reports."""

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        replicas: Replicas,
        device: torch.device,
        batches: Batches | None,
        folder: Path,
        resumed: Manifest | None,
    ) -> None:
        config, facts = plan.config, plan.facts
        self._plan, self._cluster, self._replicas = plan, cluster, replicas
        self._device, self._batches = device, batches
        self._progress: Progress | None = None
        self._folder: RunFolder | None = None
        self._resumed = resumed
        done = resumed.epochs if resumed else []
        self._seconds = sum(line["train_seconds"] for line in done)
        self._unwritten: list[str] = []
        """Lines about results that this process could not write."""
        if cluster.place.rank == plan.topology.reporter:
            self._progress = Progress(config.epochs, facts.train_batches, config.batch_size)
            with met_here_alone():
                self._folder = RunFolder(config, folder, done, resumed.step if resumed else 0)
        on_batch = None if self._progress is None else self._progress.batch
        on_cosines = None if self._folder is None else self._folder.cosines
        self._metrics = Metrics(plan.method.blocks, on_batch, on_cosines)
        self._ledger, self._memory = Ledger(plan.method.blocks), Memory(device)
        self._processor = torch.zeros(2, dtype=torch.int64)
        """Growth of `_processor_time` in training."""
        self._tracer = Tracer(config.trace, cluster, plan.topology)
        self._path, cluster.on_end = folder, self._verdict
        self._observers = Observers(self._metrics, self._ledger, self._tracer.timeline)
        self._saver = Saver(plan, cluster, replicas, folder, self._metrics, self._ledger, resumed)

    def execute(self) -> dict[str, Any]:
        try:
            self._tracer.begin()
            trainer = build_trainer(self._plan, self._cluster, self._device, self._observers, self._replicas)
            first, index, seconds = self._resume(trainer)
            for epoch in range(first, self._plan.config.epochs):
                self._epoch(trainer, epoch, index, seconds)
                index, seconds = 0, 0.0
            trainer.close()
            self._write_trace()
            figures = self._figures(self._seconds, trainer.trained())
            self._report(figures)
            self._cluster.leaving = True
            with suppress(LinkError):  # who dies from here on takes no result along
                self._cluster.barrier()  # the folder is this run's until all is written
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(resume.after_interrupt(self._path)) from interrupt
        except Exception as error:
            self._end_badly(error)
            raise
        finally:
            self._cluster.restore_signals()
            if self._progress is not None:
                self._progress.close()
        self._cluster.close()
        if self._unwritten:
            raise OutputError("; ".join(self._unwritten))
        return figures if self._folder is not None else {}

    def _write_trace(self) -> None:
        path = None if self._folder is None else self._folder.path
        try:
            self._tracer.end(path)
        except OSError as error:
            self._unwritten.append(unwritten(self._path / "trace.json", error))

    def _report(self, figures: Mapping[str, Any]) -> None:
        """Write and print the results, on the reporting process; what cannot be written keeps nothing from the others."""
        if self._folder is None or self._progress is None:
            return
        self._progress.close()
        self._unwritten += self._folder.summary(figures)
        table = closing_table(self._table["train"], self._table["test"], self._plan.method.blocks)
        accuracy, speed = figures["test_accuracy"], figures["images_per_second"]
        try:
            print(f"{table}\ntest accuracy {accuracy:.2%}, {speed:.0f} images/s; see {self._folder.path}", flush=True)
        except OSError as error:
            self._unwritten.append(unwritten(Path("stdout"), error))
        self._folder.page()

    def _end_badly(self, error: Exception) -> None:
        """Say on stderr what ended the run, and write the verdict; bad input and preemption are no bad ends."""
        if isinstance(error, (UserError, Preempted)) or (isinstance(error, CheckpointError) and error.elsewhere):
            return
        self._cluster.leaving = True  # torchrun's SIGTERM must not cut this short
        topology, rank = self._plan.topology, self._cluster.place.rank
        cause = one_line(error) if isinstance(error, RunError) else typed_line(error)
        block = error.block if isinstance(error, RunError) else None
        blocks = topology.local if block is None else (block,)
        if not isinstance(error, CheckpointError):  # `fgpipe.train` says that
            where = prefix(topology) if block is None else f"[block {block}]"
            print(f"{where} error: {cause}", file=sys.stderr, flush=True)
        said = True
        if isinstance(error, RuntimeError) and block is None and not isinstance(error, CheckpointError):
            if gone := self._cluster.gone(patience=1.0):
                rank, cause = next(iter(gone.items()))
                said = False  # but only what came of it
            elif isinstance(error, RunError) and error.rank is not None:
                rank = error.rank
            blocks = topology.of(rank)
        self._verdict(cause, rank, blocks, said=said)

    def _verdict(self, cause: str, rank: int, blocks: Sequence[int] | None = None, said: bool = False) -> bool:
        """Write it, unless another process has; `blocks` are at fault, all of `rank` if None. Is it there?"""
        verdict.write(
            self._path,
            cause,
            rank,
            blocks or self._plan.topology.of(rank),
            reported_by=self._cluster.place.rank,
            last_batch=self._metrics.last_batch,
            resumed=self._plan.config.resume,
            said=said,
        )
        return (self._path / verdict.NAME).exists()

    def _resume(self, trainer: Worker) -> tuple[int, int, float]:
        """Restore what is resumed from; the epoch and index of the next batch, and the seconds spent on that epoch."""
        source, manifest = resume.source(self._plan.config), self._resumed
        if manifest is None or source is None:
            return 0, 0, 0.0
        self._saver.restore(trainer.trained(), Checkpoints(source).folder(manifest.step))
        if self._progress is not None:
            self._progress.resume(manifest.step, self._seconds)
        if manifest.epochs:
            self._table = scores_of(manifest.epochs[-1])
        return manifest.epoch, manifest.batch, manifest.train_seconds

    def _epoch(self, trainer: Worker, epoch: int, index: int, seconds: float) -> None:
        """Train from batch `index` on, and test; `seconds` were spent on the batches before it.

        Seconds count from the first process's start of training to the last one's end, without what saving takes.
        """
        facts, batches = self._plan.facts, self._batches
        source = None if batches is None else batches.train
        if self._progress is not None:
            self._progress.begin_epoch(epoch, seconds)
        while index < facts.train_batches:
            segment = self._saver.segment(epoch, index)
            with self._memory.training():  # between the barriers, no other process sends anything but training batches
                self._cluster.barrier()
                began, worked = time.monotonic(), _processor_time()
                index = trainer.train(epoch, facts.train_batches, source, segment, self._saver.stop)
                self._replicas.average_statistics(self._ledger, trainer.trained())
                self._processor += _processor_time() - worked
            self._cluster.barrier()
            seconds += time.monotonic() - began
            if index < facts.train_batches:
                self._saver.after_segment(trainer.trained(), epoch, segment, index, self._lines, seconds)
        trainer.evaluate(
            epoch, self._plan.test_batches, None if batches is None else lambda _, index: batches.test(index)
        )
        self._table = scores(self._cluster.sum(self._metrics.take()))
        self._seconds += seconds
        last = self._plan.method.last
        if self._progress is not None and self._folder is not None:
            self._progress.end_epoch(seconds, self._table["train"][last], self._table["test"][last])
            self._folder.epoch(epoch, self._table, seconds)
        try:
            self._saver.after_epoch(trainer.trained(), epoch, self._table["test"][last].accuracy, self._lines)
        except CheckpointError as error:
            if epoch + 1 < self._plan.config.epochs:
                raise
            self._unwritten += [] if error.elsewhere else [one_line(error)]  # the results are not lost with it

    @property
    def _lines(self) -> list[dict[str, Any]]:
        """The epochs that are done, as the reporting process knows them."""
        return self._folder.epochs if self._folder is not None else []

    def _figures(self, train_seconds: float, trained: State) -> dict[str, Any]:
        plan, place, total = self._plan, self._cluster.place, self._cluster.sum
        own = self._metrics.staleness()
        traffic, staleness = total(self._ledger.as_tensor()), total(own if self._replicas.index == 0 else own.zero_())
        incidents, replays = total(self._metrics.incidents()), total(self._metrics.incidents(REPLAYS))
        used = torch.zeros(4, place.world_size, dtype=torch.int64)
        used[:, place.rank] = torch.tensor([self._memory.before, self._memory.peak, *self._processor.tolist()])
        before, peak, processor, main_thread = total(used).tolist()
        sizes = torch.zeros(plan.method.blocks, dtype=torch.int64)
        for block, parts in trained.items() if self._replicas.index == 0 else ():
            sizes[block] = sum(each.numel() for each in parts["block"].module.parameters()) if "block" in parts else 0
        batches, copied = plan.config.epochs * plan.facts.train_batches, plan.method.guess.copied_every is not None
        images = batches * plan.config.batch_size
        return {
            "device": str(self._device),
            "world_size": place.world_size,
            "blocks_per_process": list(plan.topology.sizes),
            "replicas": plan.topology.replicas,
            "ranks": list(map(list, plan.topology.pipelines))
            if plan.topology.replicas > 1
            else list(plan.topology.pipeline),
            "threads_per_process": torch.get_num_threads(),
            "windows": list(plan.windows),
            "parameters": total(sizes).tolist(),
            "test_accuracy": self._table["test"][plan.method.last].accuracy,
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
            "resumed_at_step": plan.step,
            "extra_drains": self._saver.extra_drains,
            "staleness": staleness_report(staleness),
            "scalars": incident_report(incidents),
            "replay": incident_report(replays, REPLAYS),
            "bytes": report(traffic),
            "bytes_back_per_batch": bytes_back(traffic, batches),
            **({"weights_back_per_batch": bytes_back(traffic, batches, ["weights"])} if copied else {}),
            "memory_before_training_bytes": before,
            "peak_memory_bytes": peak,
            "processor_seconds": [nanoseconds * 1e-9 for nanoseconds in processor],
            "main_thread_seconds": [nanoseconds * 1e-9 for nanoseconds in main_thread],
        }


def _processor_time() -> Tensor:
    """Nanoseconds, int64 `[2]`: of this process, and of this thread, the main one, alone."""
    return torch.tensor([time.process_time_ns(), time.thread_time_ns()])


@contextmanager
def _said(place: Place) -> Iterator[None]:
    """Around the start: who did not come to it is named on stderr, by one of those who did."""
    try:
        yield
    except LinkError as error:
        if place.rank == (error.speaker if isinstance(error, Late) else place.rank):
            print(f"[rank {place.rank}] error: {one_line(error)}", file=sys.stderr, flush=True)
        raise


@contextmanager
def _undone(threads: int) -> Iterator[None]:
    """Around a run with so many threads: what it changes of the program is as before afterwards."""
    before, show = torch.get_num_threads(), warnings.showwarning
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        warnings.showwarning = show


def _restore(net: Net, config: Config, device: torch.device) -> None:
    """Give a net the weights that a run ended with, in every process.

    Raises:
        UserError: there is no checkpoint of the run's end, or it is of another net.
    """
    run = Path(config.run_dir or "")
    allowed = "another folder, as the run in it is finished, and {} for the net that is given"
    try:
        manifest = Checkpoints(run).newest(
            lambda line: print(f"fgpipe: passed over: {line}", file=sys.stderr, flush=True)
        )
        if manifest is None or (manifest.epoch, manifest.batch) != (config.epochs, 0):
            raise bad_value("run_dir", run, allowed.format("has no checkpoint of its end"))
        for purpose, modules in (("block", net.blocks), ("head", net.heads)):
            for j, module in enumerate(modules):
                materialize(module, generator(config.seed, purpose, j), dtype=DTYPES[config.dtype], device=device)
        read_net(Checkpoints(run).folder(manifest.step), net)
    except CheckpointError as error:
        raise bad_value("run_dir", run, allowed.format(f"its checkpoint cannot be read: {one_line(error)}")) from error


def _already(summary: dict[str, Any], config: Config) -> dict[str, Any]:
    """The answer to a run that `resume=auto` finds finished, on the process that would report."""
    print(f"{config.run_dir} is finished: test accuracy {summary['test_accuracy']:.2%}", flush=True)
    return summary


def _prefix_warnings(topology: Topology) -> None:
    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        print(f"{prefix(topology)} warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show
