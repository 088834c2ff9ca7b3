"""Claims of the paper on the cosine of local guess and global target, from the runs that observed it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from fgpipe.study.card.claims import CONFIDENCE, FEWEST, ClaimVerdict, half_width
from fgpipe.study.card.measured import Measurement
from fgpipe.study.paper.tables import Key

SPACES = ("weight", "activity")


@dataclass(frozen=True)
class Positivity:
    """Claim that the mean cosine of every block is above zero; read as `ClaimVerdict`."""

    claim: str
    cells: Mapping[Key, Sequence[Sequence[float]]]
    """Cell -> block -> cosine at each observed step of its runs. Steps count as independent."""
    sample: str = "the mean over the observed steps of one block of one cell"

    @property
    def means(self) -> dict[tuple[Key, int], float]:
        """Cell and block -> mean over steps."""
        return {place: mean(numbers) for place, numbers in self._steps()}

    @property
    def unsure(self) -> list[tuple[Key, int]]:
        """Cell and block of every mean whose interval does not lie above zero."""
        return [place for place, numbers in self._steps() if not _interval(numbers, CONFIDENCE)[0] > 0]

    @property
    def word(self) -> str:
        """Verdict: supported if the interval of every mean lies above zero (all must, so that each keeps its level);
        contradicted if that of one lies below, at a level that allows for as many intervals as there are means; else too
        little data."""
        if len(self.cells) < FEWEST:
            return "too little data"
        level = 1 - (1 - CONFIDENCE) / len(self.means)
        if any(_interval(numbers, level)[1] < 0 for _, numbers in self._steps()):
            return "contradicted"
        return "too little data" if self.unsure else "supported"

    @property
    def numbers(self) -> str:
        if not self.cells:
            return "no cells"
        means, unsure = self.means, len(self.unsure)
        (key, block), lowest = min(means.items(), key=lambda item: item[1])
        return (
            f"{len(means) - unsure} of {len(means)} block means above 0 by their intervals, in {len(self.cells)} cells; "
            f"the lowest is {lowest:+.2g} ({key.words}, block {block})"
        )

    @property
    def details(self) -> list[str]:
        """Means whose intervals do not lie above zero, a line for each cell."""
        by_cell: dict[Key, list[str]] = defaultdict(list)
        for key, block in self.unsure:
            by_cell[key].append(f"block {block} {self.means[key, block]:+.2g}")
        return [f"not clearly above 0: {key.words}: {', '.join(blocks)}" for key, blocks in by_cell.items()]

    def _steps(self) -> Iterator[tuple[tuple[Key, int], Sequence[float]]]:
        for key, blocks in self.cells.items():
            yield from (((key, block), numbers) for block, numbers in enumerate(blocks))


def _interval(numbers: Sequence[float], confidence: float) -> tuple[float, float]:
    """Interval around the mean; unbounded where there are too few numbers."""
    half = half_width(numbers, confidence)
    half = math.inf if half is None else half
    return mean(numbers) - half, mean(numbers) + half


def alignment_verdicts(measurements: Sequence[Measurement]) -> Iterator[ClaimVerdict | Positivity]:
    """Judge both claims, of each space on its own: with a global target, seeds of a cell averaged."""
    for space in SPACES:
        cells = _cells([each for each in measurements if each.key.space == space])
        yield ClaimVerdict(
            f"Alignment rises with depth, {space} space",
            "cosine",
            "cells",
            "mean cosine of the upper half of the blocks less that of the lower half",
            [_rise([mean(steps) for steps in blocks]) for blocks in cells.values()],
        )
        yield Positivity(f"Alignment stays positive, {space} space", cells)


def _rise(by_block: Sequence[float]) -> float:
    half = len(by_block) // 2
    return mean(by_block[half:]) - mean(by_block[:half])


def _cells(measurements: Sequence[Measurement]) -> dict[Key, list[list[float]]]:
    """Cell with a local guess and a global target -> block -> cosine at each observed step of its runs."""
    found: dict[Key, list[list[float]]] = {}
    for each in measurements:
        if each.key.guess == "local" and each.key.target == "global" and each.cosine:
            blocks = found.setdefault(each.key, [[] for _ in range(each.key.blocks - 1)])
            for block, steps in enumerate(blocks):
                steps.extend(line[block] for _, line in each.cosine)
    return found
