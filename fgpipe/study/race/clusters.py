"""Machines that the race is run on: processes, what joins them, and what is wrong with one of them."""

from dataclasses import dataclass

from fgpipe.study.contests.contest import AHEAD, AHEAD_OVER_SLOW_LINKS
from fgpipe.study.contests.link import two_hosts


@dataclass(frozen=True)
class Stall:
    """A process that stands still now and then."""

    seconds: float
    period: float
    """Time from the beginning of one stall to that of the next, seconds."""

    @property
    def share(self) -> float:
        """Share of the time in which it works."""
        return 1 - self.seconds / self.period


@dataclass(frozen=True)
class RaceCluster:
    """One cluster; half of its processes are on each host if there is a link."""

    title: str
    keys: tuple[str, ...] = ()
    """Keys of every run of more than one process."""
    link: tuple[str, ...] = ()
    """Options of `launch/two_hosts`; none: one host."""
    stall: Stall | None = None
    """Stall of the first process."""

    @property
    def ahead(self) -> int:
        """Batches that fill the way from a process to the next and back."""
        return AHEAD_OVER_SLOW_LINKS if self.link else AHEAD

    @property
    def hosts(self) -> list[str]:
        """Command that runs another one on both hosts; empty if there is one."""
        return two_hosts(*self.link) if self.link else []

    def overrides(self, processes: int) -> tuple[str, ...]:
        """Keys of a run of so many processes."""
        return () if processes == 1 else (*self.keys, *(["interface=link0"] if self.link else []))


FAST = "fast"
CLUSTERS = {
    FAST: RaceCluster("a fast link"),
    "far": RaceCluster("100 Mbit/s, 50 ms", link=("--rate", "100Mbit", "--rtt", "50ms")),
    "uneven": RaceCluster("20 Mbit/s up, 100 down", link=("--rate", "20Mbit", "--back", "100Mbit")),
    "slow": RaceCluster("the first process 4 times slower", keys=("slow.process=0", "slow.factor=4")),
    "stalls": RaceCluster("the first process stalls 10 s every minute", stall=Stall(10.0, 60.0)),
}
