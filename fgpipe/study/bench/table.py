"""Rows that a section measures, the goals that they are held to, and the one table of all."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Amounts that are measured."""

    rounds: tuple[int, ...]
    """Rounds of interleaved calls of a block, at least, for each number of lanes."""
    seconds: float
    """Time until which more of these rounds follow."""
    steps: int
    """Rounds of interleaved training steps, at least; twice as many where two ways should take the same time."""
    step_seconds: float
    """Time as `seconds`, for steps."""
    runs: int
    """Runs of each command that is timed as a whole."""
    widths: tuple[float, ...]
    lanes: tuple[int, ...]
    batch: int
    pixels: int
    """Height and width of the images of steps that are timed in this process."""
    pipelines: tuple[int, ...]
    """Runs of each pipeline, for each width."""
    batches: tuple[int, ...]
    """Batches of such a run, for each width."""
    processes: int
    """Processes of the start."""


FULL = Sizes(
    rounds=(9, 5, 4),
    seconds=1.0,
    steps=3,
    step_seconds=8.0,
    runs=3,
    widths=(1.0, 0.25),
    lanes=(1, 4, 7),
    batch=64,
    pixels=32,
    pipelines=(2, 7),
    batches=(24, 44),
    processes=8,
)
QUICK = Sizes(
    rounds=(1, 1),
    seconds=0.0,
    steps=1,
    step_seconds=0.0,
    runs=1,
    widths=(0.0625,),
    lanes=(1, 2),
    batch=8,
    pixels=16,
    pipelines=(1,),
    batches=(20,),
    processes=2,
)
"""Sizes for the tests, which run every line of code once; the figures mean nothing."""


@dataclass(frozen=True)
class Goal:
    """Bound on a figure."""

    bound: float
    at_most: bool
    """Direction of the bound; else at least."""

    def __str__(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.bound:.4g}"

    def met(self, figure: float) -> bool:
        return figure <= self.bound if self.at_most else figure >= self.bound


def at_most(bound: float) -> Goal:
    return Goal(bound, at_most=True)


def at_least(bound: float) -> Goal:
    return Goal(bound, at_most=False)


@dataclass(frozen=True)
class BenchRow:
    """One line of the table."""

    section: str
    what: str
    figures: Sequence[float]
    """One of each repetition."""
    goal: Goal | None = None
    note: str = ""

    @property
    def measured(self) -> float:
        return statistics.median(self.figures)

    def cells(self) -> list[str]:
        """Texts of the line; ratio and verdict are those of the median."""
        spread = f"{min(self.figures):.3g} to {max(self.figures):.3g}"
        judged = ["", "", ""]
        if self.goal is not None:
            verdict = "met" if self.goal.met(self.measured) else "missed"
            judged = [str(self.goal), f"{self.measured / self.goal.bound:.2f}", verdict]
        goal, ratio, verdict = judged
        return [self.section, self.what, goal, f"{self.measured:.3g}", spread, ratio, verdict, self.note]


def table(rows: Iterable[BenchRow]) -> str:
    """Markdown."""
    head = ["section", "figure", "goal", "measured (median)", "spread", "measured / goal", "verdict", "note"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
