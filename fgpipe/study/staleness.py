"""What staleness costs: accuracy against the window, with feedback in order and eager.

    python -m fgpipe.study staleness FOLDER data.root=DIR [processes=8] [seeds=1] [out=DIR] [key=value ...]

Windows 1, 2, auto, twice and four times auto, on CIFAR-10 at the scaled setting of the grid with a local guess and a
global target (`configs/profile/scaled.yaml`), but by forward mode, with a process for each block: that is where batches
overlap. `scope=block` has 7 lanes on the last link, where the paper's scalars per tensor have 54.

A batch's staleness at a block is the number of the block's updates between its forward pass and its own update, counted
on the timeline. A run that diverges is reported as such. Runs that FOLDER has are not run again. The tables are printed
and written to DIR/staleness.md, in FOLDER without `out`, with a plot if matplotlib is installed.
"""

import json
import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fgpipe import verdict
from fgpipe.config import compose_config
from fgpipe.errors import bad_value
from fgpipe.gradients.method import Method
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.runtime.schedule import windows
from fgpipe.study.arguments import claim, read
from fgpipe.study.paper import published
from fgpipe.study.profile import Profile
from fgpipe.study.runs import quoted, read_summary
from fgpipe.study.series import launch
from fgpipe.study.split import data_facts

WINDOWS = ("1", "2", "auto", "2 x auto", "4 x auto")
POLICIES = ("in_order", "eager")


@dataclass
class Options:
    """Keys of this study."""

    processes: int = 8
    seeds: int = 1
    out: str | None = None

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""
        for key in ("processes", "seeds"):
            if (value := getattr(self, key)) < 1:
                raise bad_value(key, value, "a whole number of at least 1")


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    window: str
    """One of `WINDOWS`."""
    policy: str

    @property
    def name(self) -> str:
        return f"{self.window} {self.policy}".replace(" ", "-")

    def overrides(self, auto: Sequence[int]) -> list[str]:
        """Args: auto: the window of each block with window=auto."""
        times = self.window.partition(" x auto")
        window = self.window
        if times[1]:
            window = f"[{','.join(str(int(times[0]) * each) for each in auto)}]"
        return [f"window={window}", f"feedback={self.policy}"]


def cells() -> list[Cell]:
    """All but the eager one with window 1, where nothing can come early."""
    return [Cell(window, policy) for window in WINDOWS for policy in POLICIES if (window, policy) != ("1", "eager")]


def scaled(arguments: Sequence[str]) -> list[str]:
    """The setting of the grid's cell with a local guess and a global target, with the arguments on top."""
    wanted = {
        "dataset": "cifar10",
        "blocks": 8,
        "width": "1",
        "target": "global",
        "guess": "local",
        "aux": "mlp",
        "space": "weight",
    }
    cell = next(each for each in published() if all(getattr(each, key) == value for key, value in wanted.items()))
    settings = Profile.load("scaled").settings(cell) | {"tangents": "forward", "trace": "true", "deadline": "600"}
    del settings["window"]
    own = dict(argument.partition("=")[::2] for argument in arguments)
    return [f"{key}={value}" for key, value in (settings | own).items()]


def staleness(events: Iterable[Event]) -> dict[int, Counter[int]]:
    """Block -> staleness in updates -> batches, of a block's compute, which is in one thread."""
    of_block: dict[int, list[Event]] = {}
    for event in events:
        if event.kind in ("forward", "update"):
            of_block.setdefault(event.block, []).append(event)
    found = {}
    for block, own in sorted(of_block.items()):
        updates, before, histogram = 0, {}, Counter()
        for event in sorted(own, key=lambda event: event.began):
            if event.kind == "forward":
                before[event.batch] = updates
            else:
                histogram[updates - before[event.batch]] += 1
                updates += 1
        found[block] = histogram
    return found


class Study:
    """The results of one folder."""

    def __init__(self, folder: Path, options: Options, arguments: Sequence[str]) -> None:
        """
        Raises:
            UserError: the folder holds another study, or the arguments cannot be run.
        """
        options.check()
        self._folder, self._options, self._settings = folder.resolve(), options, scaled(arguments)
        self._config = config = compose_config(self._settings)
        if options.processes > config.model.blocks:
            raise bad_value("processes", options.processes, f"1 to model.blocks={config.model.blocks}")
        self._auto = windows(Method.of(config), "auto")
        claim(self._folder, [f"processes={options.processes}", *arguments])

    def run_missing(self, wanted: Sequence[Cell]) -> None:
        """Run what the folder does not have, each in processes of its own, as one may diverge.

        Raises:
            UserError: the data cannot be read.
            CalledProcessError: a run has failed otherwise.
        """
        every = [(cell, seed, path) for cell in wanted for seed, path in enumerate(self._paths(cell))]
        missing = [one for one in every if read_summary(one[2]) is None and not diverged(one[2])]
        if missing:
            data_facts(self._config)  # bad data is found here, and not by every run
        for cell, seed, path in missing:
            shutil.rmtree(path, ignore_errors=True)
            run = [*self._settings, *cell.overrides(self._auto), f"seed={seed}", f"run_dir={quoted(str(path))}"]
            try:
                launch([run], self._options.processes, self._folder / "runs.json")
            except subprocess.CalledProcessError:
                if not diverged(path):
                    raise

    def row(self, cell: Cell) -> "Row":
        """The figures of a cell whose runs are there."""
        accuracies, histograms = [], {}
        for path in self._paths(cell):
            summary = read_summary(path)
            accuracies.append(None if summary is None else summary["test_accuracy"])
            if summary is not None and not histograms:
                histograms = staleness(event for of in trace.read(path / "trace.json").values() for event in of)
        return Row(cell, accuracies, histograms)

    def _paths(self, cell: Cell) -> list[Path]:
        """The folder of each seed."""
        return [self._folder / f"{cell.name}-{seed}" for seed in range(self._options.seeds)]


def diverged(path: Path) -> bool:
    """A run ended with numbers that are not finite."""
    note = path / verdict.NAME
    return note.exists() and json.loads(note.read_text())["cause"].endswith("is not finite")


@dataclass(frozen=True)
class Row:
    """The figures of one cell."""

    cell: Cell
    accuracies: Sequence[float | None]
    """Of each seed; None: it diverged."""
    histograms: dict[int, Counter[int]]
    """Of the first seed that did not: block -> staleness -> batches."""

    @property
    def accuracy(self) -> float | None:
        """The mean over the seeds, if none diverged."""
        known = [each for each in self.accuracies if each is not None]
        return statistics.mean(known) if len(known) == len(self.accuracies) else None


def tables(rows: Sequence[Row]) -> str:
    """Markdown: accuracy, and how many of a block's batches, in percent, had which staleness."""
    lines = ["| window | feedback | test accuracy | range |", "|---|---|---|---|"]
    for row in rows:
        known = [each for each in row.accuracies if each is not None]
        lost = len(row.accuracies) - len(known)
        mean = f"{statistics.mean(known):.1%}" if known else ""
        mean += f"{' and ' if known else ''}{lost} diverged" if lost else ""
        spread = f"{min(known):.1%} to {max(known):.1%}" if known else ""
        lines.append(f"| {row.cell.window} | {row.cell.policy} | {mean} | {spread} |")
    lines += ["", "| window | feedback | block | staleness: share of batches |", "|---|---|---|---|"]
    for row in rows:
        for block, histogram in row.histograms.items():
            shares = ", ".join(f"{each}: {count / histogram.total():.1%}" for each, count in sorted(histogram.items()))
            lines.append(f"| {row.cell.window} | {row.cell.policy} | {block} | {shares} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against the window, a line for each policy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for policy, marker in zip(POLICIES, "os", strict=True):
        points = {
            row.cell.window: row.accuracy for row in rows if row.cell.policy == policy and row.accuracy is not None
        }
        at = [WINDOWS.index(window) for window in points]
        axes.plot(at, [100 * accuracy for accuracy in points.values()], f"{marker}-", label=f"feedback={policy}")
    axes.set_xticks(range(len(WINDOWS)), WINDOWS)
    axes.set(xlabel="window", ylabel="test accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, Options())
    study, wanted = Study(folder, options, overrides), cells()
    study.run_missing(wanted)
    rows = [study.row(cell) for cell in wanted]
    print(tables(rows), end="")
    out = Path(options.out or folder)
    out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m fgpipe.study staleness FOLDER", *arguments[1:]])
    (out / "staleness.md").write_text(f"# Staleness\n\n```bash\n{command}\n```\n\n{tables(rows)}")
    if find_spec("matplotlib") is not None:
        plot(rows, out / "staleness.png")
    return 0
