"""Time to accuracy, computed: epochs to the accuracy times images of an epoch over images per second; and its tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Curve = Sequence[float]
"""Test accuracy after each epoch; empty of a run that diverged."""


@dataclass(frozen=True)
class Rate:
    """Speed of a method on a cluster."""

    images_per_second: float
    bytes_back: float
    """Of all blocks together, per batch."""
    memory: float | None
    """Bytes that training takes of one process with all blocks, above what it held before; None: unknown."""
    computed: bool = False
    """Whether no run on that cluster has measured it."""


@dataclass(frozen=True)
class RacePoint:
    """Cell that was run to its end."""

    method: str
    cluster: str
    seed: int
    accuracies: Curve
    seconds: Sequence[float]
    """Training time of each epoch."""


@dataclass
class RaceResults:
    """Everything that a race has found."""

    images: int
    """Of an epoch."""
    batch_size: int
    processes: int
    goals: list[float]
    curves: dict[str, dict[int, list[Curve]]] = field(default_factory=dict)
    """Method -> batches on the way between processes (`RaceMethod.variant`) -> the curve of each seed."""
    rates: dict[str, dict[str, Rate]] = field(default_factory=dict)
    """Cluster -> method -> speed."""
    points: list[RacePoint] = field(default_factory=list)
    learning_rates: dict[str, float] = field(default_factory=dict)
    """`optim.lr` of each method."""


def epochs_to(goal: float, accuracies: Curve) -> int | None:
    """The number of epochs after which an accuracy is there for the first time; None: never."""
    return next((epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy >= goal), None)


def seconds_to(goal: float, curve: Curve, images: int, rate: float) -> float | None:
    """Computed seconds of training; None: never.

    Args:
        images: of an epoch.
        rate: images per second.
    """
    epochs = epochs_to(goal, curve)
    return None if epochs is None else epochs * images / rate


def measured_seconds(goal: float, point: RacePoint) -> float | None:
    """Seconds that training took; None: never."""
    epochs = epochs_to(goal, point.accuracies)
    return None if epochs is None else sum(point.seconds[:epochs])


def mean_time(times: Sequence[float | None]) -> float | None:
    """Mean seconds over seeds; None: not all get there."""
    known = [each for each in times if each is not None]
    return statistics.mean(known) if len(known) == len(times) > 0 else None


def time_cell(times: Sequence[float | None]) -> str:
    """Mean seconds over the seeds that get there, and how many do not."""
    known = [each for each in times if each is not None]
    if not known:
        return "never"
    lost = len(times) - len(known)
    return f"{seconds(statistics.mean(known))}{f', never in {lost} of {len(times)}' if lost else ''}"


def seconds(time: float) -> str:
    """Time for a person to read, to a tenth of a second where it is short."""
    return f"{time:,.0f} s" if time >= 10 else f"{time:.1f} s"


def percent(goal: float) -> str:
    """A goal for a person to read."""
    return f"{100 * goal:g} %"


def time_cells(
    goal: float, rates: Mapping[str, Rate], curves: Mapping[str, Sequence[Curve]], images: int
) -> dict[str, str]:
    """Computed time of each method to a goal on one cluster; in bold the first of those whose seeds all get there.

    Args: curves: of each method with the delays of the cluster.
    """
    times = {
        name: [seconds_to(goal, curve, images, rate.images_per_second) for curve in curves[name]]
        for name, rate in rates.items()
    }
    means = {name: mean for name, of in times.items() if (mean := mean_time(of)) is not None}
    first = min(means, key=lambda name: means[name], default=None)
    return {name: f"**{time_cell(of)}**" if name == first else time_cell(of) for name, of in times.items()}


def cluster_table(
    goals: Sequence[float], rates: Mapping[str, Rate], curves: Mapping[str, Sequence[Curve]], images: int
) -> str:
    """Markdown: each method's speed and time to each goal; the rest as for `time_cells`."""
    head = ["method", "images/s", "bytes back per batch", *(f"{percent(goal)}, computed" for goal in goals)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    columns = [time_cells(goal, rates, curves, images) for goal in goals]
    for name, rate in rates.items():
        speed = f"{rate.images_per_second:.1f}{' (computed)' if rate.computed else ''}"
        cells = [name, speed, f"{rate.bytes_back:,.0f}", *(column[name] for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def overview(results: RaceResults, variants: Mapping[tuple[str, str], int]) -> str:
    """Markdown: each method's time to the highest goal on each cluster; the rest as for `time_cells`.

    Args: variants: the key of `RaceResults.curves` of a method on a cluster.
    """
    lines = [f"| method | {' | '.join(results.rates)} |", "|" + "---|" * (1 + len(results.rates))]
    columns = []
    for cluster, rates in results.rates.items():
        curves = {name: results.curves[name][variants[name, cluster]] for name in rates}
        columns.append(time_cells(max(results.goals), rates, curves, results.images))
    lines += [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]
    return "\n".join(lines) + "\n"


def accuracy_table(results: RaceResults) -> str:
    """Markdown: learning rate and accuracy after the last epoch, by method and batches on the way between processes."""
    lines = ["| method | batches on the way | learning rate | test accuracy | range |", "|" + "---|" * 5]
    for name, variants in results.curves.items():
        for ahead, curves in variants.items():
            last = [100 * curve[-1] for curve in curves if curve]
            cells = ["", ""]
            if last:
                cells = [f"{statistics.mean(last):.1f} %", f"{min(last):.1f} to {max(last):.1f} %"]
            if lost := len(curves) - len(last):
                cells[0] = ", ".join(filter(None, [cells[0], f"{lost} diverged"]))
            way = str(ahead) if ahead else ""
            lines.append(f"| {name} | {way} | {results.learning_rates[name]:g} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def points_table(results: RaceResults, variants: Mapping[tuple[str, str], int]) -> str:
    """Markdown: points that were run to the end, beside what is computed of the same seed.

    Args: variants: the key of `RaceResults.curves` of a method on a cluster.
    """
    lines = ["| method | cluster | goal | computed | measured | error |", "|" + "---|" * 6]
    for point in results.points:
        curve = results.curves[point.method][variants[point.method, point.cluster]][point.seed]
        rate = results.rates[point.cluster][point.method].images_per_second
        for goal in results.goals:
            computed, measured = seconds_to(goal, curve, results.images, rate), measured_seconds(goal, point)
            error = "" if computed is None or measured is None else f"{computed / measured - 1:+.0%}"
            cells = [time_cell([computed]), time_cell([measured]), error]
            lines.append(f"| {point.method} | {point.cluster} | {percent(goal)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
