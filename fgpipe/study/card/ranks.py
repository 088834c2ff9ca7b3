"""Agreement of the measured order of cells with the published one, and how much of it hangs on single cells."""

from dataclasses import dataclass
from functools import cached_property
from statistics import mean

import numpy as np
from scipy import stats

from fgpipe.study.card.claims import CONFIDENCE, RANDOM
from fgpipe.study.card.measured import Values
from fgpipe.study.paper.tables import Key

RESAMPLES = 2000
"""Draws of the cells, with replacement, for the interval."""
PARTS = {
    "both blocks and spaces": lambda key: True,
    "8 blocks": lambda key: key.blocks == 8,
    "16 blocks": lambda key: key.blocks == 16,
    "activity": lambda key: key.space == "activity",
    "weight": lambda key: key.space == "weight",
}
"""Parts of a row: which of its cells."""


@dataclass(frozen=True)
class Ranks:
    """Cells with their measured and published accuracies."""

    keys: list[Key]
    measured: list[float]
    published: list[float]

    @classmethod
    def of(cls, values: Values, published: Values) -> "Ranks":
        """Take the cells of tables 2 and 3 on CIFAR-10 that are measured and published; seeds averaged."""
        keys = [key for key in published if key in values and _in_tables_2_and_3(key)]
        return cls(keys, [mean(values[key].values()) for key in keys], [published[key][0] for key in keys])

    @cached_property
    def spearman(self) -> float | None:
        """Spearman's correlation; None with fewer than three cells, or all of one rank."""
        if len(self.keys) < 3 or len(set(self.measured)) == 1 or len(set(self.published)) == 1:
            return None
        return float(stats.spearmanr(self.measured, self.published).statistic)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Percentile bootstrap over cells, always with the same draws; None where there is no correlation."""
        if self.spearman is None:
            return None
        chosen = np.random.default_rng(0).integers(len(self.keys), size=(RESAMPLES, len(self.keys)))
        ranks = [stats.rankdata(np.array(numbers)[chosen], axis=1) for numbers in (self.measured, self.published)]
        a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
        scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        found = (a * b).sum(axis=1)[scale > 0] / scale[scale > 0]  # a draw of one cell alone has no correlation
        low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    @property
    def shown(self) -> str:
        """Correlation with its interval, or why there is none."""
        if self.spearman is None or self.interval is None:
            return "too few cells"
        return f"{self.spearman:.3f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"

    def without_row(self) -> list[tuple[Key, list[float | None]]]:
        """Cell of each row (guess and auxiliary net) -> the correlation without its cells in each of `PARTS`; None
        where there are no such cells or no correlation is left."""
        rows: dict[tuple[str, str | None], Key] = {}
        for key in self.keys:
            rows.setdefault((key.guess, key.aux), key)
        return [(key, [self._without(row, part) for part in PARTS]) for row, key in rows.items()]

    def _without(self, row: tuple[str, str | None], part: str) -> float | None:
        out = [(key.guess, key.aux) == row and PARTS[part](key) for key in self.keys]
        if not any(out):
            return None
        kept = [index for index, left in enumerate(out) if not left]
        numbers = ([values[index] for index in kept] for values in (self.measured, self.published))
        return Ranks([self.keys[index] for index in kept], *numbers).spearman

    @property
    def disagreements(self) -> list[tuple[Key, float, float]]:
        """Key, measured rank and published rank (1 is the best), the largest difference first."""
        ranks = [stats.rankdata([-value for value in values]) for values in (self.measured, self.published)]
        rows = [(key, float(a), float(b)) for key, a, b in zip(self.keys, *ranks, strict=True)]
        return sorted(rows, key=lambda row: -abs(row[1] - row[2]))


def _in_tables_2_and_3(key: Key) -> bool:
    guesses = ("end_to_end", "local", "ntk", *RANDOM)
    return (
        key.dataset == "cifar10"
        and key.target == "global"
        and key.width == "1"
        and key.guess in guesses
        and key.aux != "predsim"
    )
