"""Cost of a slow block in accuracy, with replay buffers, beside the ways to train that wait for it.

    python -m fgpipe.study slowdown FOLDER data.root=DIR [block=0] [factors=[1,4,8]] [jitter=0] [processes=2] [seeds=1]
                                    [jobs=1] [out=DIR] [key=value ...]

The contestants of `straggler`, whose table has their rates, on CIFAR-10 at the scaled setting of the grid
(`configs/profile/scaled.yaml`). Only with buffers does it depend on timing which batches a step is made on, so only
these are run with the block slowed by each of the factors; of the others a slow block does not change a bit
(tests/integration/test_trace.py), and they are run once. A run that diverges is reported as such. Runs that FOLDER has
are not run again. The table is printed and written to DIR/slowdown.md, in FOLDER without `out`.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgpipe.errors import bad_value
from fgpipe.plan.plan import Plan
from fgpipe.study.accuracies.scaled import ScaledOptions, Trainings, accuracies, accuracy_cells
from fgpipe.study.common.arguments import read
from fgpipe.study.common.split import data_facts
from fgpipe.study.contests import straggler
from fgpipe.study.contests.contest import staged


@dataclass
class SlowdownOptions(ScaledOptions):
    """Keys of this study."""

    processes: int = 2
    block: int = 0
    factors: list[float] = field(default_factory=lambda: [1.0, 4.0, 8.0])
    jitter: float = 0.0
    """`slow.jitter` where the factor is above 1."""

    def check(self) -> None:
        super().check()
        if self.processes < 2:
            raise bad_value("processes", self.processes, "a whole number of at least 2")
        straggler.check_slow(self.block, self.factors, self.jitter)

    def stated(self) -> list[str]:
        return [*super().stated(), f"block={self.block}", f"factors={self.factors}", f"jitter={self.jitter}"]


@dataclass(frozen=True)
class SlowedWay:
    """One way to train."""

    method: str
    """One of `straggler.methods`."""
    factor: float | None
    """Factor of the slow block; None: any, as nothing depends on it."""
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.method} {self.speed}")

    @property
    def speed(self) -> str:
        """Factor, to read."""
        return "any" if self.factor is None else f"{self.factor:g}"


def ways(options: SlowdownOptions, split: Sequence[int]) -> list[SlowedWay]:
    """Ways of the study, all of them.

    Args: split: blocks per process.
    """
    found = []
    for method, keys in straggler.methods(options.processes).items():
        if set(straggler.BUFFERS) <= set(keys):
            for factor in options.factors:
                found.append(SlowedWay(method, factor, (*keys, *straggler.slow(options.block, factor, options.jitter))))
        else:
            found.append(SlowedWay(method, None, (*keys, *[staged(split)] * (method == straggler.LATE))))
    return found


def extra(summary: Mapping[str, Any]) -> float:
    """Extra steps over those of the epochs, at the buffer with the most of them."""
    samples = sum(max(score["samples"] for score in epoch["train"].values()) for epoch in summary["epochs"])
    return max(each["extra"] for each in summary["replay"].values()) * summary["config"]["batch_size"] / samples


@dataclass(frozen=True)
class SlowdownRow:
    """Figures of one way to train; without those seeds that diverged, but for `accuracies`."""

    way: SlowedWay
    accuracies: Sequence[float | None]
    seconds: Sequence[float]
    """Training time, without tests; at factor 1 where the way is run once."""
    extra: Sequence[float]

    @classmethod
    def of(cls, way: SlowedWay, summaries: Sequence[Mapping[str, Any] | None]) -> "SlowdownRow":
        done = [summary for summary in summaries if summary is not None]
        seconds, shares = [each["train_seconds"] for each in done], [extra(each) for each in done]
        return cls(way, accuracies(summaries), seconds, shares)


def table(rows: Sequence[SlowdownRow]) -> str:
    """Markdown, with means over the seeds."""
    lines = ["| | factor | test accuracy | range | training, s | extra steps, share of the epoch's |", "|" + "---|" * 6]
    for row in rows:
        seconds, share = (statistics.mean(each) if each else math.nan for each in (row.seconds, row.extra))
        cells = [row.way.method, row.way.speed, accuracy_cells(row.accuracies), f"{seconds:.0f}", f"{share:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, SlowdownOptions())
    trainings = Trainings(folder, options, overrides)
    config = trainings.config
    if options.block >= config.blocks:
        raise bad_value("block", options.block, f"0 to {config.blocks - 1}")
    split = Plan.make(config, data_facts(config), None, 0, options.processes).topology.sizes
    wanted = ways(options, split)
    trainings.run_missing({way.name: way.overrides for way in wanted})
    text = table([SlowdownRow.of(way, trainings.summaries(way.name)) for way in wanted])
    print(text, end="")
    trainings.write(
        "slowdown", f"Block {options.block} slowed: accuracy", arguments[1:], [way.name for way in wanted], text
    )
    return 0
