"""Images per second over a slow link between two hosts, beside pipelined backpropagation.

    python -m fgpipe.study link FOLDER [rate=100Mbit] [rtt=50ms] [processes=2] [split=[4,4]] [batches=16] [epochs=2]
                                [repeats=3] [out=DIR] [key=value ...]

All contestants cross the same link, between two network namespaces of this machine: each launch is
`launch/two_hosts --rate RATE --rtt RTT -- torchrun ...`, with half of the processes on each host. That takes root, and
a checkout. Everybody runs with float32, bfloat16 and int8 on the wire, and is compared with 1F1B on the same wire. The
rest is as in `throughput`.

The tables are printed and written to DIR/link.md, in FOLDER without `out`. docs/results/link.md says what is
compared and how.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fgpipe.config import CONFIGS
from fgpipe.config.units import RATE, TIME, bits_per_second, seconds
from fgpipe.errors import UserError, bad_value
from fgpipe.study.common.arguments import read
from fgpipe.study.common.series import launch
from fgpipe.study.contests.contest import (
    AHEAD_OVER_SLOW_LINKS,
    Contest,
    Contestant,
    ContestOptions,
    asynchronous,
    microbatches,
    speed_table,
)

REFERENCE = "1F1B"
TWO_HOSTS = CONFIGS.parent / "launch" / "two_hosts"


@dataclass
class LinkOptions(ContestOptions):
    """Keys of this study."""

    batches: int = 16
    repeats: int = 3
    rate: str = "100Mbit"
    rtt: str = "50ms"

    def check(self) -> None:
        super().check()
        check_link(self.rate, self.rtt)
        if self.processes % 2:
            raise bad_value("processes", self.processes, "an even number, half of it on each host")

    @property
    def hosts(self) -> list[str]:
        """Command that runs another one on both hosts."""
        return two_hosts("--rate", self.rate, "--rtt", self.rtt)


def check_link(rate: str, rtt: str) -> None:
    """Raises: UserError: no link has this rate, or this round trip."""
    for key, value, unit, allowed in (("rate", rate, bits_per_second, RATE), ("rtt", rtt, seconds, TIME)):
        try:
            unit(value)
        except ValueError as error:
            raise bad_value(key, value, allowed) from error


def two_hosts(*options: str) -> list[str]:
    """Command that runs another one on both hosts, joined by such a link.

    Args: options: of `launch/two_hosts`.
    """
    return [sys.executable, str(TWO_HOSTS), *options, "--"]


WIRES = {"float32": (), "bfloat16": ("wire=bfloat16",), "int8": ("wire=int8",)}


def contestants(processes: int) -> dict[str, list[Contestant]]:
    """Contestants by wire: ours, and the peers."""
    peers = ("guess=end_to_end", f"microbatches={microbatches(processes)}")
    methods = {
        "global target, local guess, one lane": ("lanes=1",),
        "global target, random guess, one lane": ("guess=gaussian", "lanes=1"),
        "local target": ("target=local",),
        "GPipe": (*peers, "schedule=gpipe"),
        REFERENCE: (*peers, "schedule=1f1b"),
    }
    late = asynchronous(processes)
    room = (microbatches(processes) - 1) // (processes - 1)  # two versions: no more than a batch in flight
    ahead = {
        name: min(AHEAD_OVER_SLOW_LINKS, room) if "stash=two" in keys else AHEAD_OVER_SLOW_LINKS
        for name, keys in late.items()
    }
    return {
        kind: [
            Contestant(f"{name}, {kind}", (*keys, *wire, "interface=link0"), ahead=ahead.get(name, 0))
            for name, keys in {**methods, **late}.items()
        ]
        for kind, wire in WIRES.items()
    }


def check_rights(hosts: Sequence[str], study: str, instead: str = "") -> None:
    """Check that a link can be made here.

    Args:
        hosts: as of `two_hosts`.
        study: that wants one.
        instead: what takes none.

    Raises:
        UserError: it cannot, and why.
    """
    if not TWO_HOSTS.is_file():
        raise UserError(f"study {study}: needs launch/two_hosts, which is in a checkout")
    tried = subprocess.run([*hosts, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        raise UserError(f"study {study}: {tried.stderr.strip()}{instead}")


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: no right to make the link, the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, LinkOptions())
    check_rights(options.hosts, "link")
    wanted = contestants(options.processes)
    crossing = Contest(folder, options, overrides, [each for of in wanted.values() for each in of])
    crossing.run(partial(launch, hosts=options.hosts))
    tables = [
        speed_table({each.name: crossing.speeds(each) for each in of}, f"{REFERENCE}, {kind}")
        for kind, of in wanted.items()
    ]
    text = "\n".join(tables)
    print(text, end="")
    crossing.write("link", f"Two hosts, {options.rate}, {options.rtt} round trip", ["link", *arguments], text)
    return 0
