"""Turns the folder of a finished run into what a crash would have left."""

import shutil
from pathlib import Path


def rewind(run: Path, to: Path, step: int) -> Path:
    """Copy a run that kept all checkpoints as it stood just after the one of `step`; returns the copy.

    `metrics.jsonl` keeps the lines of later epochs and gets a torn one: a crash may come long after a checkpoint.
    """
    shutil.copytree(run, to)
    (to / "summary.json").unlink()
    for folder in (to / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    assert (to / "checkpoints" / f"step-{step}" / "manifest.json").exists()
    with (to / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    return to
