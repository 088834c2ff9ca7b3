"""Contestants that are run in turns, with the same split, threads, batch and images, and compared round by round.

The machine changes while a study runs; so every round has one run of each, and a ratio is that of two runs of the same
round. Rounds that the folder has are not run again.
"""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fgpipe.config import Config, check_world, compose_config
from fgpipe.errors import bad_value
from fgpipe.saving import durable
from fgpipe.saving.outputs import needed, written
from fgpipe.study.common.arguments import StudyOptions, claim
from fgpipe.study.common.runs import command_line, page, quoted, read_summary, write_page
from fgpipe.study.common.series import launch
from fgpipe.study.common.split import data_facts, measured_split
from fgpipe.study.common.synthetic import write_images

COMMON = ["data=cifar10_jpeg", "data.augment=none", "model.width=0.5", "batch_size=128", "window=auto", "threads=1"]
COMMON += ["device=cpu", "observe.tensorboard=false", "optim=constant", "optim.lr=0.0001", "deadline=600"]
Entrant = TypeVar("Entrant")
Start = Callable[[Sequence[Sequence[str]], int, Path], None]
"""Function as `study.common.series.launch`."""


@dataclass
class ContestOptions(StudyOptions):
    """Keys of all contests; each contest's module adds its own."""

    processes: int = 2
    split: list[int] | None = None
    """Blocks per process; None: balanced by measured forward time."""
    batches: int = 32
    """Batches of an epoch."""
    epochs: int = 2
    """Number of epochs; the first is warm-up, which does not count."""
    repeats: int = 5
    """Rounds."""

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""
        for key, least in (("processes", 2), ("batches", 2), ("epochs", self.least_epochs()), ("repeats", 1)):
            if (value := getattr(self, key)) < least:
                raise bad_value(key, value, f"a whole number of at least {least}")
        if self.split is not None and (len(self.split) != self.processes or min(self.split) < 1):
            raise bad_value(
                "split", self.split, f"one number of blocks, at least 1, for each process ({self.processes})"
            )

    def least_epochs(self) -> int:
        """Epochs that a study needs."""
        return 2

    def setting(self) -> str:
        """Describe what was run, for a person to read."""
        return f"rounds: {self.repeats}, with {self.epochs} epochs of {self.batches} batches, the first not counted"

    def stated(self) -> list[str]:
        """List what makes a study another one; more repeats do not."""
        values = {key: value for key, value in asdict(self).items() if key not in ("repeats", "out")}
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Contestant:
    """One way to train."""

    name: str
    overrides: tuple[str, ...]
    processes: int | None = None
    """Number of processes, with as many FLOPs each; None: that of the study, and its split."""
    ahead: int = 0
    """Batches for `stages`; 0: windows as the study has them."""

    @property
    def folder(self) -> str:
        return re.sub(r"\W+", "-", self.name)


@dataclass(frozen=True)
class Spread:
    """Spread of repeated measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def cells(self, form: str) -> str:
        """Two cells of a Markdown table."""
        return f"{self.median:{form}} | {self.least:{form}} to {self.most:{form}}"


def microbatches(processes: int) -> int:
    """Count of microbatches: four, or one for each process; a multiple of the processes, for zero bubble."""
    return processes * math.ceil(4 / processes)


def asynchronous(processes: int) -> dict[str, tuple[str, ...]]:
    """Overrides of backpropagation that does not drain, by name."""
    own = ("guess=end_to_end", "schedule=async_1f1b")
    two = ("stash=two", f"microbatches={microbatches(processes)}")
    return {"async 1F1B": own, "async 1F1B, two versions": (*own, *two)}


LOOK_AHEAD_RATE = 10.0
"""Factor of the learning rate of `optim.look_ahead`, which discounts it by 1 - momentum."""
AHEAD, AHEAD_OVER_SLOW_LINKS = 1, 3
"""Batches that fill the way from a process to the next one and back: a gradient comes back for each."""


def stages(split: Sequence[int], ahead: int = AHEAD) -> list[int]:
    """Windows where something comes back to a process for each batch: all blocks of a process have the same, those of the last
    one 1, those of each other one `ahead` more than those of the next; with 1 they are 1F1B's. `window=auto`, which knows no
    processes, has more in flight than keeps a process busy, and more delay."""
    last = len(split) - 1
    return [1 + ahead * (last - process) for process, size in enumerate(split) for _ in range(size)]


def staged(split: Sequence[int], ahead: int = AHEAD) -> str:
    """Key of a run with the windows of `stages`."""
    return f"window=[{','.join(map(str, stages(split, ahead)))}]"


def ratios(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Spread of values over those of the reference in the same round."""
    return Spread.of(value / other for value, other in zip(values, reference, strict=True))


def turns(contestants: Sequence[Entrant], round: int) -> list[Entrant]:
    """Order all of them; each round begins one further on, so that nobody always follows the same warm machine."""
    first = round % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def speed(summary: Mapping[str, Any]) -> float:
    """Images per second of the epochs after the first, between the first process's start and the last one's end."""
    samples = [max(score["samples"] for score in epoch["train"].values()) for epoch in summary["epochs"][1:]]
    return sum(samples) / sum(epoch["train_seconds"] for epoch in summary["epochs"][1:])


class Contest:
    """Runs of one folder."""

    def __init__(
        self, folder: Path, options: ContestOptions, arguments: Sequence[str], contestants: Sequence[Contestant]
    ) -> None:
        """Args: arguments: of every run.

        Raises:
            UserError: the folder holds another study, or a contestant cannot be run.
        """
        self._folder, self._options = folder.resolve(), options
        root, common = self._folder / "images", [*COMMON, f"data.root={quoted(str(self._folder / 'images'))}"]
        config = compose_config([*common, *arguments])
        self._contestants, size = contestants, config.batch_size
        self._common = [*common, *arguments, f"data.train_samples={options.batches * size}"]
        self._common += [f"data.test_samples={size}", f"epochs={options.epochs}"]
        blocks = config.blocks
        if options.split is not None and sum(options.split) != blocks:
            raise bad_value("split", options.split, f"numbers that add up to model.blocks={blocks}")
        if options.processes > blocks:
            raise bad_value("processes", options.processes, f"2 to model.blocks={blocks}")
        if size % (count := microbatches(options.processes)):
            raise bad_value("batch_size", size, f"a multiple of the peers' {count} microbatches")
        for contestant in contestants:
            check_world(self.config(contestant.overrides), contestant.processes or options.processes)
        claim(self._folder, [*options.stated(), *arguments])
        with needed("FOLDER", self._folder):
            write_images(root, options.batches * size, size)
        self.split = options.split or self._balanced()
        """Blocks per process, of all contestants."""

    @property
    def name(self) -> str:
        """Processes and width, for the names of files."""
        return f"{self._options.processes}-{self.config(()).model.width:g}"

    def config(self, overrides: Sequence[str]) -> Config:
        """Compose the configuration of a run with these overrides beside those of all.

        Raises:
            UserError: it cannot be run.
        """
        return compose_config([*self._common, *overrides])

    def _balanced(self) -> list[int]:
        note = self._folder / "split.json"
        if not note.exists():
            config = self.config(())
            sizes = measured_split(config, data_facts(config), self._options.processes)
            with written(note):
                durable.write(note, json.dumps(sizes).encode())
        return json.loads(note.read_text())

    def run(self, start: Start = launch) -> None:
        """Run the rounds that are missing.

        Raises:
            CalledProcessError: a run has failed.
        """
        for round in range(self._options.repeats):
            self.run_round(round, start)

    def run_round(self, round: int, start: Start = launch) -> None:
        """Run a round, all of it if one is missing, as the machine was another one before; those with as many processes come
        in one launch.

        Raises:
            CalledProcessError: a run has failed.
        """
        if all(read_summary(self.path(contestant, round)) for contestant in self._contestants):
            return
        wanted: dict[int, list[list[str]]] = {}
        for contestant in turns(self._contestants, round):
            path = self.path(contestant, round)
            shutil.rmtree(path, ignore_errors=True)
            processes = contestant.processes or self._options.processes
            wanted.setdefault(processes, []).append(self._overrides(contestant, path))
        for processes, runs in wanted.items():
            start(runs, processes, self._folder / "runs.json")

    def keys(self, contestant: Contestant) -> list[str]:
        """A contestant's overrides, those that follow from the split included."""
        if not contestant.ahead:
            return list(contestant.overrides)
        return [*contestant.overrides, staged(self.split, contestant.ahead)]

    def _overrides(self, contestant: Contestant, path: Path) -> list[str]:
        split = "counted" if contestant.processes else f"[{','.join(map(str, self.split))}]"
        return [*self._common, *self.keys(contestant), f"partition={split}", f"run_dir={quoted(str(path))}"]

    def path(self, contestant: Contestant, round: int) -> Path:
        """Folder of a run."""
        return self._folder / str(round) / contestant.folder

    def paths(self, contestant: Contestant) -> list[Path]:
        """Folders of a contestant's runs, one for each round."""
        return [self.path(contestant, round) for round in range(self._options.repeats)]

    def speeds(self, contestant: Contestant) -> list[float]:
        """Images per second of each round."""
        return [speed(summary) for summary in self.summaries(contestant)]

    def summaries(self, contestant: Contestant) -> list[Mapping[str, Any]]:
        """Summaries of a contestant's runs, one for each round."""
        return [_summary(path) for path in self.paths(contestant)]

    def write(self, name: str, title: str, command: Sequence[str], table: str, folder: Path | None = None) -> Path:
        """Write the table to NAME.md, under what it was made with; returns the file.

        Args:
            command: the name of the study, its folder, which does not matter and is left out, and its arguments.
            folder: of a study whose contest has a part of it; None: the contest's.
        """
        study, _, *arguments = command
        summaries = [summary for each in self._contestants for summary in self.summaries(each)]
        setting = described(summaries[0]["config"], self.split, self._options)
        text = page(title, command_line(study, arguments), setting, summaries, table)
        file = Path(self._options.out or folder or self._folder) / f"{name}.md"
        write_page(file, text)
        return file


def _summary(path: Path) -> Mapping[str, Any]:
    return json.loads((path / "summary.json").read_text())


def described(config: Mapping[str, Any], split: Sequence[int], options: ContestOptions) -> str:
    """Describe what was run, for a person to read.

    Args: config: of a run.
    """
    setting = f"Width {config['model']['width']:g}, batch {config['batch_size']}, blocks per process {list(split)}, "
    return setting + f"{options.setting()}."


def speed_table(speeds: Mapping[str, Sequence[float]], reference: str) -> str:
    """Markdown: images per second of each contestant, and their ratio to the reference's.

    Args: speeds: of each round, by the contestant's name.
    """
    lines = [f"| | images/s, median | range | over {reference}, median | range |", "|" + "---|" * 5]
    for name, values in speeds.items():
        ratio = ratios(values, speeds[reference])
        lines.append(f"| {name} | {Spread.of(values).cells('.1f')} | {ratio.cells('.2f')} |")
    return "\n".join(lines) + "\n"
