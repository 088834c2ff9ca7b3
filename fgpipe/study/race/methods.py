"""Ways to train that race, whoever wins."""

from collections.abc import Sequence
from dataclasses import dataclass

from fgpipe.study.contests.contest import LOOK_AHEAD_RATE, asynchronous, microbatches, staged

BLOCKS = 8
"""Residual blocks of the net."""
ONE_LANE = ("target=global", "lanes=1", "scope=block")
SMOOTH = ("decode=smoothed", "step=normalised")


@dataclass(frozen=True)
class RaceMethod:
    """One way to train, in any number of processes."""

    keys: tuple[str, ...]
    alone: bool = False
    """Whether it is one process, which has no links and is neither slow nor stalls."""
    modules: int = BLOCKS
    late: bool = False
    """Gradients or scalars come back to its processes: the window of a block is that of its process."""
    rate: float = 1.0
    """Factor of the learning rate."""

    def processes(self, wanted: int) -> int:
        """Processes that it can use, of so many."""
        return 1 if self.alone else min(wanted, self.modules)

    def variant(self, ahead: int) -> int:
        """The batches on the way between processes that its accuracy depends on; 0: on none."""
        return ahead if self.late else 0

    def overrides(self, sizes: Sequence[int], ahead: int) -> tuple[str, ...]:
        """Keys of a run, with the windows of processes with so many blocks, whatever processes it has.

        Args: ahead: batches that fill the way from a process to the next and back, as for `contest.stages`.
        """
        if not self.late:
            return self.keys
        return (*self.keys, staged(sizes, ahead))

    def learning_rate(self, rate: float) -> float:
        """Learning rate of the method, given that of the others."""
        return rate * self.rate


def split(processes: int) -> list[int]:
    """Blocks per process, as many in each as can be."""
    return [BLOCKS * (p + 1) // processes - BLOCKS * p // processes for p in range(processes)]


def methods(processes: int) -> dict[str, RaceMethod]:
    """All of them by name: end to end, its pipelines, local learning, forward gradients.

    Args: processes: of the pipelines.
    """
    late = asynchronous(processes)["async 1F1B"]
    piped = ("guess=end_to_end", "schedule=1f1b", f"microbatches={microbatches(processes)}")
    modules = {n: f"model.modules=[{','.join([str(BLOCKS // n)] * n)}]" for n in (2, 4)}
    local = {n: RaceMethod(("target=local", key), modules=n) for n, key in modules.items()}
    return {
        "end to end": RaceMethod(("guess=end_to_end", "tangents=oracle", "window=1"), alone=True),
        "1F1B": RaceMethod(piped),
        "async 1F1B": RaceMethod(late, late=True),
        "async 1F1B look-ahead": RaceMethod((*late, "optim.look_ahead=true"), late=True, rate=LOOK_AHEAD_RATE),
        **{f"local target {n}": method for n, method in local.items()},
        "local target 8": RaceMethod(("target=local",)),
        "local guess": RaceMethod((*ONE_LANE, *SMOOTH, "guess=local"), late=True),
        "local guess every 8": RaceMethod((*ONE_LANE, *SMOOTH, "guess=local", "feedback.every=8"), late=True),
        "random guess": RaceMethod((*ONE_LANE, "guess=gaussian"), late=True),
    }
