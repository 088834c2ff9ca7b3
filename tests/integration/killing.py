"""Kills a process that saves without a pause at random moments, and looks at what is left each time.

Usage: python killing.py FOLDER KILLS. The saving process is a fork, so that a kill costs no start of Python. Prints a
line of JSON: checkpoints found, and how many kills left one that was begun only.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fgpipe.saving.checkpoint import Checkpoints, read_block
from tests.test_checkpoint import save, small

BLOCKS = 3


def save_for_ever(run: Path, step: int) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.discard(after=step)
    while True:
        step += 1
        save(run, step, accuracy=1 / (step % 7 + 1), blocks=BLOCKS)
        checkpoints.prune(keep=2)


def newest(run: Path) -> int:
    """The step of the newest checkpoint, whose files must all say that they are of that step."""
    passed_over: list[str] = []
    manifest = Checkpoints(run).newest(passed_over.append)
    assert manifest is not None and not passed_over, passed_over
    for block in range(BLOCKS):
        restored = small(-1.0)
        assert read_block(Checkpoints(run).folder(manifest.step), block, {"block": restored}) == {"step": manifest.step}
        assert all(torch.equal(each, torch.full_like(each, manifest.step)) for each in restored.module.parameters())
    pointed = int((run / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert pointed in Checkpoints(run).steps() and manifest.step - pointed in (0, 1)
    return manifest.step


def kill(child: Callable[[], None], seconds: float) -> None:
    if not (pid := os.fork()):
        child()
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(run: Path, kills: int) -> None:
    moments, found, half = random.Random(0), [0], 0
    save(run, 0, blocks=BLOCKS)
    for _ in range(kills):
        kill(lambda: save_for_ever(run, found[-1]), moments.uniform(0.02, 0.3))
        found.append(newest(run))
        begun = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")}
        half += begun != set(Checkpoints(run).steps())
    assert found == sorted(found), "no kill takes a run back"
    print(json.dumps({"found": found, "half": half}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
