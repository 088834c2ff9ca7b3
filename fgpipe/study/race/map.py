"""The map of winners: who is first over link rate and round trip, and over slowness and number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgpipe.study.common.figure import GUESS_COLORS, INK, drawn
from fgpipe.study.race.predict import AdvisedCluster

RATES = ("1Mbit", "3Mbit", "10Mbit", "30Mbit", "100Mbit", "300Mbit", "1Gbit", "3Gbit", "10Gbit")
TRIPS = (None, "1ms", "10ms", "30ms", "100ms", "300ms")
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
PROCESSES = (2, 3, 4, 5, 6, 7, 8)
COLORS = {
    "end to end": GUESS_COLORS["end_to_end"],
    "1F1B": "#b5893a",
    "async 1F1B": "#d9822b",
    "async 1F1B look-ahead": "#c2447f",
    "local target 2": "#5b6470",
    "local target 4": "#3f4650",
    "local target 8": INK,
    "local guess": GUESS_COLORS["local"],
    "local guess every 8": "#76aee6",
    "random guess": GUESS_COLORS["gaussian"],
}
"""Of the race's methods; the fewer modules with a local target, the lighter."""
NOBODY = "nobody"
PALE = 0.5
"""Opacity of a winner that is not clear."""


@dataclass(frozen=True)
class Winner:
    """The first on a cluster."""

    name: str
    """A method of the race, or `NOBODY`."""
    clear: bool = True
    """The second is further behind than predictions err."""


Judge = Callable[[AdvisedCluster], Winner]


def grids(cluster: AdvisedCluster, judge: Judge) -> tuple[list[list[Winner]], list[list[Winner]]]:
    """Winners by round trip and link rate, and by number of processes and slowness; all else as the cluster has it."""
    links = [
        [judge(replace(cluster, link=replace(cluster.link, rate=rate, rtt=trip))) for rate in RATES] for trip in TRIPS
    ]
    slow = [[judge(replace(cluster, processes=count, slow=factor)) for factor in FACTORS] for count in PROCESSES]
    return links, slow


def draw(path: Path, cluster: AdvisedCluster, prize: str, judge: Judge) -> None:
    """Draw both panels.

    Args: prize: what the winner is first at.

    Raises:
        OutputError: it cannot be written.
    """
    machines = f"{cluster.processes} processes" + (f", the first {cluster.slow:g}x slower" if cluster.slow > 1 else "")
    factors = [f"{factor:g}x" for factor in FACTORS]
    with drawn(path, (10, 4), across=2) as (left, right):
        links, slow = grids(cluster, judge)
        _panel(
            left,
            links,
            RATES,
            [trip or "none" for trip in TRIPS],
            ("link rate, bits per second", "round trip"),
            machines,
        )
        where = "slow links" if cluster.link.slow else "fast links"
        _panel(right, slow, factors, list(map(str, PROCESSES)), ("slowness of the first process", "processes"), where)
        left.figure.suptitle(prize, fontsize=11)


def _panel(
    axes: Any,
    found: Sequence[Sequence[Winner]],
    x: Sequence[str],
    y: Sequence[str],
    labels: tuple[str, str],
    title: str,
) -> None:
    from matplotlib.colors import to_rgba

    colors = [[to_rgba(COLORS.get(each.name, "#ffffff"), 1.0 if each.clear else PALE) for each in row] for row in found]
    axes.imshow(colors, origin="lower", aspect="auto")
    axes.set_xticks(range(len(x)), x, rotation=45, ha="right")
    axes.set_yticks(range(len(y)), y)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    for name, ((column, row), narrow) in middles(found).items():
        axes.text(
            column, row, name, ha="center", va="center", fontsize=8, rotation=90 if narrow else 0,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def middles(found: Sequence[Sequence[Winner]]) -> dict[str, tuple[tuple[int, int], bool]]:
    """Place of each winner's name, column and row: that of its own cells which is nearest to their middle; and whether they
    are in one column."""
    cells: dict[str, list[tuple[int, int]]] = {}
    for row, winners in enumerate(found):
        for column, winner in enumerate(winners):
            cells.setdefault(winner.name, []).append((column, row))
    places = {}
    for name, own in cells.items():
        across, up = (sum(each) / len(own) for each in zip(*own, strict=True))
        place = min(own, key=lambda cell: (cell[0] - across) ** 2 + (cell[1] - up) ** 2)
        places[name] = place, len({column for column, _ in own}) == 1 < len(own)
    return places
