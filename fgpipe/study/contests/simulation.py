"""Distance of the simulator's predictions from runs, and tables of what this machine cannot run, simulated.

    python -m fgpipe.study simulation FOLDER [processes=2] [most=8] [rate=1Gbit] [rtt=20ms] [split=[4,4]] [batches=12]
                                      [epochs=3] [repeats=3] [out=DIR] [key=value ...]

Each round measures this machine, as `python -m fgpipe.simulate` does, and runs every contestant in `processes` and in
`most` processes, and ours in `processes` also over links of `rate` and `rtt` (`link.*`). The same epochs on as many cores
are simulated with the medians of the measurements, which FOLDER/calibration.json has; the contestants' own runs are not
among these. The rest is as in `throughput`. A round takes some nine minutes on 2 cores.

The tables are printed and written to DIR/simulation.md, in FOLDER without `out`. docs/results/simulation.md says what is
simulated how.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fgpipe.config import Config, LinkConfig, compose_config
from fgpipe.errors import bad_value
from fgpipe.study.common.arguments import read
from fgpipe.study.contests.contest import (
    AHEAD,
    AHEAD_OVER_SLOW_LINKS,
    COMMON,
    Contest,
    Contestant,
    ContestOptions,
    Spread,
    asynchronous,
    stages,
)
from fgpipe.study.contests.link import check_link
from fgpipe.study.simulator.calibration import LATE, METHODS, OWN, Calibration
from fgpipe.study.simulator.forecast import epoch_seconds, forecast
from fgpipe.study.simulator.nets import SCHEDULES, Setting
from fgpipe.study.simulator.programs import AsynchronousBackpropagation, microbatches
from fgpipe.wire.slow import SlowLinks

STAGES = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = {
    "LAN, 10 Gbit/s": LinkConfig("10Gbit"),
    "1 Gbit/s, 10 ms": LinkConfig("1Gbit", "10ms"),
    "wide area, 100 Mbit/s, 50 ms": LinkConfig("100Mbit", "50ms"),
}


@dataclass
class SimulationOptions(ContestOptions):
    """Keys of this study."""

    batches: int = 12
    epochs: int = 3
    repeats: int = 3
    most: int = 8
    rate: str = "1Gbit"
    rtt: str = "20ms"

    def check(self) -> None:
        super().check()
        if self.most <= self.processes:
            raise bad_value("most", self.most, f"a number above processes={self.processes}")
        check_link(self.rate, self.rtt)


@dataclass(frozen=True)
class Case:
    """Contestant as it is run, and what is simulated for it."""

    contestant: Contestant
    net: str
    """Name in `Setting.nets`."""
    link: LinkConfig


def cases(processes: int, config: Config, slow: LinkConfig | None) -> list[Case]:
    """Contestants in so many processes.

    Args:
        config: of every run, for its batch size and microbatches.
        slow: ours and asynchronous 1F1B also over such links, which the other peers refuse.
    """
    count = microbatches(config.batch_size, max(config.microbatches, processes))
    found = [Case(Contestant(name, keys), name, LinkConfig()) for name, keys in METHODS.items()]
    for name, kind in SCHEDULES.items():
        peer = ("guess=end_to_end", "lanes=exact", f"microbatches={count}", f"schedule={kind}")
        found.append(Case(Contestant(name, peer), name, LinkConfig()))
    late = ("lanes=exact", *asynchronous(processes)[LATE])
    found.append(Case(Contestant(LATE, late, ahead=AHEAD), LATE, LinkConfig()))
    if slow is not None:
        link = (f"link.rate={slow.rate}", f"link.rtt={slow.rtt}")
        for name, keys in {**METHODS, LATE: late}.items():
            ahead = AHEAD_OVER_SLOW_LINKS if name == LATE else 0
            found.append(Case(Contestant(f"{name}, slow link", (*keys, *link), ahead=ahead), name, slow))
    return found


def calibrate(folder: Path, arguments: Sequence[str], round: int) -> Calibration:
    """Measure this machine, once in a round."""
    path = folder / f"calibration-{round}.json"
    if not path.exists():
        runs = folder / f"calibration-{round}"
        shutil.rmtree(runs, ignore_errors=True)  # of a measurement that was interrupted
        Calibration.measure(arguments, runs).save(path)
    return Calibration.load(path, arguments)


def predicted(calibration: Calibration, case: Case, split: Sequence[int], batches: int) -> float:
    """Images per second of an epoch on this machine's cores."""
    setting = Setting(calibration, sum(split), len(split))
    machine, links = calibration.on(calibration.cores), SlowLinks.of(case.link, len(split))
    net = setting.nets(links)[case.net]
    if isinstance(net, AsynchronousBackpropagation):
        net = replace(net, windows=stages(split, case.contestant.ahead))
    seconds = epoch_seconds(net, split, links, machine, batches)
    return batches * setting.batch_size / seconds


def validation(rows: Sequence[tuple[int, str, Sequence[float], float]]) -> str:
    """Markdown.

    Args: rows: processes, contestant, images per second of each round, and simulated.
    """
    lines = ["| processes | | images/s, median | range | simulated | error |", "|" + "---|" * 6]
    for processes, name, speeds, simulated in rows:
        spread = Spread.of(speeds)
        error = f"{simulated / spread.median - 1:+.0%}"
        lines.append(f"| {processes} | {name} | {spread.cells('.1f')} | {simulated:.1f} | {error} |")
    return "\n".join(lines) + "\n"


def scaling(calibration: Calibration, stages: Sequence[int] = STAGES) -> str:
    """Markdown: images per second of every contestant that is modelled, with a process and a core for each stage."""
    lines = []
    for network, link in NETWORKS.items():
        names = [*METHODS, LATE, *({} if link.rtt else SCHEDULES)]
        lines += [f"### {network}, simulated", "", f"| stages | {' | '.join(names)} |", "|" + "---|" * (1 + len(names))]
        for count in stages:
            setting, links = Setting(calibration, count, count, equal=True), SlowLinks.of(link, count)
            machine, batch, nets = calibration.on(math.inf), setting.batch_size, setting.nets(links)
            rates = [batch / forecast(nets[name], [1] * count, links, machine).seconds for name in names]
            lines.append(f"| {count} | {' | '.join(f'{rate:.1f}' for rate in rates)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run what is missing, simulate, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, SimulationOptions())
    common = [*OWN, *overrides]
    many = replace(options, processes=options.most, split=None)
    config = compose_config([*COMMON, *common])
    slow = LinkConfig(options.rate, options.rtt)
    both = [(options, cases(options.processes, config, slow)), (many, cases(many.processes, config, None))]
    contests = [
        Contest(folder / str(each.processes), each, common, [case.contestant for case in of]) for each, of in both
    ]
    measured = []
    for round in range(options.repeats):
        measured.append(calibrate(folder, overrides, round))
        for contest in contests:
            contest.run_round(round)
    calibration, rows = Calibration.median(measured), []
    for run, (each, of) in zip(contests, both, strict=True):
        for case in of:
            simulated = predicted(calibration, case, run.split, options.batches)
            rows.append((each.processes, case.contestant.name, run.speeds(case.contestant), simulated))
    errors = [simulated / Spread.of(speeds).median - 1 for _, _, speeds, simulated in rows]
    splits = " and ".join(str(list(run.split)) for run in contests)
    text = (
        f"## Runs and predictions, {calibration.cores} cores\n\nBlocks per process: {splits}.\n\n{validation(rows)}\n"
    )
    text += "## Scaling, simulated: images per second of nets of equal blocks, a process and a core for each\n\n"
    text += scaling(calibration)
    print(text, end="")
    replace(calibration, errors=errors).save(folder / "calibration.json")
    contests[0].write("simulation", "The simulator", ["simulation", *arguments], text, folder)
    return 0
