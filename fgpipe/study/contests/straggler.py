"""Cost of a slow block to the others, with and without replay buffers, beside pipelined backpropagation.

    python -m fgpipe.study straggler FOLDER [block=0] [factors=[1,2,4,8]] [jitter=0] [processes=2] [split=[4,4]]
                                     [batches=32] [epochs=2] [repeats=3] [out=DIR] [key=value ...]

Every contestant is run with one block slowed by each of the factors (`slow.*`), with its timeline recorded. A block's
update rate is that of a whole epoch, up to the last update of any block; "others" is the slowest of the blocks in
other processes than the slow one's, whose blocks share its thread. Rates and images per second are also given over
those of the same contestant with factor 1, in the same round. The rest is as in `throughput`.

The table is printed and written to DIR/straggler.md, in FOLDER without `out`. docs/results/straggler.md says what is
compared and how.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fgpipe.errors import bad_value
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.plan.topology import runs_of
from fgpipe.study.common.arguments import read
from fgpipe.study.contests.contest import (
    AHEAD,
    Contest,
    Contestant,
    ContestOptions,
    Spread,
    asynchronous,
    microbatches,
    ratios,
)

BUFFERS = ("replay.size=8", "replay.reuse=16")
"""Options of buffers that let a batch be used as often as the fast blocks can, at the factors of this study."""

LANE = ("lanes=1", "scope=block", "decode=smoothed")
"""One lane that learns: a plain one, of a scalar for each tensor, ends at chance at the scaled setting of the grid."""

LATE = "async 1F1B"


@dataclass
class StragglerOptions(ContestOptions):
    """Keys of this study."""

    repeats: int = 3
    block: int = 0
    factors: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    jitter: float = 0.0
    """`slow.jitter` where the factor is above 1."""

    def check(self) -> None:
        super().check()
        check_slow(self.block, self.factors, self.jitter)


def check_slow(block: int, factors: Sequence[float], jitter: float) -> None:
    """Raises: UserError: there is no such block in any net, or there are no factors or no jitter of this kind."""
    if block < 0:
        raise bad_value("block", block, "a block's number, from 0")
    if factors[:1] != [1.0] or sorted(set(factors)) != factors:
        raise bad_value("factors", factors, "1, then larger factors, as in [1,2,4]")
    if not 0 <= jitter < math.inf:
        raise bad_value("jitter", jitter, "a finite number of at least 0")


def methods(processes: int) -> dict[str, tuple[str, ...]]:
    """Name to overrides."""
    peer = ("guess=end_to_end", "schedule=1f1b", f"microbatches={microbatches(processes)}")
    return {
        "local target, buffers": ("target=local", *BUFFERS),
        "local target": ("target=local",),
        "global target, lock-step": (*LANE, "window=1"),
        "global target": LANE,
        "1F1B": peer,
        LATE: asynchronous(processes)[LATE],
    }


def contestants(options: StragglerOptions) -> dict[tuple[str, float], Contestant]:
    """Contestants by method and factor."""
    found = {}
    for name, keys in methods(options.processes).items():
        for factor in options.factors:
            slowed = slow(options.block, factor, options.jitter)
            overrides = (*keys, *slowed, "trace=true")
            found[name, factor] = Contestant(f"{name}, {factor:g}", overrides, ahead=AHEAD * (name == LATE))
    return found


def slow(block: int, factor: float, jitter: float) -> tuple[str, ...]:
    """Overrides of a run with a block so many times as slow."""
    return () if factor == 1 else (f"slow.block={block}", f"slow.factor={factor:g}", f"slow.jitter={jitter:g}")


def others(split: Sequence[int], block: int) -> list[int]:
    """Blocks in other processes than this one's."""
    return [j for run in runs_of(split) if block not in run for j in run]


def update_rate(events: Iterable[Event], block: int, batches: int) -> float:
    """Updates per second of a block over a whole epoch, from the first event of any block in it to the last update of
    any block; the median of the epochs after the first. So it counts against a block that it waits at an epoch's end.

    Args:
        events: of all blocks.
        batches: of an epoch.
    """
    of_epoch: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        of_epoch[event.batch // batches].append(event)
    rates = []
    for epoch, found in of_epoch.items():
        if epoch > 0:
            updates = [event for event in found if event.kind == "update"]
            took = max(event.ended for event in updates) - min(event.began for event in found)
            rates.append(1e9 * sum(event.block == block for event in updates) / took)
    return statistics.median(rates)


@dataclass(frozen=True)
class StragglerRow:
    """Figures of one contestant with one factor, of each round."""

    name: str
    factor: float
    slow: Sequence[float]
    """Updates per second of the slow block."""
    others: Sequence[float]
    """Updates per second of the slowest block in another process."""
    speeds: Sequence[float]
    """Images per second."""


def measure(run: Contest, options: StragglerOptions, contestant: Contestant, name: str, factor: float) -> StragglerRow:
    """Read the runs of a contestant."""
    slow, rest = [], []
    for path in run.paths(contestant):
        events = [event for of in trace.read(path / "trace.json").values() for event in of]
        slow.append(update_rate(events, options.block, options.batches))
        elsewhere = others(run.split, options.block)
        rest.append(min(update_rate(events, block, options.batches) for block in elsewhere))
    return StragglerRow(name, factor, slow, rest, run.speeds(contestant))


def table(rows: Sequence[StragglerRow]) -> str:
    """Markdown; shares are those of the same contestant's rates with factor 1, in the same round."""
    head = "| | factor | slow block, updates/s | others, updates/s | others, share | range "
    head += "| images/s | images/s, share | range |"
    lines = [head, "|" + "---|" * 9]
    for row in rows:
        whole = next(each for each in rows if each.name == row.name and each.factor == 1)
        rates = [f"{Spread.of(values).median:.2f}" for values in (row.slow, row.others)]
        cells = [f"{row.factor:g}", *rates, ratios(row.others, whole.others).cells(".2f")]
        cells += [f"{Spread.of(row.speeds).median:.1f}", ratios(row.speeds, whole.speeds).cells(".2f")]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, StragglerOptions())
    wanted = contestants(options)
    run = Contest(folder, options, overrides, list(wanted.values()))
    if options.block >= sum(run.split):
        raise bad_value("block", options.block, f"0 to {sum(run.split) - 1}")
    run.run()
    text = table([measure(run, options, each, *key) for key, each in wanted.items()])
    print(text, end="")
    run.write("straggler", f"Block {options.block} slowed", ["straggler", *arguments], text)
    return 0
