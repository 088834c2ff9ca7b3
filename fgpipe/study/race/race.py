"""Time to accuracy: who is first at 45, 50 and 55 % on which cluster.

    python -m fgpipe.study race FOLDER data.root=DIR [methods=[1F1B,...]] [clusters=[fast,far,uneven,slow,stalls]]
                                [goals=[0.45,0.5,0.55]] [seeds=3] [rates=[0.025,0.05,0.1]] [rate_epochs=N]
                                [points=[1F1B@far,...]] [processes=2] [batches=16] [rounds=3] [jobs=1] [out=DIR]
                                [key=value ...]

The setting is that of `study modules`. Accuracy after each epoch comes from runs in one process, with the windows that the
blocks have in `processes` of them: who sits where changes no bit. Images per second come from short runs on noise on each
cluster: links are those of `launch/two_hosts`, which takes root, and a slow process is `slow.process`. The rate of a cluster
that stalls is that of the fast one times the share of time without stalls. End to end is one process, on a machine that is
neither slow nor stalls, and its rate is the same everywhere.

Time to accuracy = epochs to it x images of an epoch / images per second, and is marked as computed. Each of `points`,
METHOD@CLUSTER, is also run to its end on that cluster (seed 0), and the table has the error. A run that never gets there
says so. Each of `rates` is first tried once for every method, with the delays of the fast cluster, in `rate_epochs` epochs
(without it: all), on 3,000 training images that are held out. The setting's rate stays unless another is better by more than
a standard error; look-ahead has ten times the rate, as it discounts it. Without `rates` all have the setting's. With rounds=0
nothing is timed, so the machine may do other work, and there is no table.

Runs that FOLDER has are not run again. The tables are printed and written to DIR/race.md, in FOLDER without `out`; their
figures to race.json beside it, which `python -m fgpipe.advise` reads.
"""

import json
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fgpipe.errors import bad_value
from fgpipe.observe.record import commit, machine
from fgpipe.saving import durable
from fgpipe.saving.outputs import written
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.accuracies.scaled import RatedOptions, Trainings, best_rates, diverged, settings, timed_keys
from fgpipe.study.common.arguments import check_choice, claim, read
from fgpipe.study.common.runs import command_line, page, quoted, read_summary, write_page
from fgpipe.study.common.series import launch
from fgpipe.study.common.split import data_facts
from fgpipe.study.contests.contest import Contest, Contestant, ContestOptions
from fgpipe.study.contests.link import check_rights
from fgpipe.study.race.clusters import CLUSTERS, FAST
from fgpipe.study.race.figures import (
    RacePoint,
    RaceResults,
    Rate,
    accuracy_table,
    cluster_table,
    overview,
    percent,
    points_table,
)
from fgpipe.study.race.methods import BLOCKS, methods, split
from fgpipe.study.race.stalls import stalling


@dataclass
class RaceOptions(RatedOptions):
    """Keys of this study."""

    processes: int = 2
    seeds: int = 3
    methods: list[str] = field(default_factory=lambda: list(methods(2)))
    clusters: list[str] = field(default_factory=lambda: list(CLUSTERS))
    goals: list[float] = field(default_factory=lambda: [0.45, 0.5, 0.55])
    points: list[str] = field(default_factory=list)
    batches: int = 16
    """Batches of an epoch of a timed run."""
    rounds: int = 3
    """Rounds of timed runs; 0: trainings alone, and no table."""

    def check(self) -> None:
        super().check()
        check_choice("methods", self.methods, list(methods(2)))
        check_choice("clusters", self.clusters, list(CLUSTERS))
        if not self.goals or not all(0 < goal < 1 for goal in self.goals):
            raise bad_value("goals", self.goals, "a list of accuracies between 0 and 1")
        for point in self.points:
            method, _, cluster = point.partition("@")
            if method not in self.methods or cluster not in self.clusters:
                raise bad_value(
                    "points", self.points, "a list of METHOD@CLUSTER, of the methods and clusters that race"
                )
        if self.processes not in (2, 4, 8):
            raise bad_value("processes", self.processes, "2 | 4 | 8")
        for key, least in (("batches", 2), ("rounds", 0)):
            if (value := getattr(self, key)) < least:
                raise bad_value(key, value, f"a whole number of at least {least}")

    def stated(self) -> list[str]:
        return []


class Race:
    """One folder's runs, and what they say."""

    def __init__(self, folder: Path, options: RaceOptions, arguments: Sequence[str]) -> None:
        """Args: arguments: of every run.

        Raises:
            UserError: the arguments cannot be run.
        """
        self._folder, self._options, self._setting = folder.resolve(), options, [*SETTING, *arguments]
        self._methods = {name: methods(options.processes)[name] for name in options.methods}
        self.trainings = Trainings(self._folder / "accuracy", replace(options, processes=1), self._setting)
        config = self.trainings.config
        if config.blocks != BLOCKS:
            raise bad_value("model.blocks", config.blocks, str(BLOCKS))
        self._common = timed_keys(self._setting)
        self._stated = [f"processes={options.processes}", *arguments]
        self._rates: Mapping[str, float] = {}
        self.contests: dict[str, Contest] = {}
        """Timed runs, by cluster."""
        if not options.rounds:
            return
        for name in options.clusters:
            if (timed := self._timed(name)) and CLUSTERS[name].stall is None:
                self.contests[name] = self._contest(name, timed)
        if FAST not in self.contests and (timed := self._timed(FAST, self._elsewhere())):
            self.contests[FAST] = self._contest(FAST, timed)

    def _elsewhere(self) -> list[str]:
        """Methods whose rate on the fast cluster counts on another."""
        stalls = any(CLUSTERS[name].stall is not None for name in self._options.clusters)
        return [name for name, method in self._methods.items() if stalls or method.alone]

    def _timed(self, cluster: str, names: Sequence[str] | None = None) -> list[Contestant]:
        """Contestants on a cluster: those of one process run on the fast one alone."""
        where, wanted = CLUSTERS[cluster], self._options.processes
        found = []
        for name in self._options.methods if names is None else names:
            method = self._methods[name]
            if method.alone and cluster != FAST:
                continue
            processes = method.processes(wanted)
            keys = (*method.overrides(split(wanted), where.ahead), *where.overrides(processes))
            grouped = method.alone or method.modules < BLOCKS
            found.append(Contestant(name, keys, processes if grouped else None))
        return found

    def _contest(self, cluster: str, timed: Sequence[Contestant]) -> Contest:
        options = self._options
        contest = ContestOptions(
            processes=options.processes, split=split(options.processes), batches=options.batches, repeats=options.rounds
        )
        return Contest(self._folder / "speed" / cluster, contest, self._common, timed)

    def _rate(self, name: str) -> float:
        """Learning rate of a method, before its own factor."""
        return self._rates.get(name, self.trainings.config.optim.lr)

    def _overrides(self, name: str, ahead: int) -> tuple[str, ...]:
        method, rate = self._methods[name], self._rate(name)
        return (*method.overrides(split(self._options.processes), ahead), f"optim.lr={method.learning_rate(rate):g}")

    def variants(self) -> dict[tuple[str, str], int]:
        """Delays that a method's accuracy has on a cluster (`RaceMethod.variant`), by both names."""
        clusters = {name: CLUSTERS[name].ahead for name in self._options.clusters}
        pairs = ((name, cluster) for name in self._options.methods for cluster in clusters)
        return {(name, cluster): self._methods[name].variant(clusters[cluster]) for name, cluster in pairs}

    def _ways(self) -> list[tuple[str, int]]:
        """Trainings that are wanted: methods with the delays that they have somewhere."""
        return list(dict.fromkeys((name, ahead) for (name, _), ahead in self.variants().items()))

    def train(self) -> None:
        """Train what is missing; nothing is timed.

        Raises:
            UserError: the folder holds another study, or the data cannot be read.
            CalledProcessError: a run has failed.
        """
        claim(self._folder, self._stated)
        if self._options.rates:
            self._choose_rates()
        self.trainings.run_missing({way(*each): self._overrides(*each) for each in self._ways()})

    def time(self) -> RaceResults:
        """Time what is missing, on a machine that should do nothing else.

        Raises:
            CalledProcessError: a run has failed.
        """
        options, config = self._options, self.trainings.config
        for cluster, contest in self.contests.items():
            contest.run(partial(launch, hosts=CLUSTERS[cluster].hosts))
        images = data_facts(config).train_batches * config.batch_size
        results = RaceResults(images, config.batch_size, options.processes, options.goals)
        for name, method in self._methods.items():
            results.learning_rates[name] = method.learning_rate(self._rate(name))
            for ahead in sorted({method.variant(each.ahead) for each in CLUSTERS.values()}):
                found = self.trainings.summaries(way(name, ahead))
                if (name, ahead) in self._ways() or all(found):  # of a cluster that raced before
                    results.curves.setdefault(name, {})[ahead] = list(map(curve, found))
        results.rates = {cluster: self._speeds(cluster) for cluster in options.clusters}
        results.points = [self._point(*point.split("@")) for point in options.points]
        return results

    def _choose_rates(self) -> None:
        def overrides(name: str, rate: float) -> tuple[str, ...]:
            method = self._methods[name]
            windowed = method.overrides(split(self._options.processes), CLUSTERS[FAST].ahead)
            return (*windowed, f"optim.lr={method.learning_rate(rate):g}")

        self._rates = best_rates(self._folder / "rates", self._options, self._setting, self._methods, overrides)

    def _speeds(self, cluster: str) -> dict[str, Rate]:
        stall, found = CLUSTERS[cluster].stall, {}
        for name, method in self._methods.items():
            source = FAST if method.alone or stall is not None else cluster
            contest = self.contests[source]
            contestant = next(each for each in self._timed(source) if each.name == name)
            share = 1.0 if stall is None or method.alone else stall.share
            rate = share * statistics.median(contest.speeds(contestant))
            first = contest.summaries(contestant)[0]
            trained = [
                each for each in self.trainings.summaries(way(name, method.variant(CLUSTERS[cluster].ahead))) if each
            ]
            taken = [each["peak_memory_bytes"][0] - each["memory_before_training_bytes"][0] for each in trained]
            back = sum(first["bytes_back_per_batch"])
            found[name] = Rate(rate, back, max(taken, default=None), computed=share < 1)
        return found

    def _point(self, name: str, cluster: str) -> RacePoint:
        """Run a cell to its end on its cluster, with seed 0."""
        method, where, path = self._methods[name], CLUSTERS[cluster], self._folder / "points" / f"{name}-{cluster}"
        if read_summary(path) is None and not diverged(path):
            shutil.rmtree(path, ignore_errors=True)
            processes = method.processes(self._options.processes)
            keys = [
                *settings(self._setting),
                *self._overrides(name, where.ahead),
                *where.overrides(processes),
                "seed=0",
            ]
            if processes > 1 and method.modules == BLOCKS:
                keys.append(f"partition=[{','.join(map(str, split(processes)))}]")
            file = self._folder / f"{name}-{cluster}.json".replace(" ", "-")
            try:
                with stalling(None if method.alone else where.stall, file):
                    launch(
                        [[*keys, f"run_dir={quoted(str(path))}"]], processes, file, where.hosts if processes > 1 else ()
                    )
            except subprocess.CalledProcessError:
                if not diverged(path):
                    raise
        summary = read_summary(path)
        seconds = [] if summary is None else [epoch["train_seconds"] for epoch in summary["epochs"]]
        return RacePoint(name, cluster, 0, curve(summary), seconds)


def way(name: str, ahead: int) -> str:
    """Name of a method's trainings with a variant's delays (`RaceMethod.variant`)."""
    return f"{name} {ahead}" if ahead else name


def curve(summary: Mapping[str, Any] | None) -> list[float]:
    """Test accuracy of the net after each epoch; none of a run that diverged."""
    if summary is None:
        return []
    return [epoch["test"][max(epoch["test"], key=int)]["accuracy"] for epoch in summary["epochs"]]


def report(results: RaceResults, variants: Mapping[tuple[str, str], int]) -> str:
    """Markdown: all clusters together, a table for each of them, the accuracies, and the points."""
    text = [f"## Seconds to {percent(max(results.goals))}, computed\n\n{overview(results, variants)}"]
    for cluster, rates in results.rates.items():
        curves = {name: results.curves[name][variants[name, cluster]] for name in rates}
        table = cluster_table(results.goals, rates, curves, results.images)
        text.append(f"## {cluster}: {CLUSTERS[cluster].title}\n\n{table}")
    text.append(f"## Accuracy\n\n{accuracy_table(results)}")
    if results.points:
        text.append(f"## Computed and measured, seed 0\n\n{points_table(results, variants)}")
    return "\n".join(text)


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: no right to make a link, the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, RaceOptions())
    for name in options.clusters if options.rounds else ():
        if CLUSTERS[name].link:
            check_rights(CLUSTERS[name].hosts, "race", "; or clusters=[fast,slow,stalls], which take no link")
    race = Race(folder, options, overrides)
    race.train()
    if not options.rounds:
        return 0
    results = race.time()
    text, config = report(results, race.variants()), race.trainings.config
    print(text, end="")
    ways = [way(name, ahead) for name, of in results.curves.items() for ahead in of]
    summaries = [each for called in ways for each in race.trainings.summaries(called) if each is not None]
    setting = f"{config.epochs} epochs of {results.images} images in batches of {results.batch_size}, width "
    setting += f"{config.model.width:g}, {options.seeds} seeds; pipelines of {options.processes} processes."
    command = command_line("race", arguments[1:])
    out = Path(options.out or folder)
    write_page(out / "race.md", page("Time to accuracy", command, setting, summaries, text))
    content = {**asdict(results), "command": command, "machine": machine(), "commit": commit()}
    with written(out / "race.json"):
        durable.write(out / "race.json", f"{json.dumps(content, indent=1)}\n".encode())
    return 0
