"""Cost of staleness: accuracy against the window, with feedback in order and eager.

    python -m fgpipe.study staleness FOLDER data.root=DIR [policies=[in_order,async 1F1B,...]] [processes=8] [seeds=1]
                                     [jobs=1] [out=DIR] [key=value ...]

Windows 1, 2, auto, twice and four times auto, on CIFAR-10 at the scaled setting of the grid with a local guess and a
global target (`configs/profile/scaled.yaml`), but by forward mode, with a process for each block: that is where batches
overlap. `scope=block` has 7 lanes on the last link, where the paper's scalars per tensor have 54.

Beside them asynchronous backpropagation on the same processes, with a gradient back for every batch: async 1F1B without and
with look-ahead, in lock-step and with twice its window, and with two versions.

A batch's staleness at a block is the number of the block's updates between its forward pass and its own update, counted
on the timeline; with two versions it is 1. A run that diverges is reported as such. Runs that FOLDER has are not run again.
The tables are printed and written to DIR/staleness.md, in FOLDER without `out`, with a plot if matplotlib is installed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from fgpipe.gradients.method import Method
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.plan.schedule import windows
from fgpipe.study.accuracies.scaled import ScaledOptions, Trainings, accuracies, accuracy_cells, mean_accuracy
from fgpipe.study.common.arguments import check_choice, read
from fgpipe.study.common.figure import GUESS_COLORS, drawn, name_lines
from fgpipe.study.contests.contest import LOOK_AHEAD_RATE

WINDOWS = ("1", "2", "auto", "2 x auto", "4 x auto")
POLICIES = ("in_order", "eager")
BACKPROPAGATION = ("guess=end_to_end", "schedule=async_1f1b")
LOOK_AHEAD = "async 1F1B, look-ahead"
PEERS = {
    "async 1F1B": BACKPROPAGATION,
    LOOK_AHEAD: (*BACKPROPAGATION, "optim.look_ahead=true"),
    "async 1F1B, two versions": (*BACKPROPAGATION, "stash=two", "microbatches=8"),
}
"""Feedback of gradients, by the name that stands in a policy's place."""
TRACED = POLICIES + tuple(name for name, keys in PEERS.items() if "stash=two" not in keys)
"""Those whose passes are made with the weights of their time; two versions make every pass with those of one update ago."""


@dataclass(frozen=True)
class StalenessCell:
    """One way to train."""

    window: str
    """One of `WINDOWS`."""
    policy: str
    """One of `POLICIES` or `PEERS`."""

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.window} {self.policy}")

    def overrides(self, auto: Sequence[int], rate: float) -> list[str]:
        """Make the keys of a run.

        Args:
            auto: the window of each block with window=auto.
            rate: learning rate of the others.
        """
        times = self.window.partition(" x auto")
        window = self.window
        if times[1]:
            window = f"[{','.join(str(int(times[0]) * each) for each in auto)}]"
        way = PEERS.get(self.policy, (f"feedback={self.policy}",))
        discounted = [f"optim.lr={LOOK_AHEAD_RATE * rate:g}"] if self.policy == LOOK_AHEAD else []
        return [f"window={window}", *way, *discounted, "trace=true"]


@dataclass
class StalenessOptions(ScaledOptions):
    """Keys of this study."""

    policies: list[str] = field(default_factory=lambda: [*POLICIES, *PEERS])

    def check(self) -> None:
        super().check()
        check_choice("policies", self.policies, [*POLICIES, *PEERS])


def cells(policies: Sequence[str]) -> list[StalenessCell]:
    """List all but the eager one with window 1, where nothing can come early; and the peers, whose window is auto."""
    ours = [StalenessCell(*each) for each in product(WINDOWS, POLICIES) if each != ("1", "eager")]
    peers = [StalenessCell("auto", peer) for peer in PEERS]
    peers += [StalenessCell("2 x auto", "async 1F1B"), StalenessCell("1", "async 1F1B")]
    return [cell for cell in (*ours, *peers) if cell.policy in policies]


def staleness(events: Iterable[Event]) -> dict[int, Counter[int]]:
    """Block -> staleness in updates -> batches, of a block's compute, which is in one thread."""
    of_block: dict[int, list[Event]] = {}
    for event in events:
        if event.kind in ("forward", "update"):
            of_block.setdefault(event.block, []).append(event)
    found = {}
    for block, own in sorted(of_block.items()):
        updates = 0
        before: dict[int, int] = {}
        histogram: Counter[int] = Counter()
        for event in sorted(own, key=lambda event: event.began):
            if event.kind == "forward":
                before[event.batch] = updates
            else:
                histogram[updates - before[event.batch]] += 1
                updates += 1
        found[block] = histogram
    return found


@dataclass(frozen=True)
class StalenessRow:
    """Figures of one cell."""

    cell: StalenessCell
    accuracies: Sequence[float | None]
    """Accuracy of each seed; None: it diverged."""
    histograms: dict[int, Counter[int]]
    """Histograms of the first seed that did not: block -> staleness -> batches."""


def measure(trainings: Trainings, cell: StalenessCell) -> StalenessRow:
    """Read the figures of a cell whose runs are there."""
    summaries = trainings.summaries(cell.name)
    histograms: dict[int, Counter[int]] = {}
    for path, summary in zip(trainings.paths(cell.name), summaries, strict=True):
        if summary is not None and not histograms and cell.policy in TRACED:
            histograms = staleness(trace.events(path / "trace.json"))
    return StalenessRow(cell, accuracies(summaries), histograms)


def tables(rows: Sequence[StalenessRow]) -> str:
    """Markdown: accuracy, and how many of a block's batches, in percent, had which staleness."""
    lines = ["| window | feedback | test accuracy | range |", "|---|---|---|---|"]
    lines += [f"| {row.cell.window} | {row.cell.policy} | {accuracy_cells(row.accuracies)} |" for row in rows]
    lines += ["", "| window | feedback | block | staleness: share of batches |", "|---|---|---|---|"]
    for row in rows:
        for block, histogram in row.histograms.items():
            shares = ", ".join(f"{each}: {count / histogram.total():.1%}" for each, count in sorted(histogram.items()))
            lines.append(f"| {row.cell.window} | {row.cell.policy} | {block} | {shares} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[StalenessRow], path: Path) -> None:
    """Accuracy against the window, a line for each policy: scalars in the colour of their guess, gradients in that of end to end."""
    with drawn(path) as axes:
        ends = {}
        for policy, marker in zip((*POLICIES, *PEERS), "os^vd", strict=True):
            known = {row.cell.window: mean_accuracy(row.accuracies) for row in rows if row.cell.policy == policy}
            points = {window: accuracy for window in WINDOWS if (accuracy := known.get(window)) is not None}
            at = [WINDOWS.index(window) for window in points]
            if not points:
                continue
            color = GUESS_COLORS["local" if policy in POLICIES else "end_to_end"]
            line, heights = "--" if policy == "eager" else "-", [100 * accuracy for accuracy in points.values()]
            axes.plot(at, heights, f"{marker}{line}", color=color)
            if at[-1] == len(WINDOWS) - 1:
                ends[policy] = heights[-1], color
            else:
                axes.annotate(policy, (at[-1] + 0.12, heights[-1]), va="center", color=color)
        name_lines(axes, len(WINDOWS) - 0.8, ends)
        axes.set_xticks(range(len(WINDOWS)), WINDOWS)
        axes.set_xlim(-0.2, len(WINDOWS) + 0.9)
        axes.set(xlabel="window", ylabel="test accuracy, %")


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, StalenessOptions())
    trainings, wanted = Trainings(folder, options, overrides), cells(options.policies)
    auto = windows(Method.of(trainings.config), "auto")
    rate = trainings.config.optim.lr
    trainings.run_missing({cell.name: cell.overrides(auto, rate) for cell in wanted})
    rows = [measure(trainings, cell) for cell in wanted]
    print(tables(rows), end="")
    names = [cell.name for cell in wanted]
    out = trainings.write("staleness", "Staleness", arguments[1:], names, tables(rows))
    if find_spec("matplotlib") is not None:
        plot(rows, out / "staleness.png")
    return 0
