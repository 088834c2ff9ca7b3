"""Time to accuracy, computed: epochs to the accuracy times images of an epoch over images per second; and its tables."""

import math
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


def cluster_table(
    goals: Sequence[float], rates: Mapping[str, Rate], curves: Mapping[str, Sequence[Curve]], images: int
) -> str:
    """Markdown: each method's speed and computed time to each goal, and who is first.

    Args: curves: of each method with the delays of the cluster.
    """
    head = ["method", "images/s", "bytes back per batch", *(f"{percent(goal)}, computed" for goal in goals)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    times = {
        name: [[seconds_to(goal, curve, images, rate.images_per_second) for curve in curves[name]] for goal in goals]
        for name, rate in rates.items()
    }
    for name, rate in rates.items():
        speed = f"{rate.images_per_second:.1f}{' (computed)' if rate.computed else ''}"
        lines.append(f"| {' | '.join([name, speed, f'{rate.bytes_back:,.0f}', *map(time_cell, times[name])])} |")
    firsts = []
    for at, goal in enumerate(goals):
        means = {name: mean for name, of in times.items() if (mean := mean_time(of[at])) is not None}
        first = min(means, key=lambda name: means[name], default=None)
        firsts.append(f"{percent(goal)}: {'nobody' if first is None else first}")
    return "\n".join(lines) + f"\n\nFirst at {'; '.join(firsts)}.\n"


def overview(results: RaceResults, variants: Mapping[tuple[str, str], int]) -> str:
    """Markdown: each method's computed time to the highest goal on each cluster, the least of a cluster in bold.

    Args: variants: the key of `RaceResults.curves` of a method on a cluster.
    """
    goal, times = max(results.goals), {}
    for cluster, rates in results.rates.items():
        for name, rate in rates.items():
            curves = results.curves[name][variants[name, cluster]]
            times[name, cluster] = [seconds_to(goal, each, results.images, rate.images_per_second) for each in curves]
    means = {way: mean for way, of in times.items() if (mean := mean_time(of)) is not None}
    least = {
        where: min((mean for (_, at), mean in means.items() if at == where), default=None) for where in results.rates
    }
    lines = [f"| method | {' | '.join(results.rates)} |", "|" + "---|" * (1 + len(results.rates))]
    for name in results.curves:
        cells = [time_cell(times[name, cluster]) for cluster in results.rates]
        first = [means.get((name, cluster), math.inf) == least[cluster] for cluster in results.rates]
        lines.append(f"| {name} | {' | '.join(f'**{c}**' if f else c for c, f in zip(cells, first, strict=True))} |")
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
