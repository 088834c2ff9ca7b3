"""Images per second, beside pipelined backpropagation and backpropagation in one process.

    python -m fgpipe.study throughput FOLDER [processes=2] [split=[4,4]] [batches=32] [epochs=2] [repeats=5] [out=DIR]
                                      [key=value ...]

Every contestant has the same split, one thread for each process, and the same batches of noise. Without `split` the
blocks are balanced by the time of their forward passes, which is measured first. Each of the `repeats` rounds runs
every contestant once; a ratio is that of two runs of the same round. The first epoch is warm-up.

The table is printed and written to DIR/throughput-PROCESSES-WIDTH.md, in FOLDER without `out`. Runs that FOLDER has are
not run again. The other arguments go to every run, as in `model.width=0.25 batch_size=64`. docs/results/throughput.md
says what is compared and how.
"""

from fgpipe.study.common.arguments import read
from fgpipe.study.contests.contest import (
    AHEAD,
    Contest,
    Contestant,
    ContestOptions,
    asynchronous,
    microbatches,
    speed_table,
)

REFERENCE = "1F1B"


def contestants(processes: int) -> list[Contestant]:
    """List ours, and the peers."""
    peers = ("guess=end_to_end", f"microbatches={microbatches(processes)}")
    alone = ("guess=end_to_end", "tangents=oracle", "window=1")
    return [
        Contestant("local target", ("target=local",)),
        Contestant("random weight guess, one lane", ("guess=gaussian", "lanes=1")),
        Contestant("local guess, one lane", ("lanes=1",)),
        Contestant("local guess, exact lanes, a scalar per block", ("scope=block",)),
        Contestant("activity space, one lane", ("space=activity", "lanes=1")),
        Contestant("GPipe", (*peers, "schedule=gpipe")),
        Contestant(REFERENCE, (*peers, "schedule=1f1b")),
        Contestant("zero bubble", (*peers, "schedule=zero_bubble")),
        *(Contestant(name, keys, ahead=AHEAD) for name, keys in asynchronous(processes).items()),
        Contestant("backpropagation, one process, one thread", alone, processes=1),
        Contestant(f"backpropagation, one process, {processes} threads", (*alone, f"threads={processes}"), processes=1),
    ]


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, ContestOptions())
    wanted = contestants(options.processes)
    contest = Contest(folder, options, overrides, wanted)
    contest.run()
    table = speed_table({each.name: contest.speeds(each) for each in wanted}, REFERENCE)
    print(table, end="")
    title = f"Throughput, {options.processes} processes"
    contest.write(f"throughput-{contest.name}", title, ["throughput", *arguments], table)
    return 0
