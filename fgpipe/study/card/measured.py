"""Measurements of a grid: every run's summary, by what it trained, settings and seed."""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fgpipe.config import compose_config
from fgpipe.errors import UserError, one_line
from fgpipe.gradients.guesses import make
from fgpipe.observe.record import COSINES
from fgpipe.saving.resume import FREE, flat
from fgpipe.study.common.runs import read_summary
from fgpipe.study.paper.profile import Profile, mismatches
from fgpipe.study.paper.tables import Key, published, unpublished

Values = Mapping[Key, Mapping[int, float]]
"""Key of what was trained -> seed -> test accuracy in percent."""
OF_CELL = {"model.blocks", "head.name", "target.name", "target.depth", "guess.name", "space", "scope"}
"""Keys that the cell decides, or that nothing depends on where it leaves them open."""
WATCHING = ("observe.", "checkpoint.", "link.", "slow.", "trace")
"""Beginnings of keys that change no number."""


@dataclass(frozen=True)
class Measurement:
    """One run that is done."""

    folder: Path
    key: Key
    summary: Mapping[str, Any]
    cosine: list[tuple[int, dict[int, float]]]
    """Training step, and block -> cosine of guess and global target there; empty if it was not observed."""

    @classmethod
    def read(cls, folder: Path, key: Key) -> "Measurement":
        """
        Raises:
            UserError: a file cannot be read, or the run is of another cell than its name says.
        """
        summary = read_summary(folder)
        if summary is None:
            raise UserError(f"{folder / 'summary.json'}: not that of a run that is done")
        found = cls(folder, key, summary, list(_cosines(folder / COSINES)))
        try:
            wrong = list(mismatches(key, found.config))
            _ = found.settings, found.observed, found.accuracy, summary["train_seconds"], summary["commit"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / 'summary.json'}: no summary of fgpipe.train ({error!r})") from error
        if wrong:
            raise UserError(f"its configuration is of another cell: {', '.join(wrong)}")
        return found

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved configuration."""
        return self.summary["config"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def accuracy(self) -> float:
        """Accuracy on the test set at the end, in percent."""
        return 100 * self.summary["test_accuracy"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that the accuracy depends on beside cell and seed: dotted key to value.

        A key that `configs/train.yaml` has got since the run has its default; one of the cell's guess that has its own is
        left out, as other cells cannot have it. The net's width is over that of the cell.
        """
        found = _defaults() | dict(flat(self.config))
        found["model.width"] /= Profile.load("full").widths[self.key.width]
        of_guess = {f"guess.{key}": value for key, value in asdict(make(self.key.guess)).items()}
        out = OF_CELL | FREE | {"seed"} | {key for key, value in of_guess.items() if found.get(key) == value}
        return {key: found[key] for key in sorted(found) if key not in out and not key.startswith(WATCHING)}

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that must be equal for accuracies of a data set to be compared: all but the learning rate, which is
        a cell's own."""
        return {key: value for key, value in self.settings.items() if key != "optim.lr"}

    @property
    def shown_protocol(self) -> str:
        """Protocol as far as a person wants to know it."""
        settings = self.settings
        parts = {
            "training images": settings["data.train_samples"] or "all",
            "test images": settings["data.test_samples"] or "all",
            "epochs": settings["epochs"],
            "batch": settings["batch_size"],
            "schedule": settings["optim.schedule"],
            "width factor": f"{settings['model.width']:g}",
            "computed by": {"oracle": "two backward passes", "forward": "forward mode"}[settings["tangents"]],
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items())

    @property
    def observed(self) -> tuple[int, int]:
        """Amount that there is to plot: steps with cosines, and heads with curves."""
        return len(self.cosine), sum(len(epoch["test"]) for epoch in self.summary["epochs"])

    def curve(self, phase: str, block: int, figure: str = "loss") -> list[float]:
        """Curve of a block's head, by epoch; empty if it has none."""
        epochs = [epoch[phase].get(str(block)) for epoch in self.summary["epochs"]]
        return [scores[figure] for scores in epochs if scores is not None]


@cache
def _defaults() -> dict[str, Any]:
    return dict(flat(asdict(compose_config([]))))


def _cosines(path: Path) -> Iterable[tuple[int, dict[int, float]]]:
    if not path.exists():
        return
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            yield fields["step"], {int(block): float(value) for block, value in fields["cosine"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} cannot be read") from error


@dataclass(frozen=True)
class Other:
    """Run that is not compared."""

    folder: Path
    accuracy: float | None
    """Accuracy in percent; None if it is not known."""
    reason: str


@dataclass(frozen=True)
class Collection:
    """Measurements below a folder: of each data set those of one protocol, of each cell those of one setting."""

    kept: list[Measurement]
    """One for each key and seed, the one that observed most."""
    others: list[Other]

    @classmethod
    def read(cls, folder: Path) -> "Collection":
        """Raises: UserError: no run of a grid is done in there."""
        found, others = [], []
        for path in sorted(folder.rglob("summary.json")):
            key = NAMES.get(path.parent.name.rpartition("-s")[0])
            if key is not None:
                try:
                    found.append(Measurement.read(path.parent, key))
                except UserError as error:
                    others.append(Other(path.parent, None, str(error)))
        if not found:
            reasons = "".join(f"; {other.folder.name}: {other.reason}" for other in others[:1])
            raise UserError(f"{folder}: no run of a grid is done in there{reasons}; python -m fgpipe.grid makes them")
        found = _agreeing(found, lambda each: each.key.dataset, lambda each: each.protocol, others, undecided=False)
        found = _agreeing(found, lambda each: each.key, lambda each: each.settings, others, undecided=True)
        kept: dict[tuple[Key, int], Measurement] = {}
        for each in sorted(found, key=lambda each: each.observed, reverse=True):
            first = kept.setdefault((each.key, each.seed), each)
            if first is not each:
                others.append(Other(each.folder, each.accuracy, f"the same run as {first.folder.name}"))
        return cls(list(kept.values()), others)

    @cached_property
    def values(self) -> Values:
        """Accuracies kept."""
        found: dict[Key, dict[int, float]] = defaultdict(dict)
        for each in self.kept:
            found[each.key][each.seed] = each.accuracy
        return found

    def protocols(self) -> dict[str, str]:
        """Protocol of each data set."""
        return {each.key.dataset: each.shown_protocol for each in self.kept}


def _agreeing(
    measurements: Iterable[Measurement],
    group: Callable[[Measurement], Hashable],
    settings: Callable[[Measurement], Mapping[str, Any]],
    others: list[Other],
    undecided: bool,
) -> list[Measurement]:
    """Keep those with the settings that most keys and seeds of their group have; the rest goes to `others`.

    Args: undecided: where as many have other settings, keep none of the group, as nothing says which are meant.
    """
    groups: dict[Hashable, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for each in measurements:
        groups[group(each)][json.dumps(settings(each))].append(each)
    found = []
    for by_settings in groups.values():
        first, *rest = sorted(by_settings.values(), key=_different_runs, reverse=True)
        tied = undecided and bool(rest) and _different_runs(rest[0]) == _different_runs(first)
        there = settings(first[0])
        for each in [each for runs in rest for each in runs]:
            here = settings(each)
            keys = sorted(here.keys() | there.keys())
            pairs = [(key, here.get(key, "unknown"), there.get(key, "unknown")) for key in keys]
            differing = ", ".join(f"{key}={one} (there {other})" for key, one, other in pairs if one != other)
            others.append(Other(each.folder, each.accuracy, f"other settings than {first[0].folder.name}: {differing}"))
        if tied:
            reason = f"as many runs have other settings: {rest[0][0].folder.name}"
            others += [Other(each.folder, each.accuracy, reason) for each in first]
        else:
            found += first
    return found


def _different_runs(measurements: Iterable[Measurement]) -> int:
    return len({(each.key, each.seed) for each in measurements})


NAMES = {cell.key.words: cell.key for cell in (*published(), *unpublished())}
"""Beginning of the name of a run's folder -> what the run trained."""


def published_values() -> dict[Key, dict[int, float]]:
    """Paper's accuracies in the form of `Values`, as those of seed 0."""
    return {cell.key: {0: cell.accuracy} for cell in published() if cell.accuracy is not None}


def spread(accuracies: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over seeds, None for one seed."""
    numbers = list(accuracies)
    return mean(numbers), stdev(numbers) if len(numbers) > 1 else None
