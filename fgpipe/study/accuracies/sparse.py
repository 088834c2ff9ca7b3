"""Accuracy and speed against how seldom readings come back (`feedback.every`), beside no feedback at all.

    python -m fgpipe.study sparse FOLDER data.root=DIR [every=[1,4,8,16]] [seeds=3] [rounds=3] [jobs=1] [processes=1] [out=DIR]
                                  [key=value ...]

Local MLP guesses for a global target in weight space, exact lanes, a smoothed and normalised coefficient for each block; the
controls are a local target and end to end. The setting is that of `study modules`. Then `rounds` rounds of short runs on
noise in two processes, of four blocks each, beside 1F1B. Runs that FOLDER has are not run again. The tables are printed and
written to DIR/sparse.md, in FOLDER without `out`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgpipe.errors import bad_value
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.accuracies.scaled import (
    ScaledOptions,
    Trainings,
    accuracies,
    accuracy_cells,
    deviation,
    gap_cell,
    timed_keys,
)
from fgpipe.study.common.arguments import read
from fgpipe.study.contests.contest import Contest, Contestant, ContestOptions, microbatches, speed_table

SPARSE = (
    "target=global",
    "guess=local",
    "scope=block",
    "lanes=exact",
    "decode=smoothed",
    "step=normalised",
    "window=auto",
)
CONTROLS = {"local target": ("target=local",), "end to end": ("guess=end_to_end", "tangents=oracle", "window=1")}
REFERENCE = "1F1B"


@dataclass
class SparseOptions(ScaledOptions):
    """Keys of this study."""

    processes: int = 1
    seeds: int = 3
    every: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    rounds: int = 3
    """Rounds of timed runs; 0: none."""

    def check(self) -> None:
        super().check()
        if not self.every or min(self.every) < 1 or len(set(self.every)) != len(self.every):
            raise bad_value("every", self.every, "a list of whole numbers of at least 1, each once")
        if self.rounds < 0:
            raise bad_value("rounds", self.rounds, "a whole number of at least 0")


def ways(every: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Overrides of each way to train, by name."""
    return {f"every {k}": (*SPARSE, f"feedback.every={k}") for k in every} | CONTROLS


def table(found: Mapping[str, Sequence[float | None]]) -> str:
    """Markdown: means over the seeds, and differences to readings of every batch, paired by seed."""
    lines = [
        "| readings | test accuracy | range | less those of every batch, points, mean and range |",
        "|" + "---|" * 4,
    ]
    for name, values in found.items():
        gap = "" if name == "every 1" else gap_cell(values, found.get("every 1", [None] * len(values)))
        lines.append(f"| {name} | {accuracy_cells(values)} | {gap} |")
    return "\n".join(lines) + "\n" + deviation(found.values())


def contestants(every: Sequence[int]) -> list[Contestant]:
    """Ways in two processes; end to end is 1F1B."""
    ours = [Contestant(name, keys) for name, keys in ways(every).items() if name != "end to end"]
    return [*ours, Contestant(REFERENCE, ("guess=end_to_end", f"microbatches={microbatches(2)}", "schedule=1f1b"))]


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, SparseOptions())
    trainings, wanted = Trainings(folder, options, [*SETTING, *overrides]), ways(options.every)
    trainings.run_missing(wanted)
    text = table({name: accuracies(trainings.summaries(name)) for name in wanted})
    if options.rounds:
        timed, common = contestants(options.every), timed_keys([*SETTING, *overrides])
        contest = Contest(folder / "speed", ContestOptions(split=[4, 4], repeats=options.rounds), common, timed)
        contest.run()
        speeds = speed_table({each.name: contest.speeds(each) for each in timed}, REFERENCE)
        text += f"\nSpeed in two processes, one thread each:\n\n{speeds}"
    print(text, end="")
    trainings.write("sparse", "Sparse feedback", arguments[1:], list(wanted), text)
    return 0
