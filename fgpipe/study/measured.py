"""What a grid has measured: every run's summary, by what it trained, protocol and seed."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fgpipe.errors import UserError
from fgpipe.study.paper import Key, published, unpublished
from fgpipe.study.runs import read_summary

Values = Mapping[Key, Mapping[int, float]]
"""What was trained -> seed -> test accuracy in percent."""


@dataclass(frozen=True)
class Measurement:
    """One run that is done."""

    folder: Path
    key: Key
    summary: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.summary["config"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def accuracy(self) -> float:
        """Of the test set at the end, in percent."""
        return 100 * self.summary["test_accuracy"]

    @property
    def protocol(self) -> str:
        """What must be equal for accuracies of a data set to be compared."""
        config, data = self.config, self.config["data"]
        parts = {
            "training images": data["train_samples"] or "all",
            "test images": data["test_samples"] or "all",
            "epochs": config["epochs"],
            "batch": config["batch_size"],
            "schedule": config["optim"]["schedule"],
            "computed by": {"oracle": "two backward passes", "forward": "forward mode"}[config["tangents"]],
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items())

    @cached_property
    def cosine(self) -> list[tuple[int, dict[int, float]]]:
        """Training step, and block -> cosine of guess and global target there; empty if it was not observed.

        A run that was resumed may have written a step twice; the later line stands.
        """
        path = self.folder / "cosine.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        by_step = {line["step"]: {int(block): value for block, value in line["cosine"].items()} for line in lines}
        return sorted(by_step.items())

    @property
    def observed(self) -> tuple[int, int]:
        """How much there is to plot: steps with cosines, and heads with curves."""
        return len(self.cosine), sum(len(epoch["test"]) for epoch in self.summary["epochs"])

    def curve(self, phase: str, block: int, figure: str = "loss") -> list[float]:
        """Of a block's head, by epoch; empty if it has none."""
        epochs = [epoch[phase].get(str(block)) for epoch in self.summary["epochs"]]
        return [scores[figure] for scores in epochs if scores is not None]


@dataclass(frozen=True)
class Collection:
    """All measurements below a folder: of each data set those of one protocol, and the rest."""

    kept: list[Measurement]
    """One for each key and seed, the one that observed most; of each data set the protocol with the most."""
    others: list[tuple[Measurement, str]]
    """Not compared, and why."""

    @classmethod
    def read(cls, folder: Path) -> "Collection":
        """Raises: UserError: no run of a grid is done in there."""
        found = [measurement for path in sorted(folder.rglob("summary.json")) if (measurement := _read(path.parent))]
        if not found:
            raise UserError(f"{folder}: no run of a grid is done in there; python -m fgpipe.grid makes them")
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for each in found:
            sizes[each.key.dataset, each.protocol] += 1
        main = {
            name: max((size, protocol) for (other, protocol), size in sizes.items() if other == name)[1]
            for name, _ in sizes
        }
        kept: dict[tuple[Key, int], Measurement] = {}
        others = []
        for each in sorted(found, key=lambda each: each.observed, reverse=True):
            if each.protocol != main[each.key.dataset]:
                others.append((each, "another protocol than most"))
            elif (each.key, each.seed) in kept:
                others.append((each, f"measured before in {kept[each.key, each.seed].folder.name}"))
            else:
                kept[each.key, each.seed] = each
        return cls(list(kept.values()), others)

    @cached_property
    def values(self) -> Values:
        """The accuracies kept."""
        found: dict[Key, dict[int, float]] = defaultdict(dict)
        for each in self.kept:
            found[each.key][each.seed] = each.accuracy
        return found

    def protocols(self) -> dict[str, str]:
        """Of each data set."""
        return {each.key.dataset: each.protocol for each in self.kept}


def _read(folder: Path) -> Measurement | None:
    """None if the run is not done or is no run of a grid."""
    summary = read_summary(folder)
    key = NAMES.get(folder.name.rpartition("-s")[0])
    return Measurement(folder, key, summary) if summary is not None and key is not None else None


NAMES = {cell.key.words: cell.key for cell in (*published(), *unpublished())}
"""How the name of a run's folder begins -> what it trained."""


def published_values() -> dict[Key, dict[int, float]]:
    """The paper's accuracies in the form of `Values`, as those of seed 0."""
    return {cell.key: {0: cell.accuracy} for cell in published() if cell.accuracy is not None}


def spread(accuracies: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over seeds, None for one seed."""
    numbers = list(accuracies)
    return mean(numbers), stdev(numbers) if len(numbers) > 1 and all(map(math.isfinite, numbers)) else None
