"""Command `python -m fgpipe.study STUDY [arguments]`: each study is a module with a `main` of its own.

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
    "first": ("accuracies", "what comes back, and what it is good for, in a minute and a half: the quickstart"),
    "lanes": ("accuracies", "accuracy and time per image against lanes, decoding and step size"),
    "timeline": ("probes", "a picture of a few batches of a trace"),
    "unlocking": (
        "probes",
        "the paper's table 1, measured: what each update waits for, compute, bytes, memory in flight",
    ),
    "throughput": (
        "contests",
        "images per second, beside pipelined backpropagation and backpropagation in one process",
    ),
    "memory": (
        "contests",
        "what each block keeps of a batch in flight, and the peak of each process, beside GPipe and 1F1B",
    ),
    "link": ("contests", "images per second over a slow link between two hosts"),
    "straggler": ("contests", "what a slow block costs the others, with and without replay buffers"),
    "kills": ("contests", "work that survives kills of single processes, beside 1F1B that starts again as a whole"),
    "slowdown": ("accuracies", "what a slow block costs in accuracy, with and without replay buffers"),
    "simulation": (
        "contests",
        "the simulator's predictions beside runs, and what it says of more stages and other links",
    ),
    "modules": ("accuracies", "accuracy against the number of isolated modules, beside end to end"),
    "sparse": ("accuracies", "accuracy and speed against how seldom readings come back"),
    "race": ("race", "which method is first at an accuracy, on five clusters"),
    "frontier": ("accuracies", "accuracy and speed by what comes back, beside local learning and end to end"),
    "staleness": ("accuracies", "accuracy against the window, with feedback in order and eager"),
    "alignment": ("probes", "how well guesses align with the true gradient, and with what local learning leaves of it"),
    "device": ("probes", "speed, waits, memory and how busy a GPU is, in one process"),
    "compiling": ("probes", "what torch.compile gains, on the CPU"),
    "precision": ("probes", "how far bfloat16 takes the estimates from the float64 oracle"),
    "per_sample": ("probes", "per-sample scalars from one tangent beside the exact projection of every sample"),
}
"""Name to the room that has the study's module, and what the study finds out; the module's `main` takes the arguments
and returns the exit code."""


@command
def main(arguments: list[str]) -> int:
    """Run the study that the first argument names; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: python -m fgpipe.study STUDY [arguments]; STUDY --help says more\n")
        print("\n".join(f"  {name:<11} {what}" for name, (_, what) in STUDIES.items()))
        return 0
    name, *rest = arguments
    if name not in STUDIES:
        raise UserError(f"{name}: allowed: {' | '.join(STUDIES)}")
    study = importlib.import_module(f"fgpipe.study.{STUDIES[name][0]}.{name}")
    if "--help" in rest or "-h" in rest:
        print((study.__doc__ or "").rstrip())
        return 0
    try:
        return study.main(rest)
    except subprocess.CalledProcessError:
        say("a run has failed, as said above; those that are done are kept")
        return FAILED
