"""`python -m fgpipe.simulate [key=value ...]`: what a pipeline would do that this machine cannot hold, simulated.

    stages=J            blocks of the net; model.blocks by default, which are as measured. Any other number makes a net
                        of equal blocks, whose forward pass takes the mean time of the measured ones
    processes=P         with runs of blocks, balanced by the time of their forward passes; stages by default
    cores=C             that the processes share; unlimited by default, one for each
    calibration=FILE    measurements of this machine that FILE has, or is to have; else they are made and forgotten.
                        They take some five minutes, and the machine should do nothing else. One that
                        `python -m fgpipe.study simulation` has made knows the error of its predictions too
    link.rate=10Gbit link.rtt=50ms    the links between all processes, as fgpipe.train has them; backpropagation is left
                        out with a round trip, as it is not modelled how often its messages wait for one
    window=W            as fgpipe.train has it

All other keys are those of fgpipe.train, such as model.width=0.25 batch_size=64 lanes=4 microbatches=8, and go to the
measurements. docs/results/simulation.md says what is simulated how, and what is left out. Exit codes: 0, done; 1, a run
failed, or FILE cannot be written; 2, bad input; 130, interrupted.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fgpipe.command import command
from fgpipe.config import Config, compose_config
from fgpipe.config.arguments import own_keys, split
from fgpipe.errors import bad_value
from fgpipe.plan.topology import runs_of
from fgpipe.saving.outputs import check_file
from fgpipe.study.simulator.calibration import DEFAULTS, Calibration
from fgpipe.study.simulator.forecast import Net, forecast
from fgpipe.study.simulator.nets import Setting
from fgpipe.study.simulator.programs import ForwardGradients
from fgpipe.wire.slow import SlowLinks

MOST = 256
"""Stages: their number and the windows' make the time that a simulation takes."""
WITHIN = 0.15
"""Error that is good enough."""
SIMULATED = ("link.rate", "link.rtt", "link.between", "window")
"""Keys of fgpipe.train that are simulated, and not measured."""


@dataclass
class SimulateOptions:
    """Keys of this command."""

    stages: int | None = None
    processes: int | None = None
    cores: int | None = None
    calibration: str | None = None

    def check(self, config: Config) -> tuple[int, int]:
        """Check them, and find the numbers of stages and processes.

        Raises: UserError: a value that it cannot have.
        """
        stages = config.blocks if self.stages is None else self.stages
        processes = stages if self.processes is None else self.processes
        if not 1 <= stages <= MOST:
            raise bad_value("stages", stages, f"1 to {MOST}")
        if not 1 <= processes <= stages:
            raise bad_value("processes", processes, f"1 to stages={stages}")
        if stages != config.blocks and config.blocks < 3:
            raise bad_value(
                "stages", stages, f"{config.blocks} with a net of fewer than 3 blocks, of which none is like others"
            )
        if stages != config.blocks and config.lanes == "exact":
            raise bad_value("lanes", "exact", f"a number with stages={stages}, as lanes add up along the net")
        if self.cores is not None and self.cores < 1:
            raise bad_value("cores", self.cores, "a whole number of at least 1")
        if isinstance(config.window, list) and len(config.window) != stages:
            raise bad_value("window", config.window, f"one number for each block (stages={stages})")
        if config.link.between is not None and max(config.link.between) > processes - 2:
            raise bad_value(
                "link.between", list(config.link.between), f"0 to {processes - 2} with {processes} processes"
            )
        return stages, processes


@contextmanager
def measured(options: SimulateOptions, arguments: Sequence[str]) -> Iterator[Calibration]:
    """Load the calibration that the options name, or make it, and keep it on leaving, whatever came of its use.

    Raises:
        UserError, CalledProcessError: as `Calibration` does.
        OutputError: it cannot be written.
    """
    path = options.calibration and Path(options.calibration)
    if path and path.exists():
        yield Calibration.load(path, arguments)
        return
    if path:
        check_file("calibration", path)
    with tempfile.TemporaryDirectory() as folder:
        found = Calibration.measure(arguments, Path(folder))
    try:
        yield found
    finally:
        if path:
            found.save(path)


def table(setting: Setting, links: SlowLinks, cores: float) -> str:
    """Markdown: every contestant's figures."""
    sizes, batch, machine = setting.split(), setting.batch_size, setting.calibration.on(cores)
    head = "| | images/s, simulated | busiest blocks | busy | batches in flight | staleness | bytes up | bytes back |"
    lines = [head, "|" + "---|" * 8]
    for name, net in setting.nets(links).items():
        found = forecast(net, sizes, links, machine)
        blocks = runs_of(sizes)[found.bottleneck]
        where = str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
        boundaries = [of[-1] for of in runs_of(sizes)[:-1]]
        up = max((net.up(j) for j in boundaries), default=0)
        back = max((_crossing(net, j) for j in boundaries), default=0)
        cells = [f"{batch / found.seconds:.1f}", where, f"{found.busy[found.bottleneck]:.0%}", str(found.in_flight)]
        lines.append(f"| {name} | {' | '.join([*cells, str(found.held - 1), f'{up:,}', f'{back:,}'])} |")
    return "\n".join(lines) + "\n"


def _crossing(net: Net, boundary: int) -> int:
    """Bytes back across a boundary: a gradient is that of the block below it, readings go to each block below."""
    below = range(boundary + 1) if isinstance(net, ForwardGradients) else [boundary]
    return sum(map(net.back, below))


def about(setting: Setting, config: Config, cores: float) -> str:
    """Describe what is simulated, and what was measured for it."""
    calibration = setting.calibration
    blocks = len(calibration.costs["local target"])
    net = f"the {blocks} measured blocks"
    if not setting.is_measured:
        net = f"{setting.stages} equal blocks, each with the mean of {blocks} measured ones "
        net += "(first and last with their own work)"
    rate, rtt = config.link.rate or "no limit", config.link.rtt or "none"
    where = f"{setting.processes} processes on {'as many' if cores == math.inf else cores} cores"
    what = f"Simulated: {net}, in {where}; links: rate {rate}, round trip {rtt}; width {config.model.width:g}, "
    made = f"Measured on {calibration.machine}; commit {calibration.commit}."
    return f"{what}batch {config.batch_size}.\n{made}\n{accuracy(calibration.errors)}\n"


def accuracy(errors: Sequence[float]) -> str:
    """Distance of predictions with this calibration from runs."""
    if not errors:
        return "Error unknown: no prediction was compared with a run, as `python -m fgpipe.study simulation` does."
    within = sum(abs(error) <= WITHIN for error in errors)
    spread = f"{min(errors):+.0%} to {max(errors):+.0%}"
    return f"Error of {len(errors)} predictions of runs on that machine: {spread}, {within} within {WITHIN:.0%}."


def run(arguments: Sequence[str]) -> None:
    """Measure what is missing, simulate, and print the table.

    Raises:
        UserError, CalledProcessError, OutputError: as for `measured`.
    """
    options, overrides = own_keys(arguments, SimulateOptions())
    config = compose_config([*DEFAULTS, *overrides])
    stages, processes = options.check(config)
    kept = [argument for argument in overrides if split(argument)[0] not in SIMULATED]
    cores = math.inf if options.cores is None else options.cores
    with measured(options, kept) as calibration:
        setting = Setting(calibration, stages, processes, config.window)
        text = table(setting, SlowLinks.of(config.link, processes), cores)
        print(about(setting, config, cores), text, sep="\n", end="")


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print((__doc__ or "").rstrip())
        return 0
    run(arguments)
    return 0
