"""Count of lanes that training takes: accuracy and time per image against lanes, decoding and step size.

    python -m fgpipe.study lanes FOLDER data.root=DIR [seeds=3] [jobs=1] [only=PATTERN] [batches=6] [repeats=3]
                                 [out=DIR] [key=value ...]

CIFAR-10 at the scaled setting of the grid (`configs/profile/scaled.yaml`), in one process for each run and `jobs` of
them at once: by the oracle, which emulates lanes (`trainers.oracle`), except for coded per-sample scalars, which need
the tangents. The first seed of every cell comes before the second of any. A run that diverges is reported as such.

Then, with nothing beside it, the time per image of the same lanes in the pipeline, in one process with one thread on
noise: `repeats` rounds, in each of which all of them run for an epoch of `batches` batches after one of warm-up. End to
end is timed by the reference.

Runs that FOLDER has are not run again. `only` takes the cells whose name holds the pattern, a regular expression. The
table is printed and written to DIR/lanes.md, in FOLDER without `out`, and a figure of
accuracy against lanes to DIR/lanes.png if matplotlib is installed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fgpipe.errors import bad_value, one_line
from fgpipe.study.accuracies import scaled
from fgpipe.study.accuracies.scaled import ScaledOptions, Trainings, accuracies, accuracy_cells, mean_accuracy
from fgpipe.study.common.arguments import read
from fgpipe.study.common.figure import GUESS_COLORS, INK, drawn, name_lines
from fgpipe.study.contests.contest import Contest, Contestant, ContestOptions, Spread

FAMILIES = (("weight", "tensor"), ("weight", "block"), ("activity", "sample"))
LANES: tuple[int | str, ...] = ("exact", 1, 2, 4, 8)
DECODES = ("plain", "predicted", "smoothed")


@dataclass
class LanesOptions(ScaledOptions):
    """Keys of this study."""

    processes: int = 1
    seeds: int = 3
    only: str = ""
    batches: int = 6
    repeats: int = 3

    def check(self) -> None:
        super().check()
        for key, least in (("batches", 2), ("repeats", 1)):
            if (value := getattr(self, key)) < least:
                raise bad_value(key, value, f"a whole number of at least {least}")
        if self.processes != 1:
            raise bad_value("processes", self.processes, "1, where the oracle runs")
        try:
            re.compile(self.only)
        except re.error as error:
            raise bad_value("only", self.only, f"a regular expression: {one_line(error)}") from error

    def timing(self, blocks: int) -> ContestOptions:
        """Options of the contest of times."""
        return ContestOptions(processes=1, split=[blocks], batches=self.batches, repeats=self.repeats)


@dataclass(frozen=True)
class LanesCell:
    """One way to train."""

    space: str = "weight"
    scope: str = "tensor"
    guess: str = "local"
    target: str = "global"
    lanes: int | str = "exact"
    decode: str = "plain"
    step: str = "projection"

    @property
    def ends(self) -> str | None:
        """Name of a control: backpropagation, and learning without feedback."""
        return "end to end" if self.guess == "end_to_end" else "local learning" if self.target == "local" else None

    @property
    def is_best(self) -> bool:
        """Local guesses with the coefficient that does best in shared lanes."""
        return not self.ends and (self.guess, self.decode, self.step) == ("local", "smoothed", "normalised")

    @property
    def name(self) -> str:
        return self.ends or f"{self.carriage} {self.decode} {self.step}"

    @property
    def carriage(self) -> str:
        """Settings that the time per image depends on."""
        return self.ends or f"{self.space} {self.scope} {self.guess} {self.lanes}"

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def training(self) -> list[str]:
        """Overrides of the run that shows the accuracy."""
        coded_samples = self.lanes != "exact" and self.scope == "sample"
        return self._overrides("forward" if coded_samples else "oracle")

    @property
    def contestant(self) -> Contestant:
        """Run that shows the time; decoding and step size are arithmetic on scalars."""
        plain = LanesCell(self.space, self.scope, self.guess, self.target, self.lanes)
        tangents = "oracle" if self.guess == "end_to_end" else "forward"
        return Contestant(self.carriage, tuple(plain._overrides(tangents)))

    def _overrides(self, tangents: str) -> list[str]:
        return ["window=1", f"tangents={tangents}", *(f"{key}={value}" for key, value in vars(self).items())]


def cells() -> Iterator[LanesCell]:
    """Yield all cells of the study: the step is normalised for local guesses alone."""
    yield LanesCell(guess="end_to_end")
    yield LanesCell(target="local")
    for space, scope in FAMILIES:
        for guess in ("local", "gaussian"):
            for lanes in LANES:
                useless = {"predicted"} if lanes == "exact" else set()  # check() refuses these
                useless |= {"predicted", "smoothed"} if guess == "gaussian" else set()
                steps = ("projection", "normalised") if guess == "local" else ("projection",)
                for decode in (each for each in DECODES if each not in useless):
                    for step in steps:
                        yield LanesCell(space, scope, guess, lanes=lanes, decode=decode, step=step)


@dataclass(frozen=True)
class LanesRow:
    """Figures of one cell."""

    cell: LanesCell
    accuracies: Sequence[float | None]
    """Accuracy of each seed; None: it diverged."""
    milliseconds: Spread
    """Time per image, over the rounds."""


def table(rows: Sequence[LanesRow]) -> str:
    """Markdown: accuracy as mean and range over the seeds, time as median and range over the rounds."""
    names = ("space", "scope", "guess", "lanes", "decode", "step", "accuracy", "range", "ms per image", "range")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cell = row.cell
        keys = [cell.space, cell.scope, cell.guess, str(cell.lanes), cell.decode, cell.step]
        if cell.ends:
            keys = [cell.ends, *[""] * 5]
        lines.append(f"| {' | '.join(keys)} | {accuracy_cells(row.accuracies)} | {row.milliseconds.cells('.2f')} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[LanesRow], path: Path) -> None:
    """Mean accuracy against the number of lanes: a line for each scope of local guesses, smoothed and normalised."""
    with drawn(path, (7, 4.5)) as axes:
        found = {row.cell: 100 * mean for row in rows if (mean := mean_accuracy(row.accuracies)) is not None}
        at, ends = (*LANES[1:], LANES[0]), {}
        for cell, accuracy in found.items():
            if cell.ends:
                color = GUESS_COLORS["end_to_end"] if cell.guess == "end_to_end" else INK
                axes.plot([0, len(at) - 1], [accuracy, accuracy], "-", color=color, linewidth=1)
                ends[cell.ends] = accuracy, color
        for (space, scope), style in zip(FAMILIES, ("s:", "o--", "^-"), strict=True):
            line = {
                at.index(cell.lanes): accuracy
                for cell, accuracy in found.items()
                if cell.is_best and (cell.space, cell.scope) == (space, scope)
            }
            if line:
                axes.plot(*zip(*sorted(line.items()), strict=True), style, color=GUESS_COLORS["local"])
                ends[f"scalar for each {scope}"] = line[max(line)], GUESS_COLORS["local"]
        name_lines(axes, len(at) - 0.8, ends)
        axes.set_xticks(range(len(at)), [str(each) for each in at])
        axes.set_xlim(-0.2, len(at) + 0.8)
        axes.set(xlabel="lanes", ylabel="test accuracy, %")


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, LanesOptions())
    options.out = options.out or str(folder)
    chosen = [cell for cell in cells() if cell.ends or re.search(options.only, cell.name)]
    trainings = Trainings(folder / "accuracy", options, overrides)
    config, contestants = trainings.config, {cell.carriage: cell.contestant for cell in chosen}
    timed = list(contestants.values())
    times = Contest(folder / "time", options.timing(config.blocks), scaled.timed_keys(overrides), timed)
    trainings.run_missing({cell.folder: cell.training for cell in chosen})
    times.run()
    milliseconds = {name: Spread.of(1000 / speed for speed in times.speeds(each)) for name, each in contestants.items()}
    rows = [
        LanesRow(cell, accuracies(trainings.summaries(cell.folder)), milliseconds[cell.carriage]) for cell in chosen
    ]
    text = table(rows) + scaled.deviation(row.accuracies for row in rows)
    print(text, end="")
    out = trainings.write("lanes", "Lanes", arguments[1:], [cell.folder for cell in chosen], text)
    if find_spec("matplotlib") is not None:
        plot(rows, out / "lanes.png")
    return 0
