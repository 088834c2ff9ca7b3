"""Trainings at the scaled setting of the grid, each way and seed in processes of its own.

The setting is that of the grid's CIFAR-10 cell of 8 blocks with a local MLP guess in weight space and a global target
(`configs/profile/scaled.yaml`), by forward mode unless a way says otherwise. A run that diverges is a result
too. Runs that the folder has are not run again.
"""

import json
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fgpipe.config import compose_config
from fgpipe.config.arguments import by_key, split
from fgpipe.errors import bad_value
from fgpipe.saving import verdict
from fgpipe.study.common.arguments import StudyOptions, claim
from fgpipe.study.common.runs import command_line, finished, page, quoted, read_summary, write_page
from fgpipe.study.common.series import call, end_called, torchrun
from fgpipe.study.common.split import data_facts
from fgpipe.study.paper.profile import Profile
from fgpipe.study.paper.tables import published

HELD_OUT = 3000
"""Training images to choose a learning rate on."""


@dataclass
class ScaledOptions(StudyOptions):
    """Keys of all studies of this kind."""

    processes: int = 8
    seeds: int = 1
    jobs: int = 1
    """Runs at once."""

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""
        for key in ("processes", "seeds", "jobs"):
            if (value := getattr(self, key)) < 1:
                raise bad_value(key, value, "a whole number of at least 1")

    def stated(self) -> list[str]:
        """List what makes a study another one; more seeds or jobs do not."""
        return [f"processes={self.processes}"]


@dataclass
class RatedOptions(ScaledOptions):
    """Keys of studies that choose a learning rate for each way to train."""

    rates: list[float] = field(default_factory=list)
    """Learning rates to choose from."""
    rate_epochs: int | None = None
    """Epochs of a run that chooses; None: those of the others."""

    def check(self) -> None:
        super().check()
        if any(rate <= 0 for rate in self.rates):
            raise bad_value("rates", self.rates, "a list of numbers above 0")
        if self.rate_epochs is not None and self.rate_epochs < 1:
            raise bad_value("rate_epochs", self.rate_epochs, "a whole number of at least 1")


TIMED = (
    "model", "model.blocks", "model.width", "model.stem", "head", "head.hidden", "batch_size", "wire", "dtype", "autocast",
)  # fmt: skip
"""Keys of trainings that are those of timed runs too: the net, the batch, the numbers."""


def settings(arguments: Sequence[str]) -> list[str]:
    """Overrides of the setting, with the arguments on top."""
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
    found = Profile.load("scaled").settings(cell) | {"tangents": "forward", "deadline": "600"}
    del found["window"]
    return [f"{key}={value}" for key, value in (found | by_key(arguments)).items()]


def timed_keys(arguments: Sequence[str]) -> list[str]:
    """Overrides of timed runs of the net that is trained with such arguments."""
    return [each for each in settings(arguments) if split(each)[0] in TIMED]


class Trainings:
    """Runs of one folder, by the names of the ways to train."""

    def __init__(self, folder: Path, options: ScaledOptions, arguments: Sequence[str]) -> None:
        """
        Raises:
            UserError: the arguments cannot be run.
        """
        self._folder, self._options, self._settings = folder.resolve(), options, settings(arguments)
        self.config = compose_config(self._settings)
        """Configuration of a run without overrides of its own."""
        self._stated = [*options.stated(), *arguments]

    def run_missing(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Run what the folder does not have, each in processes of its own, as one may diverge.

        Args: wanted: the overrides of each way to train.

        Raises:
            UserError: the folder holds another study, one cannot be run, was run with other settings, or the data cannot be read.
            CalledProcessError: a run has failed otherwise.
        """
        runs: dict[Path, list[str]] = {}
        for seed in range(self._options.seeds):
            for name, overrides in wanted.items():
                path = self.paths(name)[seed]
                runs[path] = [*self._settings, *overrides, f"seed={seed}", f"run_dir={quoted(str(path))}"]
        configs = {path: compose_config(run) for path, run in runs.items()}
        most = min(1 if config.tangents == "oracle" else config.blocks for config in configs.values())
        if self._options.processes > most:
            raise bad_value("processes", self._options.processes, f"at most {most} with these methods")
        claim(self._folder, self._stated)
        done = {path for path, config in configs.items() if finished(path, config) or diverged(path)}
        missing = {path: run for path, run in runs.items() if path not in done}
        if missing:
            data_facts(self.config)  # bad data is found here, and not by every run
        failed = threading.Event()
        with ThreadPoolExecutor(self._options.jobs) as pool:
            try:
                list(pool.map(partial(self._train, failed), missing, missing.values()))
            except KeyboardInterrupt:
                failed.set()
                end_called()
                raise

    def _train(self, failed: threading.Event, path: Path, run: Sequence[str]) -> None:
        """Args: failed: a run has, or was interrupted; no other begins."""
        if failed.is_set():
            return
        shutil.rmtree(path, ignore_errors=True)
        try:
            call([*torchrun(self._options.processes), "-m", "fgpipe.train", *run])
        except BaseException as error:
            if not isinstance(error, subprocess.CalledProcessError) or not diverged(path):
                failed.set()
                raise

    def paths(self, name: str) -> list[Path]:
        """Folder of each seed."""
        return [self._folder / f"{name}-{seed}" for seed in range(self._options.seeds)]

    def summaries(self, name: str) -> list[dict[str, Any] | None]:
        """Summary of each seed; None: it diverged."""
        return [read_summary(path) for path in self.paths(name)]

    def write(self, name: str, title: str, arguments: Sequence[str], ways: Iterable[str], tables: str) -> Path:
        """Write the tables to NAME.md, under what they were made with; returns its folder.

        Args:
            arguments: of the study, without its folder, which does not matter.
            ways: those that the tables are of.
        """
        config, options = self.config, self._options
        setting = f"{config.epochs} epochs of {config.data.train_samples or 'all'} images, "
        setting += f"{options.processes} process{'es' * (options.processes > 1)}, "
        setting += f"{options.seeds} seed{'s' * (options.seeds > 1)}."
        done = [summary for way in ways for summary in self.summaries(way) if summary is not None]
        out = Path(options.out or self._folder)
        write_page(out / f"{name}.md", page(title, command_line(name, arguments), setting, done, tables))
        return out


def best_rates(
    folder: Path,
    options: RatedOptions,
    arguments: Sequence[str],
    ways: Iterable[str],
    overrides: Callable[[str, float], Sequence[str]],
) -> dict[str, float]:
    """Choose the learning rate of each way on held-out images, with one seed; runs what the folder does not have.

    The setting's own rate, if it is among them, stays unless another is better by more than the standard error of an accuracy.

    Args:
        arguments: of every run.
        overrides: keys of a run, from the way's name and the rate.
    """
    short = [] if options.rate_epochs is None else [f"epochs={options.rate_epochs}"]
    trainings = Trainings(folder, replace(options, processes=1, seeds=1), [*arguments, *short])
    ways, rates = list(ways), options.rates
    tried = {(name, rate): (*overrides(name, rate), f"data.held_out={HELD_OUT}") for rate in rates for name in ways}
    trainings.run_missing({f"{name} {rate:g}": keys for (name, rate), keys in tried.items()})
    found = {pair: accuracies(trainings.summaries(f"{pair[0]} {pair[1]:g}"))[0] or 0.0 for pair in tried}
    own = trainings.config.optim.lr
    return {name: chosen({rate: found[name, rate] for rate in rates}, own) for name in ways}


def chosen(accuracies: Mapping[float, float], own: float) -> float:
    """Choose a learning rate: the best on `HELD_OUT` images, or the setting's own if that is within a standard error of it."""
    best = max(accuracies, key=lambda rate: accuracies[rate])
    share = accuracies[best]
    error = (share * (1 - share) / HELD_OUT) ** 0.5
    return own if accuracies.get(own, -1.0) >= share - error else best


def diverged(path: Path) -> bool:
    """Tell whether a run ended with numbers that are not finite."""
    note = path / verdict.NAME
    return note.exists() and json.loads(note.read_text())["cause"].endswith("is not finite")


def accuracies(summaries: Sequence[Mapping[str, Any] | None]) -> list[float | None]:
    """Test accuracy of each seed; None: it diverged."""
    return [None if summary is None else summary["test_accuracy"] for summary in summaries]


def mean_accuracy(values: Sequence[float | None]) -> float | None:
    """Mean over the seeds; None if one of them diverged."""
    known = _known(values)
    return statistics.mean(known) if len(known) == len(values) else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [each for each in values if each is not None]


def gap_cell(values: Sequence[float | None], reference: Sequence[float | None]) -> str:
    """Cell with the mean difference, in points, and its range; paired by seed, without those that diverged."""
    pairs = zip(values, reference, strict=True)
    gaps = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    return f"{statistics.mean(gaps):+.1f} ({min(gaps):+.1f} to {max(gaps):+.1f})" if gaps else ""


def deviation(cells: Iterable[Sequence[float | None]]) -> str:
    """Line on how much one seed differs from another, pooled over those cells of which no run diverged; or nothing."""
    variances = [statistics.variance(_known(each)) for each in cells if len(_known(each)) == len(each) > 1]
    if not variances:
        return ""
    pooled = statistics.mean(variances) ** 0.5
    return f"\nStandard deviation over seeds, pooled over {len(variances)} cells: {pooled:.1%}.\n"


def accuracy_cells(values: Sequence[float | None]) -> str:
    """Two cells of a Markdown table: the mean over the seeds, with how many diverged, and the range."""
    known = _known(values)
    lost = len(values) - len(known)
    mean = f"{statistics.mean(known):.1%}" if known else ""
    mean += f"{' and ' if known else ''}{lost} diverged" if lost else ""
    return f"{mean} | {f'{min(known):.1%} to {max(known):.1%}' if known else ''}"
