"""The map of winners: who is first over link rate and round trip, and over slowness and number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

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
    "local target 2": "#6d7887",
    "local target 4": "#3f4650",
    "local target 8": INK,
    "local guess": GUESS_COLORS["local"],
    "local guess every 8": "#76aee6",
    "random guess": GUESS_COLORS["gaussian"],
}
"""Of the race's methods; the fewer modules with a local target, the lighter."""
NOBODY = "nobody"


@dataclass(frozen=True)
class Winner:
    """The first on a cluster."""

    name: str
    """A method of the race, or `NOBODY`."""
    clear: bool = True
    """The second is further behind than predictions err; others have a dot."""


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
    from matplotlib.colors import to_rgb

    edge: dict[str, Any] = {"color": "white", "linewidth": 2}
    colors = [[to_rgb(COLORS.get(each.name, "#ffffff")) for each in row] for row in found]
    axes.imshow(colors, origin="lower", aspect="auto")
    for row, column in np.ndindex(len(y), len(x)):
        name = found[row][column].name
        if column and found[row][column - 1].name != name:
            axes.plot([column - 0.5] * 2, [row - 0.5, row + 0.5], **edge)
        if row and found[row - 1][column].name != name:
            axes.plot([column - 0.5, column + 0.5], [row - 0.5] * 2, **edge)
        if not found[row][column].clear:
            axes.plot(column, row, ".", color="white", markersize=4)
    axes.set_xticks(range(len(x)), x, rotation=45, ha="right")
    axes.set_yticks(range(len(y)), y)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    for name, ((column, row), narrow) in middles(found).items():
        axes.text(
            column, row, fill(name, 15), ha="center", va="center", fontsize=8, rotation=90 if narrow else 0,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def middles(found: Sequence[Sequence[Winner]]) -> dict[str, tuple[tuple[float, float], bool]]:
    """Place of each winner's name, column and row, and whether all of its cells are in one column: the middle of its longest
    run of cells in a row, in the middle one of the rows that have such a run."""
    runs: dict[str, list[tuple[int, int, float]]] = {}
    for row, winners in enumerate(found):
        for name, each in groupby(enumerate(winners), key=lambda cell: cell[1].name):
            columns = [column for column, _ in each]
            runs.setdefault(name, []).append((len(columns), row, (columns[0] + columns[-1]) / 2))
    places: dict[str, tuple[tuple[float, float], bool]] = {}
    for name, own in runs.items():
        longest = [run for run in own if run[0] == max(own)[0]]
        length, row, middle = longest[(len(longest) - 1) // 2]
        places[name] = (middle, row), len(own) > 1 and length == 1 and len({run[2] for run in own}) == 1
    return places
