"""Rows of the card's table: every published cell, and each of ours, measured beside published."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fgpipe.study.card.measured import Collection, Measurement, spread
from fgpipe.study.paper.tables import Cell, Key, published, spelled, unpublished

PAGE, SUMMARY = "report.html", "summary.json"
"""Files of a run's folder that a row may lead to: the first that is there."""


@dataclass(frozen=True)
class CardRow:
    """One cell; accuracies are in percent."""

    cell: Cell
    measured: float | None
    """Mean over the seeds; None: not measured."""
    deviation: float | None
    """Over the seeds; None of fewer than two."""
    rates: str
    """Learning rates of the runs."""
    links: tuple[tuple[int, str], ...]
    """Seed of each run, and the way to its page from the report's folder."""

    @property
    def words(self) -> tuple[str, ...]:
        """Data set, blocks, width, target, guess, head and space, as a person reads them."""
        key = self.cell.key
        return (
            spelled(key.dataset),
            str(key.blocks),
            key.width,
            key.target,
            spelled(key.guess),
            key.aux or "–",
            key.space or ("–" if key.target != "local" else "plain"),
        )


def rows(collection: Collection, out: Path) -> Iterator[CardRow]:
    """Yield all cells in the order of the paper's tables.

    Args: out: the report's folder, from which links lead.
    """
    runs: dict[Key, list[Measurement]] = defaultdict(list)
    for each in sorted(collection.kept, key=lambda each: each.seed):
        runs[each.key].append(each)
    cells = [*published(), *(cell for cell in unpublished() if cell.key in runs)]
    for cell in sorted(cells, key=lambda cell: cell.table):
        own = runs.get(cell.key, [])
        mean, deviation = spread(each.accuracy for each in own) if own else (None, None)
        rates = " ".join(sorted({f"{each.config['optim']['lr']:g}" for each in own}))
        links = tuple((each.seed, _page(each.folder, out)) for each in own)
        yield CardRow(cell, mean, deviation, rates, links)


def _page(folder: Path, out: Path) -> str:
    name = PAGE if (folder / PAGE).exists() else SUMMARY
    return Path(os.path.relpath(folder / name, out)).as_posix()
