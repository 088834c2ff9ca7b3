"""`python -m fgpipe.advise [key=value ...]`: which method to train with on a cluster, by predicted time to accuracy.

    processes=8         machines, each with cores of its own and a run of the net's eight blocks
    link.rate=100Mbit link.rtt=50ms link.between=[0]    the links between them, as fgpipe.train has them
    slow=4x             the work of the first process takes so many times as long
    stall=10s/60s       the first process stands still for so long of every period
    goal=0.5            the accuracy that counts
    results=FILE        race.json of `python -m fgpipe.study race`, which has the accuracy of every method after each epoch;
                        docs/results/race.json by default. Without one the ranking is by images per second alone
    calibration=FILE    of `python -m fgpipe.study simulation` or `python -m fgpipe.simulate`, whose net is predicted;
                        docs/results/calibration.json by default
    map=FILE            a picture too, in two minutes: who is first over link rate and round trip, and over slowness and
                        number of processes, all else as above; a dot where the second is less than 15 % behind

Time = epochs to the goal x images of an epoch / predicted images per second. End to end is one process, on a machine that is
neither slow nor stalls. Memory is that of the race's runs in one process. A method is left out where the simulator does not
model it: 1F1B over links with a round trip. Exit codes: 0, done; 2, bad input; 130, interrupted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgpipe.command import command
from fgpipe.config import CONFIGS, LinkConfig, compose_config
from fgpipe.config.arguments import check_keys, own_keys
from fgpipe.config.units import seconds
from fgpipe.errors import bad_value, one_line
from fgpipe.saving.outputs import check_file
from fgpipe.study.race.clusters import FAST, Stall
from fgpipe.study.race.figures import RaceResults, Rate, mean_time, percent, seconds_to, time_cell
from fgpipe.study.race.map import NOBODY, Winner, draw
from fgpipe.study.race.methods import BLOCKS, RaceMethod, methods
from fgpipe.study.race.predict import AdvisedCluster, Prediction, predictions
from fgpipe.study.simulator.calibration import Calibration
from fgpipe.study.simulator.command import WITHIN, accuracy

RESULTS = CONFIGS.parent / "docs" / "results"
LINK = ("link.rate", "link.rtt", "link.between")


@dataclass
class AdviseOptions:
    """Keys of this command."""

    processes: int = 8
    slow: str | None = None
    stall: str | None = None
    goal: float = 0.5
    results: str | None = None
    calibration: str | None = None
    map: str | None = None

    def cluster(self, link: LinkConfig) -> AdvisedCluster:
        """Raises: UserError: a value that it cannot have."""
        if not 2 <= self.processes <= BLOCKS:
            raise bad_value("processes", self.processes, f"2 to {BLOCKS}")
        if not 0 < self.goal < 1:
            raise bad_value("goal", self.goal, "an accuracy between 0 and 1")
        if link.between is not None and max(link.between) > self.processes - 2:
            allowed = f"0 to {self.processes - 2} with {self.processes} processes"
            raise bad_value("link.between", list(link.between), allowed)
        return AdvisedCluster(self.processes, link, factor(self.slow), stalls(self.stall))


def factor(text: str | None) -> float:
    """`4x` -> 4.0; None is 1.

    Raises:
        UserError: it is no such factor.
    """
    if text is None:
        return 1.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x", text)
    if not found or float(found[1]) < 1:
        raise bad_value("slow", text, "a factor of at least 1, such as 4x")
    return float(found[1])


def stalls(text: str | None) -> Stall | None:
    """`10s/60s` -> a stall of 10 s in every 60 s.

    Raises:
        UserError: it is no such pair of times.
    """
    if text is None:
        return None
    try:
        first, period = map(seconds, text.split("/"))
    except ValueError as error:
        raise bad_value("stall", text, "two times such as 10s/60s") from error
    if first >= period:
        raise bad_value("stall", text, "a stall that is shorter than its period, such as 10s/60s")
    return Stall(first, period)


def raced(path: Path, asked: bool) -> RaceResults | None:
    """Load the results of a race; None if there is no such file, and it was not asked for.

    Raises:
        UserError: the file has something else.
    """
    if not asked and not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        curves = {name: {int(key): of for key, of in each.items()} for name, each in found["curves"].items()}
        rates = {name: {method: Rate(**of) for method, of in each.items()} for name, each in found["rates"].items()}
        learning_rates = {name: float(rate) for name, rate in found["learning_rates"].items()}
        return RaceResults(
            found["images"],
            found["batch_size"],
            found["processes"],
            found["goals"],
            curves,
            rates,
            learning_rates=learning_rates,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        allowed = f"a race.json of `python -m fgpipe.study race` ({one_line(error)})"
        raise bad_value("results", path, allowed) from error


@dataclass(frozen=True)
class Advice:
    """One method, as it is ranked."""

    name: str
    prediction: Prediction
    times: Sequence[float | None] | None
    """Predicted seconds to the goal, of each seed; None: unknown."""
    memory: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """Least first: by the time to the goal, and by rate where it is unknown or not all seeds get there."""
        mean = mean_time(self.times or [])
        return float("inf") if mean is None else mean, -self.prediction.images_per_second


def ranking(
    found: Mapping[str, Prediction],
    results: RaceResults | None,
    goal: float,
    cluster: AdvisedCluster,
    wanted: Mapping[str, RaceMethod],
) -> list[Advice]:
    """Every predicted method, the best first; accuracies are known where the race had the delays of the cluster."""
    rows = []
    for name, prediction in found.items():
        times, memory = None, None
        if results is not None:
            variant = wanted[name].variant(cluster.ahead)
            curves = results.curves.get(name, {}).get(variant)
            if curves is not None and (not variant or results.processes == cluster.processes):
                rate = prediction.images_per_second
                times = [seconds_to(goal, curve, results.images, rate) for curve in curves]
            measured = [
                rates[name].memory for cluster, rates in sorted(results.rates.items(), key=fast_first) if name in rates
            ]
            memory = measured[0] if measured else None
        rows.append(Advice(name, prediction, times, memory))
    return sorted(rows, key=lambda row: row.rank)


def winner(rows: Sequence[Advice]) -> Winner:
    """The first of a ranking; nobody if accuracies are known and none gets there. It is clear if all are known, or none."""
    first, second = rows[:2]
    times = [None if row.times is None else mean_time(row.times) for row in rows]
    if first.times is not None and times[0] is None:
        return Winner(NOBODY)
    if times[0] is None:
        return Winner(
            first.name, first.prediction.images_per_second > (1 + WITHIN) * second.prediction.images_per_second
        )
    known = all(row.times is not None for row in rows)
    return Winner(first.name, known and (times[1] is None or times[1] > (1 + WITHIN) * times[0]))


def fast_first(item: tuple[str, object]) -> bool:
    """Key that sorts the fast cluster before the others."""
    return item[0] != FAST


def table(rows: Sequence[Advice], goal: float) -> str:
    """Markdown: the ranking."""
    head = [
        "",
        "method",
        f"to {percent(goal)}, predicted",
        "images/s",
        "updates late",
        "bytes back per batch",
        "memory of all blocks, MB",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for number, row in enumerate(rows, 1):
        of = row.prediction
        cells = [str(number), row.name, "unknown" if row.times is None else time_cell(row.times)]
        cells += [f"{of.images_per_second:.1f}", str(of.staleness), f"{of.bytes_back:,.0f}"]
        cells.append("unknown" if row.memory is None else f"{row.memory / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def start(method: RaceMethod, prediction: Prediction, ahead: int, learning_rate: float | None) -> str:
    """Command that trains so.

    Args: learning_rate: of the race; None: unknown.
    """
    processes, keys = len(prediction.sizes), list(method.overrides(prediction.sizes, ahead))
    if learning_rate is not None:
        keys += ["optim=one_cycle", f"optim.lr={learning_rate:g}"]
    if processes > 1:
        keys.append(f"partition=[{','.join(map(str, prediction.sizes))}]")
    begin = "python" if processes == 1 else f"torchrun --nproc_per_node={processes}"
    return f"{begin} -m fgpipe.train data=cifar10 data.root=DIR {' '.join(keys)}"


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print((__doc__ or "").rstrip())
        return 0
    options, rest = own_keys(arguments, AdviseOptions())
    check_keys(rest, [*LINK, *AdviseOptions.__dataclass_fields__])
    cluster = options.cluster(compose_config(rest).link if rest else LinkConfig())
    if options.map is not None:
        check_file("map", Path(options.map))
    results = raced(Path(options.results or RESULTS / "race.json"), options.results is not None)
    calibration = Calibration.read(Path(options.calibration or RESULTS / "calibration.json"))

    def advice(cluster: AdvisedCluster) -> list[Advice]:
        wanted = methods(cluster.processes)
        return ranking(predictions(calibration, cluster), results, options.goal, cluster, wanted)

    rows, wanted = advice(cluster), methods(options.processes)
    print(table(rows, options.goal))
    print(f"Rates: simulated; measured on {calibration.machine}. {accuracy(calibration.errors)}")
    print("Hosts of launch/two_hosts and slow processes are not among these, and err more: docs/results/race.md.")
    if results is None:
        print("Ranked by images per second alone: there is no race.json, so no accuracy is known.")
    else:
        print(
            f"Accuracies: measured, late ones with the delays of {results.processes} processes; memory: of the same runs."
        )
    if missing := sorted(set(wanted) - {row.name for row in rows}):
        print(f"Not modelled on such links: {', '.join(missing)}.")
    first = rows[0]
    rate = None if results is None else results.learning_rates.get(first.name)
    print(f"\nThe first: {start(wanted[first.name], first.prediction, cluster.ahead, rate)}")
    if options.map is not None:
        prize = "Most images per second, predicted"
        if results is not None:
            prize = (
                f"First at {percent(options.goal)}, predicted; late methods with {results.processes} processes alone"
            )
        draw(Path(options.map), cluster, prize, lambda where: winner(advice(where)))
    return 0
