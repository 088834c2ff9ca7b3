"""Accuracy against the number of isolated modules, beside end to end.

    python -m fgpipe.study modules FOLDER data.root=DIR [counts=[1,2,4,8,16]] [seeds=3] [jobs=1] [processes=1] [out=DIR]
                                   [methods=[local target,global target]] [rounds=3] [key=value ...]

ResNet-18 of width 0.25 on 12,800 CIFAR-10 images in 6 epochs, learning rate 0.05 in one cycle, MLP heads. Its 8 residual
blocks are 1, 2, 4 or 8 modules; 16 are those of the plain net of 16 layers, whose end to end is a row of its own. Modules
learn from their local target, or by local guesses for the global one (weight space, `scope=block`, exact lanes, windows
as they are with a process for each module). Differences to end to end are paired by seed.

Then `rounds` rounds of short runs on noise, in as many processes as there are modules, beside 1F1B in as many: images per
second, ratios within a round, and bytes that come back. Runs that FOLDER has are not run again. The tables are printed
and written to DIR/modules.md, in FOLDER without `out`, with a plot if matplotlib is installed.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from fgpipe.errors import bad_value
from fgpipe.study.accuracies.scaled import (
    ScaledOptions,
    Trainings,
    accuracies,
    accuracy_cells,
    deviation,
    gap_cell,
    mean_accuracy,
    timed_keys,
)
from fgpipe.study.common.arguments import check_choice, read
from fgpipe.study.common.figure import GUESS_COLORS, INK, drawn
from fgpipe.study.common.runs import origin
from fgpipe.study.contests.contest import Contest, Contestant, ContestOptions, Spread, microbatches, ratios

SETTING = ["data.train_samples=12800", "epochs=6", "optim=one_cycle", "optim.lr=0.05"]
COUNTS = (1, 2, 4, 8, 16)
METHODS = {
    "local target": ("target=local",),
    "global target": ("target=global", "guess=local", "scope=block", "lanes=exact", "window=auto"),
}


@dataclass
class ModulesOptions(ScaledOptions):
    """Keys of this study."""

    processes: int = 1
    seeds: int = 3
    counts: list[int] = field(default_factory=lambda: list(COUNTS))
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    rounds: int = 3
    """Rounds of timed runs; 0: none."""

    def check(self) -> None:
        super().check()
        check_choice("methods", self.methods, list(METHODS))
        check_choice("counts", self.counts, COUNTS)
        if self.rounds < 0:
            raise bad_value("rounds", self.rounds, "a whole number of at least 0")


@dataclass(frozen=True)
class ModulesWay:
    """One way to train."""

    net: int
    """Blocks that the net is made of: 8 residual or 16 plain ones."""
    modules: int
    method: str
    """One of `METHODS`; `end to end` of one module."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.net} {self.modules}".replace(" ", "-")

    @property
    def overrides(self) -> tuple[str, ...]:
        """Keys of a run, beside the setting's."""
        sizes = [self.net // self.modules] * self.modules
        keys = METHODS.get(self.method, METHODS["local target"])
        return f"model.blocks={self.net}", f"model.modules=[{','.join(map(str, sizes))}]", *keys


def ways(counts: Sequence[int], methods: Sequence[str] = tuple(METHODS)) -> list[ModulesWay]:
    """Ways of the study, those of the same net together, end to end first."""
    found = []
    for net, of_net in ((8, [n for n in counts if n <= 8]), (16, [n for n in counts if n == 16])):
        if of_net:
            found.append(ModulesWay(net, 1, "end to end"))
            found += [ModulesWay(net, n, method) for method in methods for n in of_net if n > 1]
    return found


def table(found: Mapping[ModulesWay, Sequence[float | None]]) -> str:
    """Markdown, with means over the seeds and their differences to end to end of the same net."""
    head = "| net | isolated modules | learning | test accuracy | range | less end to end, points, mean and range |"
    lines = [head, "|" + "---|" * 6]
    for way, values in found.items():
        reference = found[ModulesWay(way.net, 1, "end to end")]
        gap = gap_cell(values, reference)
        net = "8 residual blocks" if way.net == 8 else "16 plain layers"
        cells = [net, str(way.modules), way.method, accuracy_cells(values), "" if way.modules == 1 else gap]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + deviation(found.values())


def plot(found: Mapping[ModulesWay, Sequence[float | None]], path: Path) -> None:
    """Draw mean accuracy against modules, a line for each method, with the range over seeds."""
    with drawn(path) as axes:
        reference = mean_accuracy(found[ModulesWay(8, 1, "end to end")])
        if reference is not None:
            color = GUESS_COLORS["end_to_end"]
            axes.axhline(100 * reference, color=color, linestyle="--")
            axes.annotate("end to end", (8, 100 * reference), ha="right", va="bottom", color=color)
        for method, color in zip(METHODS, (INK, GUESS_COLORS["local"]), strict=True):
            points = {way.modules: values for way, values in found.items() if way.net == 8 and way.method == method}
            means = {n: 100 * mean for n, values in points.items() if (mean := mean_accuracy(values)) is not None}
            if not means:
                continue
            spans = [[100 * at for at in points[n] if at is not None] for n in means]
            below, above = (
                [abs(edge(span) - mean) for span, mean in zip(spans, means.values(), strict=True)]
                for edge in (min, max)
            )
            axes.errorbar(list(means), list(means.values()), yerr=[below, above], color=color, marker="o", capsize=3)
            last = max(means)
            axes.annotate(f"  {method}", (last, means[last]), va="center", color=color)
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 4, 8], ["2", "4", "8"])
        axes.set_xlim(1.8, 16)
        axes.set(xlabel="isolated modules", ylabel="test accuracy, %")


def contestants(wanted: Sequence[ModulesWay]) -> dict[int, list[Contestant]]:
    """Ways of the net of residual blocks in a process for each module, by their number; 1F1B is the first of each."""
    found: dict[int, list[Contestant]] = {}
    for way in wanted:
        if way.net == 8 and way.modules > 1:
            piped = ("guess=end_to_end", f"microbatches={microbatches(way.modules)}", "schedule=1f1b")
            of_count = found.setdefault(way.modules, [Contestant(f"1F1B {way.modules}", piped, way.modules)])
            of_count.append(Contestant(f"{way.method} {way.modules}", way.overrides, way.modules))
    return found


def speed_tables(contest: Contest, wanted: Mapping[int, Sequence[Contestant]]) -> str:
    """Markdown: images per second, their ratio to 1F1B's in as many processes, and bytes back of a batch."""
    head = "| processes | | images/s, median | range | over 1F1B, median | range | bytes back per batch |"
    lines = [head, "|" + "---|" * 7]
    for count, (reference, *others) in wanted.items():
        beside = contest.speeds(reference)
        for each in (reference, *others):
            speeds, back = contest.speeds(each), sum(contest.summaries(each)[0]["bytes_back_per_batch"])
            cells = f"{Spread.of(speeds).cells('.1f')} | {ratios(speeds, beside).cells('.2f')} | {back:,.0f}"
            lines.append(f"| {count} | {each.name.removesuffix(f' {count}')} | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, ModulesOptions())
    trainings, wanted = Trainings(folder, options, [*SETTING, *overrides]), ways(options.counts, options.methods)
    trainings.run_missing({way.name: way.overrides for way in wanted})
    found = {way: accuracies(trainings.summaries(way.name)) for way in wanted}
    text = table(found)
    if options.rounds and (timed := contestants(wanted)):
        common = timed_keys([*SETTING, *overrides])
        every = [each for of_count in timed.values() for each in of_count]
        contest = Contest(folder / "speed", ContestOptions(split=[4, 4], repeats=options.rounds), common, every)
        contest.run()
        cores = f"{len(os.sched_getaffinity(0))} processor cores, which more processes share."
        made = origin(summary for each in every for summary in contest.summaries(each))
        text += (
            f"\nSpeed, in a process with one thread for each module; {cores} {made}\n\n{speed_tables(contest, timed)}"
        )
    print(text, end="")
    out = trainings.write("modules", "Isolated modules", arguments[1:], [way.name for way in wanted], text)
    if find_spec("matplotlib") is not None and ModulesWay(8, 1, "end to end") in found:
        plot(found, out / "modules.png")
    return 0
