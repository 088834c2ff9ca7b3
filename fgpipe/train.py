"""The command: `python -m fgpipe.train` or `torchrun --nproc_per_node=N -m fgpipe.train`, with `key=value` overrides.

Exit codes: 0, done; 1, the run failed; 2, bad input.
"""

import os
import resource
import sys
import time
import warnings
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fgpipe.assembly import DTYPES, DataFacts, Plan, Trainer, build_trainer
from fgpipe.config import CONFIGS, Config, check_world, compose_config, known_keys
from fgpipe.data import Batches, load
from fgpipe.errors import UserError, bad_value
from fgpipe.models.net import Net
from fgpipe.observe.ledger import Ledger, report
from fgpipe.observe.metrics import Metrics, scores, staleness_report
from fgpipe.observe.progress import Progress, closing_table
from fgpipe.observe.record import RunFolder
from fgpipe.runtime.feedback.messages import FeedbackError
from fgpipe.runtime.links.distributed import LinkError
from fgpipe.runtime.process import Cluster, Place, prefix
from fgpipe.runtime.topology import Topology
from fgpipe.runtime.worker import Stalled

REPORT_BY_FIRST = 10.0
"""Seconds that other ranks leave rank 0 to report bad input, before they end too."""


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(usage())
        return 0
    try:
        config = compose_config([argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        else:
            run(config)
    except UserError as error:
        if Place.from_environment().rank == 0:
            print(f"fgpipe: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(REPORT_BY_FIRST)  # torchrun ends the others as soon as the first has ended
        return 2
    except (LinkError, FeedbackError, Stalled):
        sys.stderr.flush()
        os._exit(1)  # threads may wait for peers that are gone
    return 0


def usage() -> str:
    """What `--help` prints."""
    groups = sorted(path for path in CONFIGS.iterdir() if path.is_dir() and path.name != "profile")  # that is fgpipe.grid's
    choices = [f"  {group.name}=" + " | ".join(sorted(file.stem for file in group.glob("*.yaml"))) for group in groups]
    keys = "\n".join(f"  {key}" for key in known_keys())
    lead = "usage: [torchrun --nproc_per_node=N | python] -m fgpipe.train [--cfg] [key=value ...]"
    return f"{lead}\n\n--cfg prints the resolved configuration.\n\ngroups:\n" + "\n".join(choices) + f"\n\nkeys:\n{keys}"


def run(config: Config, net: Net | None = None) -> dict[str, Any]:
    """Train and test a net as `config` says, in this process or as one of torchrun's.

    Args:
        config: from `compose_config`.
        net: blocks and heads of your own; None builds the configuration's ResNet-18.

    Returns:
        The figures of `summary.json` on the reporting process, an empty dict on the others.

    Raises:
        UserError: the configuration cannot be run here, or the data cannot be read.
        LinkError, FeedbackError, Stalled: another process is gone, silent or wrong; a line on stderr says which.
    """
    place = Place.from_environment()
    if net is not None:
        config = replace(config, model=replace(config.model, blocks=len(net.blocks)))
    check_world(config, place.world_size)
    _check_run_dir(config)
    device = place.device(config.device)
    torch.set_num_threads(place.threads(config.threads))
    batches, facts = _load(config) if place.rank == 0 else (None, None)
    cluster = Cluster(place)
    facts = DataFacts(*cluster.share(facts and astuple(facts)))
    plan = Plan.make(config, facts, net, place.rank, place.world_size)
    _prefix_warnings(plan.topology)
    pipelined = config.guess == "end_to_end" and config.tangents == "forward"
    cluster.connect(plan.topology, place.wire_device(device), config.deadline, alone=pipelined)
    return _Run(plan, cluster, device, batches).execute()


class _Run:
    """The epochs of one process, and the report if it is the one that reports."""

    def __init__(self, plan: Plan, cluster: Cluster, device: torch.device, batches: Batches | None) -> None:
        config, facts = plan.config, plan.facts
        self._plan, self._cluster, self._device, self._batches = plan, cluster, device, batches
        self._progress, self._folder = None, None
        if cluster.place.rank == plan.topology.reporter:
            self._progress = Progress(config.epochs, facts.train_batches, config.batch_size)
            self._folder = RunFolder(config)
        on_batch, on_cosines = self._progress and self._progress.batch, self._folder and self._folder.cosines
        self._metrics = Metrics(plan.method.blocks, on_batch, on_cosines)
        self._ledger = Ledger(plan.method.blocks)

    def execute(self) -> dict[str, Any]:
        try:
            trainer = build_trainer(self._plan, self._cluster, self._device, self._metrics, self._ledger)
            seconds = sum(self._epoch(trainer, epoch) for epoch in range(self._plan.config.epochs))
            trainer.close()
        except (LinkError, FeedbackError, Stalled) as error:
            print(f"{prefix(self._plan.topology)} error: {error}", file=sys.stderr)
            raise
        finally:
            if self._progress is not None:
                self._progress.close()
        figures = self._figures(seconds)
        self._cluster.close()
        if self._folder is None:
            return {}
        self._folder.summary(figures)
        print(closing_table(self._table["train"], self._table["test"], self._plan.method.blocks))
        speed = figures["images_per_second"]
        print(f"test accuracy {figures['test_accuracy']:.2%}, {speed:.0f} images/s; see {self._folder.path}", flush=True)
        return figures

    def _epoch(self, trainer: Trainer, epoch: int) -> float:
        """Train and test; returns the seconds from the first process's start of training to the last one's end."""
        facts, source = self._plan.facts, self._batches
        self._cluster.barrier()
        began = time.monotonic()
        if self._progress is not None:
            self._progress.begin_epoch(epoch)
        trainer.train(epoch, facts.train_batches, source and source.train)
        self._cluster.barrier()
        seconds = time.monotonic() - began
        trainer.evaluate(epoch, facts.test_batches, source and (lambda epoch, index: source.test(index)))
        self._table = scores(self._cluster.sum(self._metrics.take()))
        if self._progress is not None and self._folder is not None:
            last = self._plan.method.last
            self._progress.end_epoch(seconds, self._table["train"][last], self._table["test"][last])
            self._folder.epoch(epoch, self._table, seconds)
        return seconds

    def _figures(self, train_seconds: float) -> dict[str, Any]:
        plan, place, total = self._plan, self._cluster.place, self._cluster.sum
        traffic, staleness = total(self._ledger.as_tensor()), total(self._metrics.staleness())
        memory = torch.zeros(place.world_size, dtype=torch.int64)
        memory[place.rank] = _peak_memory(self._device)
        images = plan.config.epochs * plan.facts.train_batches * plan.config.batch_size
        return {
            "device": str(self._device),
            "world_size": place.world_size,
            "blocks_per_process": list(plan.topology.sizes),
            "threads_per_process": torch.get_num_threads(),
            "windows": list(plan.windows),
            "test_accuracy": self._table["test"][plan.method.last].accuracy,
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
            "staleness": staleness_report(staleness),
            "bytes": report(traffic),
            "peak_memory_bytes": total(memory).tolist(),
        }


def _load(config: Config) -> tuple[Batches, DataFacts]:
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES[config.dtype])
    return batches, DataFacts.of(dataset, batches, config.data.size)


def _check_run_dir(config: Config) -> None:
    if config.run_dir is None:
        return
    path = Path(config.run_dir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise bad_value("run_dir", path, "a folder that does not exist yet or is empty")


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prefix_warnings(topology: Topology) -> None:
    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        print(f"{prefix(topology)} warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
