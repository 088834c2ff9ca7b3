"""Input of the simulator, measured on this machine: each block's work, and what a message costs.

The work of every block comes from traces of runs in one process, which never waits: a slice counts from the end of the
one before it, so that what is between slices is in them. Backpropagation that drains runs there as `schedule=1f1b`, by
`torch.distributed.pipelining`, in microbatches of several sizes; its one backward pass of all blocks is divided as that of
`schedule=async_1f1b`, whose blocks have their passes each for itself. What a message costs comes from runs of two
processes: one in lock-step, which leaves the machine to it, and one of 1F1B. Contention comes from the same runs on
every core at a time.
"""

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from fgpipe.config import compose_config
from fgpipe.errors import bad_value
from fgpipe.observe import trace
from fgpipe.observe.record import commit, machine
from fgpipe.observe.timeline import COMPUTE, RECEIVE, SCALARS, Event
from fgpipe.plan.plan import Plan
from fgpipe.saving import durable
from fgpipe.saving.outputs import needed, written
from fgpipe.study.common.runs import quoted
from fgpipe.study.common.series import begin, end, launch
from fgpipe.study.common.split import data_facts
from fgpipe.study.common.synthetic import write_images
from fgpipe.study.contests.contest import COMMON
from fgpipe.study.simulator.machine import Machine
from fgpipe.study.simulator.programs import Costs, microbatches

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
BACKPROPAGATION = ("guess=end_to_end", "schedule=async_1f1b", "lanes=exact")
PIPELINED = ("guess=end_to_end", "schedule=1f1b", "lanes=exact")
PIECES = (4, 8, 32)
"""Microbatches per batch, at least, with which backpropagation that drains is measured."""
LATE, KEPT = "async 1F1B", "async 1F1B, several batches kept"
"""Names of its runs with whole batches."""
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
    """Pieces of backpropagation that drains: samples of a microbatch, and its costs, by block; the largest first."""
    late: list[dict[str, float]]
    """Costs of asynchronous backpropagation of a whole batch, by block."""
    kept: list[dict[str, float]]
    """The same while the graphs of other batches are kept too."""
    contention: float
    copy: float
    receive: float
    scalars: float
    """Time of scalars."""
    message: float
    """Time of a microbatch's message; these five as `machine.Machine` has them."""
    errors: list[float] = field(default_factory=list)
    """Errors of predictions that were compared with runs on this machine: simulated over measured, less 1."""

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read a file, whatever its configuration.

        Raises:
            UserError: the file is no calibration.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            made = "`python -m fgpipe.study simulation` or `python -m fgpipe.simulate`"
            raise bad_value("calibration", path, f"a file that {made} has written") from error

    @classmethod
    def load(cls, path: Path, arguments: Sequence[str]) -> "Calibration":
        """Read the calibration of a configuration.

        Raises:
            UserError: the file is no calibration, or one for another configuration.
        """
        found = cls.read(path)
        if found.arguments != list(arguments):
            had = " ".join(found.arguments) or "no other arguments"
            raise bad_value("calibration", path, f"a new file, or the arguments that it was made with: {had}")
        return found

    @classmethod
    def measure(cls, arguments: Sequence[str], folder: Path) -> "Calibration":
        """Measure this machine, which takes some five minutes.

        Args:
            arguments: of every run, over `DEFAULTS`.
            folder: for runs and images.

        Raises:
            UserError: the arguments cannot be run.
            CalledProcessError: a run has failed.
        """
        runs = _Runs(arguments, folder)
        alone, loaded = runs.costs()
        hop = runs.hops()
        return cls(
            list(arguments),
            machine(),
            commit(),
            len(os.sched_getaffinity(0)),
            {name: alone[name] for name in METHODS},
            [(size, pieces(alone[name], alone[LATE + name])) for name, size in runs.pieces.items()],
            alone[LATE],
            alone[KEPT],
            statistics.median(_total(loaded[name]) / _total(costs) for name, costs in alone.items()),
            hop["copy"],
            hop["receive"],
            hop["scalars"],
            hop["message"],
        )

    @classmethod
    def median(cls, found: Sequence["Calibration"]) -> "Calibration":
        """Take the medians of several, of one configuration on one machine."""
        first = found[0]
        costs = {name: _medians([each.costs[name] for each in found]) for name in first.costs}
        sizes = [samples for samples, _ in first.pieces]
        pieces = [(samples, _medians([each.pieces[i][1] for each in found])) for i, samples in enumerate(sizes)]
        late, kept = _medians([each.late for each in found]), _medians([each.kept for each in found])
        names = ("contention", "copy", "receive", "scalars", "message")
        numbers = {name: statistics.median(getattr(each, name) for each in found) for name in names}
        return replace(first, costs=costs, pieces=pieces, late=late, kept=kept, **numbers)

    def save(self, path: Path) -> None:
        """Raises: OutputError: it cannot be written."""
        with written(path):
            durable.write(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def on(self, cores: float) -> Machine:
        """Make the machine, or one like it with so many cores."""
        return Machine(cores, max(1.0, self.contention), self.copy, self.receive, self.scalars, self.message)

    def of_piece(self, samples: int) -> Costs:
        """Costs of backpropagation with microbatches of so many samples, on the line through the two nearest that were measured.

        Below all of them a microbatch takes no less than its share of the smallest.
        """
        if len(self.pieces) == 1:
            return self.pieces[0][1]
        above = next((i for i in reversed(range(len(self.pieces) - 1)) if self.pieces[i][0] >= samples), 0)
        (many, dear), (few, cheap) = self.pieces[above : above + 2]
        share, least = (samples - few) / (many - few), min(1.0, samples / few)
        return [
            {kind: max(least * low[kind], low[kind] + share * (high[kind] - low[kind])) for kind in low}
            for high, low in zip(dear, cheap, strict=True)
        ]


Ways = dict[str, list[dict[str, float]]]
"""Costs of several ways to train, by name."""


class _Runs:
    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._folder = folder.resolve()
        self._common = [*DEFAULTS, f"data.root={quoted(str(self._folder / 'images'))}", *arguments]
        size = compose_config(self._common).batch_size
        self._common += [f"data.train_samples={BATCHES * size}", f"data.test_samples={size}", "epochs=1"]
        counts = sorted({count for least in PIECES if size // (count := microbatches(size, least)) > 1})
        if not counts:
            raise bad_value("batch_size", size, f"a multiple of {PIECES[0]} or more microbatches of at least 2 samples")
        self.pieces = {f", batch in {count}": size // count for count in counts}
        """Samples of a microbatch, by the name of the run, the largest first."""
        back = {name: (*PIPELINED, f"microbatches={size // of}") for name, of in self.pieces.items()}
        own = {LATE + name: (*BACKPROPAGATION, "window=1", f"batch_size={of}") for name, of in self.pieces.items()}
        late = {LATE: (*BACKPROPAGATION, "window=1"), KEPT: (*BACKPROPAGATION, "window=auto")}
        self._ways = {**METHODS, **back, **own, **late}
        for name in self._ways:
            compose_config(self._run(name, ""))
        with needed("FOLDER", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_images(self._folder / "images", BATCHES * size, size)

    def _run(self, name: str, where: str, *more: str) -> list[str]:
        run = [*self._common, "trace=true", *self._ways[name], *more]
        return [*run, f"run_dir={quoted(str(self._folder / where / name))}"]

    def _at_once(self, names: Sequence[str], ways: Sequence[str]) -> Ways:
        """Costs of ways to train, in the first of several processes that run all of them at the same time.

        Args: names: of the processes.
        """
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name in names:
                file = self._folder / f"{name}.json"
                with written(file):
                    file.write_text(json.dumps([self._run(way, name) for way in ways]))
                started.append(begin([sys.executable, "-m", "fgpipe.study.common.series", str(file)]))
            for each in started:
                if each.wait():
                    raise subprocess.CalledProcessError(each.returncode, each.args)
        except BaseException:
            end(started)
            raise
        return {way: self._costs(self._folder / names[0] / way) for way in ways}

    @staticmethod
    def _costs(run: Path) -> list[dict[str, float]]:
        (events,) = trace.read(run / "trace.json").values()
        return slices(events)

    def costs(self) -> tuple[Ways, Ways]:
        """Measure every way to train alone on the machine, and with a run on every core.

        Each is measured twice, there and back, so that a machine that gets slower meanwhile is no excuse for anybody.
        """
        there, back = list(self._ways), list(reversed(self._ways))
        copies = range(min(MOST_COPIES, len(os.sched_getaffinity(0))))
        before = self._at_once(["alone"], there)
        loaded = [
            self._at_once([f"loaded{way}-{n}" for n in copies], ways) for way, ways in (("", there), ("-back", back))
        ]
        alone = [before, self._at_once(["alone-back"], back)]

        def middle(twice: Sequence[Ways]) -> Ways:
            return {way: _medians([each[way] for each in twice]) for way in there}

        return middle(alone), middle(loaded)

    def hops(self) -> dict[str, float]:
        """Measure what messages cost; see `Machine`."""
        forward, back = "global target, local guess", next(reversed(self.pieces))
        run = self._run(forward, "hop", "window=1")
        config = compose_config(run)
        plan = Plan.make(config, data_facts(config), None, 0, 2)
        launch([run, self._run(back, "hop")], 2, self._folder / "hop.json")
        below, above = trace.read(self._folder / "hop" / forward / "trace.json").values()
        last = plan.topology.local[-1]
        size, tensors = plan.link_bytes[last], 1 + len(plan.lanes.on_link(last))
        replies = {(e.other, e.batch): e.began for e in above if e.kind == "reply"}
        scalars = [e.ended - replies[e.block, e.batch] for e in below if e.kind == SCALARS]
        sends = [e.ended - e.began for e in below if e.kind == "send" and e.block == last]
        receives = [e.ended - e.began for e in above if e.kind == RECEIVE]
        per_byte = {"copy": sends, "receive": receives}
        found = {name: 1e-9 * statistics.median(taken[WARM:]) / size for name, taken in per_byte.items()}
        found["scalars"] = max(0.0, 1e-9 * statistics.median(scalars))
        _, above = trace.read(self._folder / "hop" / back / "trace.json").values()
        moved = (found["copy"] + found["receive"]) * size / tensors * self.pieces[back] / config.batch_size
        return {**found, "message": max(0.0, exchange(above) - moved)}


def _total(costs: Costs) -> float:
    return sum(sum(block.values()) for block in costs)


def pieces(pipelined: Costs, own: Costs) -> list[dict[str, float]]:
    """Costs of a microbatch by block: those of one process, whose backward pass is one of all blocks, divided as `own` divides it."""
    backward = sum(block.get("backward", 0.0) for block in pipelined)
    of_own = sum(block["backward"] for block in own)
    return [
        {**block, "backward": backward * divided["backward"] / of_own}
        for block, divided in zip(pipelined, own, strict=True)
    ]


def exchange(events: Iterable[Event]) -> float:
    """Seconds from the end of a microbatch's backward pass to the next one's forward pass, in the last process of 1F1B, where a
    gradient leaves and an activation comes in: the lower quartile, as others wait for an activation that is not made yet."""
    work = sorted((event for event in events if event.kind in COMPUTE), key=lambda event: event.began)
    between = [
        after.began - before.ended
        for before, after in pairwise(work)
        if (before.kind, after.kind) == ("backward", "forward") and before.batch == after.batch >= WARM
    ]
    return 1e-9 * statistics.quantiles(between, n=4, method="inclusive")[0]


def _medians(found: Sequence[Costs]) -> list[dict[str, float]]:
    """Median of several measurements of the same blocks."""
    return [
        {kind: statistics.median(of[kind] for of in block) for kind in block[0]} for block in zip(*found, strict=True)
    ]


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
