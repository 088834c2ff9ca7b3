"""Published accuracies of the paper (tables 2 to 12) as data, in our names, and the sizes of its data sets."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Key(NamedTuple):
    """Identity of what is trained, whatever table it is in; the fields are those of `Cell`."""

    dataset: str
    blocks: int
    width: str
    target: str
    guess: str
    aux: str | None
    space: str | None

    @property
    def words(self) -> str:
        """Words for names of files and folders: the standard width and what is None are left out."""
        dataset, blocks, width, *rest = self
        words = [dataset, blocks, *rest, None if width == "1" else width]
        return "-".join(str(word) for word in words if word is not None)


def spelled(name: str) -> str:
    """Spell a name of ours as the paper's tables have it: with hyphens."""
    return name.replace("_", "-")


@dataclass(frozen=True)
class Cell:
    """One accuracy of the paper's tables, or one of ours that belongs beside them.

    `guess`, `target`, `aux` and `space` are the names of `configs/train.yaml`.
    """

    table: int
    dataset: str
    """Key of `DATASETS`."""
    blocks: int
    width: str
    """Width: 1 for the standard net, else w1 < w2 < w3, whose factors the paper's text lost."""
    target: str
    guess: str
    aux: str | None
    """Auxiliary net that makes guess or target; None where neither needs one."""
    space: str | None
    """Space; None where the guess is the target's own gradient, which leaves nothing to project."""
    accuracy: float | None
    """Published test accuracy in percent; None for a cell that the paper does not have."""
    std: float | None
    """Published plus-minus in percentage points; None where the paper has none."""

    @property
    def key(self) -> Key:
        return Key(self.dataset, self.blocks, self.width, self.target, self.guess, self.aux, self.space)


@dataclass(frozen=True)
class DatasetFacts:
    """Published size of a data set, to count FLOPs without reading it."""

    train: int
    test: int
    classes: int
    channels: int


DATASETS = {
    "cifar10": DatasetFacts(50_000, 10_000, 10, 3),
    "cifar100": DatasetFacts(50_000, 10_000, 100, 3),
    "fashion_mnist": DatasetFacts(60_000, 10_000, 10, 1),
    "imagenette": DatasetFacts(9_469, 3_925, 10, 3),
    "imagenet32": DatasetFacts(1_281_167, 50_000, 1_000, 3),
}


@cache
def published() -> tuple[Cell, ...]:
    """Read all 462 cells, in the order of `tables.csv`."""
    text = (files("fgpipe.study.paper") / "tables.csv").read_text()
    return tuple(_cell(row) for row in csv.DictReader(text.splitlines()))


def _cell(row: dict[str, str]) -> Cell:
    return Cell(
        table=int(row["table"]),
        dataset=row["dataset"].replace("-", "_"),
        blocks=int(row["blocks"]),
        width=row["width"],
        target=row["target"],
        guess=row["guess"].replace("-", "_"),
        aux=row["aux"] or None,
        space=row["space"] or None,
        accuracy=float(row["accuracy"]),
        std=float(row["std"]) if row["std"] else None,
    )


def unpublished() -> tuple[Cell, ...]:
    """Cells that table 3 lacks and its claims need: random guesses on CIFAR-10 in 8 blocks."""
    return tuple(
        Cell(3, "cifar10", 8, "1", "global", guess, None, space, None, None)
        for guess in ("gaussian", "rademacher")
        for space in ("activity", "weight")
    )
