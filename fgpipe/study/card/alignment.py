"""Claims of the paper on the cosine of local guess and global target, from the runs that observed it."""

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
    """Cell -> block -> mean cosine over the observed steps of each run."""
    sample: str = "the mean over the runs of one block of one cell"

    @property
    def means(self) -> dict[tuple[Key, int], float]:
        """Cell and block -> mean over runs."""
        return {(key, block): mean(runs) for key, blocks in self.cells.items() for block, runs in enumerate(blocks)}

    @property
    def counterexamples(self) -> list[tuple[Key, int]]:
        """Cell and block of every mean at or below zero."""
        return [place for place, number in self.means.items() if number <= 0]

    @property
    def word(self) -> str:
        """Verdict: supported if none is at or below zero; contradicted if the interval over the runs of one lies below zero, at
        a level that allows for as many intervals as there are means; else too little data."""
        if len(self.cells) < FEWEST:
            return "too little data"
        level = 1 - (1 - CONFIDENCE) / len(self.means)
        for key, block in self.counterexamples:
            half = half_width(self.cells[key][block], level)
            if half is not None and self.means[key, block] + half < 0:
                return "contradicted"
        return "too little data" if self.counterexamples else "supported"

    @property
    def numbers(self) -> str:
        if not self.cells:
            return "no cells"
        (key, block), lowest = min(self.means.items(), key=lambda item: item[1])
        return (
            f"{len(self.counterexamples)} of {len(self.means)} block means at or below 0, in {len(self.cells)} cells; "
            f"the lowest is {lowest:+.2g} ({key.words}, block {block})"
        )

    @property
    def details(self) -> list[str]:
        """Counterexamples, a line for each cell."""
        by_cell: dict[Key, list[str]] = defaultdict(list)
        for key, block in self.counterexamples:
            by_cell[key].append(f"block {block} {self.means[key, block]:+.2g}")
        return [f"at or below 0: {key.words}: {', '.join(blocks)}" for key, blocks in by_cell.items()]


def alignment_verdicts(measurements: Sequence[Measurement]) -> Iterator[ClaimVerdict | Positivity]:
    """Judge both claims, of each space on its own: with a global target, seeds of a cell averaged."""
    for space in SPACES:
        cells = _cells([each for each in measurements if each.key.space == space])
        yield ClaimVerdict(
            f"Alignment rises with depth, {space} space",
            "cosine",
            "cells",
            "mean cosine of the upper half of the blocks less that of the lower half",
            [_rise([mean(runs) for runs in blocks]) for blocks in cells.values()],
        )
        yield Positivity(f"Alignment stays positive, {space} space", cells)


def _rise(by_block: Sequence[float]) -> float:
    half = len(by_block) // 2
    return mean(by_block[half:]) - mean(by_block[:half])


def _cells(measurements: Sequence[Measurement]) -> dict[Key, list[list[float]]]:
    """Cell with a local guess and a global target -> block -> mean cosine over the steps of each run."""
    found: dict[Key, list[list[float]]] = {}
    for each in measurements:
        if each.key.guess == "local" and each.key.target == "global" and each.cosine:
            blocks = found.setdefault(each.key, [[] for _ in range(each.key.blocks - 1)])
            for block, runs in enumerate(blocks):
                runs.append(mean(line[block] for _, line in each.cosine))
    return found
