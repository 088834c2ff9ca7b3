"""Input of the simulator, measured on this machine: each block's work, and what a message costs.

The work of forward gradients comes from traces of runs in one process, which never waits: a slice counts from the end
of the one before it, so that what is between slices is in them. That of backpropagation is measured on the blocks
themselves, as its pipeline needs other processes. What a message costs comes from a run of two processes in lock-step,
which leaves the machine to it; contention from as many runs at a time as there are cores.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from fgpipe.cluster.allocator import keep_pages
from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.errors import bad_value
from fgpipe.gradients.optim import Optimizer, learning_rate
from fgpipe.observe import trace
from fgpipe.observe.record import commit, machine
from fgpipe.observe.timeline import COMPUTE, RECEIVE, SCALARS, Event
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.saving import durable
from fgpipe.saving.outputs import needed, written
from fgpipe.study.common.runs import quoted
from fgpipe.study.common.series import begin, end, launch
from fgpipe.study.common.split import data_facts
from fgpipe.study.common.synthetic import write_images
from fgpipe.study.contests.contest import COMMON
from fgpipe.study.simulator.machine import Machine
from fgpipe.study.simulator.programs import Costs
from fgpipe.trainers.build import local_stages

METHODS = {
    "local target": ("target=local", "guess=local", "lanes=exact"),
    "global target, random guess": ("target=global", "guess=gaussian"),
    "global target, local guess": ("target=global", "guess=local"),
}
"""Methods of ours, by name; one lane each unless the arguments say otherwise."""
OWN = ["lanes=1", "model.width=0.25"]
"""Settings of a smaller net than that of other contests, as there are many runs."""
DEFAULTS = [*COMMON, *OWN]
WARM, BATCHES = 2, 9
"""Batches of a traced run that do not count, and all."""
PIECES = (4, 32)
"""Microbatches per batch with which backpropagation is measured."""
MOST_COPIES = 8
"""Runs at a time that contention is measured with."""


@dataclass(frozen=True)
class Calibration:
    """Measurements on one machine, for one configuration of the net."""

    arguments: list[str]
    machine: str
    commit: str | None
    cores: int
    costs: dict[str, list[dict[str, float]]]
    """Costs of `METHODS`, by name and block."""
    pieces: list[tuple[int, list[dict[str, float]]]]
    """Pieces of backpropagation: samples of a microbatch, and its costs, by block."""
    contention: float
    copy: float
    receive: float
    scalars: float
    """Time of scalars; these four as `machine.Machine` has them."""
    errors: list[float] = field(default_factory=list)
    """Errors of predictions that were compared with runs on this machine: simulated over measured, less 1."""

    @classmethod
    def load(cls, path: Path, arguments: Sequence[str]) -> "Calibration":
        """Raises: UserError: the file is no calibration, or one for another configuration."""
        try:
            found = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise bad_value("calibration", path, "a file that fgpipe.simulate has written, or a new one") from error
        if found.arguments != list(arguments):
            had = " ".join(found.arguments) or "no other arguments"
            raise bad_value("calibration", path, f"a new file, or the arguments that it was made with: {had}")
        return found

    @classmethod
    def measure(cls, arguments: Sequence[str], folder: Path) -> "Calibration":
        """Measure this machine, which takes one to two minutes.

        Args:
            arguments: of every run, over `DEFAULTS`.
            folder: for runs and images.

        Raises:
            UserError: the arguments cannot be run.
            CalledProcessError: a run has failed.
        """
        keep_pages()  # as runs do
        runs = _Runs(arguments, folder)
        costs = runs.costs()
        hop = runs.hop()
        loaded = runs.loaded_costs()
        return cls(
            list(arguments),
            machine(),
            commit(),
            os.cpu_count() or 1,
            costs,
            [runs.piece(max(2, runs.batch_size // count)) for count in PIECES],
            max(1.0, _total(loaded) / _total(costs["local target"])),
            hop["copy"],
            hop["receive"],
            hop["scalars"],
        )

    def save(self, path: Path) -> None:
        """Raises: OutputError: it cannot be written."""
        with written(path):
            durable.write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def on(self, cores: float) -> Machine:
        """Make the machine, or one like it with so many cores."""
        return Machine(cores, self.contention, self.copy, self.receive, self.scalars)

    def of_piece(self, samples: int) -> Costs:
        """Costs of backpropagation with microbatches of so many samples, on the line through those that were measured.

        Below them a microbatch takes no less than its share of the smaller one.
        """
        (many, dear), (few, cheap) = self.pieces
        share = (samples - few) / (many - few) if many != few else 0.0
        least = min(1.0, samples / few)
        return [
            {kind: max(least * low[kind], low[kind] + share * (high[kind] - low[kind])) for kind in low}
            for high, low in zip(dear, cheap, strict=True)
        ]


class _Runs:
    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._folder = folder.resolve()
        self._common = [*DEFAULTS, f"data.root={quoted(str(self._folder / 'images'))}", *arguments]
        self.batch_size = size = compose_config(self._common).batch_size
        self._common += [f"data.train_samples={BATCHES * size}", f"data.test_samples={size}", "epochs=1"]
        for overrides in METHODS.values():
            compose_config([*self._common, *overrides])
        with needed("FOLDER", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_images(self._folder / "images", BATCHES * size, size)

    def _run(self, method: str, name: str, *more: str) -> list[str]:
        where = f"run_dir={quoted(str(self._folder / name))}"
        return [*self._common, *METHODS[method], "trace=true", *more, where]

    def _run_at_once(self, series: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Args: series: by name, runs that come one after the other in a process of their own."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name, runs in series.items():
                file = self._folder / f"{name}.json"
                with written(file):
                    file.write_text(json.dumps([list(run) for run in runs]))
                started.append(begin([sys.executable, "-m", "fgpipe.study.common.series", str(file)]))
            for each in started:
                if each.wait():
                    raise subprocess.CalledProcessError(each.returncode, each.args)
        except BaseException:
            end(started)
            raise

    def _costs(self, name: str) -> list[dict[str, float]]:
        (events,) = trace.read(self._folder / name / "trace.json").values()
        return slices(events)

    def costs(self) -> dict[str, list[dict[str, float]]]:
        """Measure each method, alone on the machine."""
        names = {method: f"alone-{number}" for number, method in enumerate(METHODS)}
        self._run_at_once({"alone": [self._run(method, name) for method, name in names.items()]})
        return {method: self._costs(name) for method, name in names.items()}

    def loaded_costs(self) -> list[dict[str, float]]:
        """Measure the local target, with a run on every core; the costs are those of the first."""
        names = [f"loaded-{number}" for number in range(min(MOST_COPIES, os.cpu_count() or 1))]
        self._run_at_once({name: [self._run("local target", name)] for name in names})
        return self._costs(names[0])

    def hop(self) -> dict[str, float]:
        """Measure what messages cost; see `Machine`."""
        run = self._run("global target, local guess", "hop", "window=1")
        config = compose_config(run)
        plan = Plan.make(config, data_facts(config), None, 0, 2)
        launch([run], 2, self._folder / "hop.json")
        below, above = trace.read(self._folder / "hop" / "trace.json").values()
        size, last = plan.link_bytes[plan.topology.local[-1]], plan.topology.local[-1]
        replies = {(e.other, e.batch): e.began for e in above if e.kind == "reply"}
        scalars = [e.ended - replies[e.block, e.batch] for e in below if e.kind == SCALARS]
        sends = [e.ended - e.began for e in below if e.kind == "send" and e.block == last]
        receives = [e.ended - e.began for e in above if e.kind == RECEIVE]
        per_byte = {"copy": sends, "receive": receives}
        found = {name: 1e-9 * statistics.median(taken[WARM:]) / size for name, taken in per_byte.items()}
        return {**found, "scalars": max(0.0, 1e-9 * statistics.median(scalars))}

    def piece(self, samples: int) -> tuple[int, list[dict[str, float]]]:
        """Backpropagation of microbatches of so many samples, block by block, on one thread of this process."""
        config = compose_config([*self._common, "guess=end_to_end", "lanes=exact"])
        plan = Plan.make(config, data_facts(config))
        batches = Batches(load(config.data), config.data, config.batch_size, config.seed, DTYPES[config.dtype])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return samples, backpropagation_costs(plan, batches, samples)
        finally:
            torch.set_num_threads(threads)


def _total(costs: Costs) -> float:
    return sum(sum(block.values()) for block in costs)


def slices(events: Iterable[Event]) -> list[dict[str, float]]:
    """Median seconds of each kind of each block, of a process that does not wait, with what comes before a slice."""
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    work = sorted((event for event in events if event.kind in COMPUTE), key=lambda event: event.began)
    for before, event in pairwise(work):
        if event.batch >= WARM:
            found[event.block, event.kind].append(1e-9 * (event.ended - before.ended))
    costs: list[dict[str, float]] = [{} for _ in range(1 + max(block for block, _ in found))]
    for (block, kind), taken in found.items():
        costs[block][kind] = statistics.median(taken)
    return costs


def backpropagation_costs(plan: Plan, batches: Batches, samples: int) -> list[dict[str, float]]:
    """Median seconds of `forward`, `loss`, `backward` of a microbatch and of `update` and `fetch`, by block."""
    blocks = plan.method.blocks
    stages = local_stages(plan)
    modules = [stage.block.train() for stage in stages]
    classifier = stages[-1].head.train()
    rate = learning_rate(plan.config.optim, batches=1, epochs=1)
    optimizers = [
        Optimizer([*([classifier] if j == blocks - 1 else []), m], plan.config.optim, rate)
        for j, m in enumerate(modules)
    ]
    taken: list[dict[str, list[float]]] = [defaultdict(list) for _ in modules]
    began = time.perf_counter()

    def lap(block: int, kind: str) -> None:
        nonlocal began
        now = time.perf_counter()
        taken[block][kind].append(now - began)
        began = now

    for _ in range(BATCHES):
        began = time.perf_counter()
        images, labels = batches.train(0, 0)
        lap(0, "fetch")
        inputs, outputs = [images[:samples]], []
        for j, module in enumerate(modules):
            outputs.append(module(inputs[-1]))
            inputs.append(outputs[-1].detach().requires_grad_())
            lap(j, "forward")
        loss = classifier.losses(inputs[-1], labels[:samples])[0].mean()
        lap(blocks - 1, "loss")
        loss.backward()
        for j in reversed(range(blocks)):
            outputs[j].backward(inputs[j + 1].grad)
            lap(j, "backward")
        for j, optimizer in enumerate(optimizers):
            optimizer.step([each.grad for each in optimizer.parameters if each.grad is not None], 0)
            for parameter in optimizer.parameters:
                parameter.grad = None
            lap(j, "update")
    return [{kind: statistics.median(all[WARM:]) for kind, all in of.items()} for of in taken]
