"""How many lanes it takes: accuracy and time per image against lanes, decoding and step size.

    python -m fgpipe.study lanes FOLDER [--seeds N] [--only PATTERN] [key=value ...]

Every cell is a training run; its summary stays in FOLDER/accuracy, and a cell that is there is not run again, so the
study may be stopped at any time. Cells are trained by the oracle, which emulates lanes (`runtime.reference`), except
for coded per-sample scalars, which need the tangents. The throughput of the same lanes comes from a short run of the
pipeline in one process, kept in FOLDER/speed. Then the table is printed and written to FOLDER/lanes.md, and the
frontier of accuracy against time per image to FOLDER/lanes.png.

`--only` takes cells whose name holds the pattern, a regular expression, so that several processes may share the work,
but for the times, which want the machine to themselves: remove FOLDER/speed then, and run the command once more.
`--seeds 3` is the default. The other arguments go to every run. A folder holds one study: other arguments need another
folder.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgpipe.config import compose_config
from fgpipe.run import run
from fgpipe.study.arguments import claim
from fgpipe.study.runs import quoted

FAMILIES = (("weight", "tensor"), ("weight", "block"), ("activity", "sample"))
LANES: tuple[int | str, ...] = ("exact", 1, 2, 4, 8)
DECODES = ("plain", "predicted", "smoothed")
SPEED_BATCHES = 10
COMMON = ["model.width=0.25", "window=1", "observe.tensorboard=false"]


@dataclass(frozen=True)
class Cell:
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
        """The name of an end of the frontier: backpropagation, and learning without feedback."""
        return "end to end" if self.guess == "end_to_end" else "local learning" if self.target == "local" else None

    @property
    def name(self) -> str:
        return self.ends or f"{self.carriage} {self.decode} {self.step}"

    @property
    def carriage(self) -> str:
        """What the time per image depends on."""
        return self.ends or f"{self.space} {self.scope} {self.guess} {self.lanes}"

    @property
    def needs_tangents(self) -> bool:
        return self.lanes != "exact" and self.scope == "sample"

    def overrides(self, tangents: str) -> list[str]:
        return [f"tangents={tangents}", *(f"{key}={value}" for key, value in vars(self).items())]


def cells() -> Iterator[Cell]:
    """All cells of the study."""
    yield Cell(guess="end_to_end")
    yield Cell(target="local")
    for space, scope in FAMILIES:
        for guess in ("local", "gaussian"):
            for lanes in LANES:
                useless = {"predicted"} if lanes == "exact" else set()  # check() refuses these
                useless |= {"predicted", "smoothed"} if guess == "gaussian" else set()
                for decode in (each for each in DECODES if each not in useless):
                    for step in ("projection", "normalised"):
                        yield Cell(space, scope, guess, lanes=lanes, decode=decode, step=step)


class Study:
    """The results of one folder."""

    def __init__(self, folder: Path, arguments: list[str], seeds: int) -> None:
        """
        Raises:
            UserError: the folder holds the study of other arguments.
        """
        self._folder, self._arguments, self._seeds = folder, arguments, seeds
        claim(folder, arguments)

    def accuracies(self, cell: Cell) -> list[float]:
        """Test accuracy of each seed."""
        overrides = cell.overrides("forward" if cell.needs_tangents else "oracle")
        names = [f"accuracy/{cell.name} {seed}" for seed in range(self._seeds)]
        return [self._result(name, [*overrides, f"seed={seed}"])["test_accuracy"] for seed, name in enumerate(names)]

    def milliseconds(self, cell: Cell) -> float:
        """Time per image of the pipeline in one process; of end to end, by the reference."""
        config = compose_config([*COMMON, *self._arguments])
        size = config.batch_size
        short = ["epochs=1", f"data.train_samples={SPEED_BATCHES * size}", f"data.test_samples={size}"]
        overrides = Cell(cell.space, cell.scope, cell.guess, cell.target, cell.lanes).overrides(
            "oracle" if cell.guess == "end_to_end" else "forward"
        )
        return 1000 / self._result(f"speed/{cell.carriage}", [*overrides, *short])["images_per_second"]

    def _result(self, name: str, overrides: list[str]) -> dict[str, Any]:
        path = self._folder / name.replace(" ", "-")
        if not path.exists():
            unfinished = self._folder / "unfinished" / path.name
            shutil.rmtree(unfinished, ignore_errors=True)
            print(name, file=sys.stderr, flush=True)
            run(compose_config([*COMMON, *self._arguments, *overrides, f"run_dir={quoted(str(unfinished))}"]))
            path.parent.mkdir(exist_ok=True)
            unfinished.rename(path)
        return json.loads((path / "summary.json").read_text())


@dataclass(frozen=True)
class Row:
    """The figures of one cell."""

    cell: Cell
    accuracies: list[float]
    milliseconds: float

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies)


def table(rows: list[Row]) -> str:
    """Markdown: accuracy as mean and range over the seeds."""
    lines = ["| space | scope | guess | lanes | decode | step | accuracy | range | ms per image |", "|" + "---|" * 9]
    for row in rows:
        cell = row.cell
        keys = (cell.space, cell.scope, cell.guess, cell.lanes, cell.decode, cell.step)
        keys = (cell.ends, *[""] * 5) if cell.ends else keys
        spread = f"{min(row.accuracies):.1%} to {max(row.accuracies):.1%}"
        lines.append(f"| {' | '.join(map(str, keys))} | {row.accuracy:.1%} | {spread} | {row.milliseconds:.2f} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against time per image: a colour for each space and guess, a marker for each decoding, R beside it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    families = (f"{row.cell.space} {row.cell.scope} {row.cell.guess}" for row in rows if not row.cell.ends)
    groups = list(dict.fromkeys(families))
    markers = {"plain": "o", "predicted": "s", "smoothed": "^"}
    for row in rows:
        cell, at = row.cell, (row.milliseconds, 100 * row.accuracy)
        if cell.ends:
            axes.plot(*at, "k*", markersize=12)
        else:
            colour = f"C{groups.index(f'{cell.space} {cell.scope} {cell.guess}')}"
            face = colour if cell.step == "normalised" else "none"
            axes.plot(*at, markers[cell.decode], color=colour, markerfacecolor=face)
        axes.annotate(cell.ends or str(cell.lanes), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
    for index, group in enumerate(groups):
        axes.plot([], [], color=f"C{index}", label=group)
    for decode, marker in markers.items():
        axes.plot([], [], f"k{marker}", label=decode, linestyle="none")
    axes.plot([], [], "ko", markerfacecolor="none", linestyle="none", label="hollow: step=projection")
    axes.set(xlabel="milliseconds per image, one process", ylabel="test accuracy, %", xscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
    """
    parser = argparse.ArgumentParser(prog="python -m fgpipe.study lanes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    options, overrides = parser.parse_known_args(arguments)
    study = Study(options.folder, overrides, options.seeds)
    chosen = [cell for cell in cells() if cell.ends or re.search(options.only, cell.name)]
    rows = [Row(cell, study.accuracies(cell), study.milliseconds(cell)) for cell in chosen]
    print(table(rows))
    (options.folder / "lanes.md").write_text(table(rows))
    plot(rows, options.folder / "lanes.png")
    return 0
