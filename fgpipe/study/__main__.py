"""The command `python -m fgpipe.study STUDY [arguments]`: each study is a module with a `main` of its own.

Exit codes: 0, done; 1, a run failed, or a file cannot be written; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.study.__main__")

import importlib
import subprocess

from fgpipe.command import FAILED, command, say
from fgpipe.errors import UserError

STUDIES = {
    "lanes": "accuracy and time per image against lanes, decoding and step size",
    "timeline": "a picture of a few batches of a trace",
    "unlocking": "the paper's table 1, measured: what each update waits for, compute, bytes, memory in flight",
    "throughput": "images per second, beside pipelined backpropagation and backpropagation in one process",
    "memory": "what each block keeps of a batch in flight, and the peak of each process, beside GPipe and 1F1B",
    "link": "images per second over a slow link between two hosts",
    "straggler": "what a slow block costs the others, with and without replay buffers",
    "slowdown": "what a slow block costs in accuracy, with and without replay buffers",
    "simulation": "the simulator's predictions beside runs, and what it says of more stages and other links",
    "staleness": "accuracy against the window, with feedback in order and eager",
    "compiling": "what torch.compile gains, on the CPU",
    "precision": "how far bfloat16 takes the estimates from the float64 oracle",
    "per_sample": "per-sample scalars from one tangent beside the exact projection of every sample",
}
"""Module of this package to what it finds out; its `main` takes the arguments and returns the exit code."""


@command
def main(arguments: list[str]) -> int:
    """Run the study that the first argument names; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: python -m fgpipe.study STUDY [arguments]; STUDY --help says more\n")
        print("\n".join(f"  {name:<11} {what}" for name, what in STUDIES.items()))
        return 0
    name, *rest = arguments
    if name not in STUDIES:
        raise UserError(f"{name}: allowed: {' | '.join(STUDIES)}")
    study = importlib.import_module(f"fgpipe.study.{name}")
    if "--help" in rest or "-h" in rest:
        print(study.__doc__.rstrip())
        return 0
    try:
        return study.main(rest)
    except subprocess.CalledProcessError:
        say("a run has failed, as said above; those that are done are kept")
        return FAILED
