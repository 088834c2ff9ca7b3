"""First look: the same net without feedback, with feedback and end to end, in four processes.

    python -m fgpipe.study first FOLDER [key=value ...]

The label is the last digit of the sum of two handwritten digits (`data=digit_sums`). A block's head is linear, and no linear
head can add digits that its block has not brought together: accuracy rises with depth, and what a block alone can learn is
little. The linear head, and as many images as make a block alone stop halfway, are chosen to show that: an MLP head adds at
block 0. FOLDER is a new one. The table is printed, and the runs stand beside each other in FOLDER/comparison.html.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fgpipe.config import compose_config
from fgpipe.observe.page import comparison
from fgpipe.observe.page.folder import FolderContent
from fgpipe.study.common.arguments import StudyOptions, claim, read
from fgpipe.study.common.runs import quoted, write_page
from fgpipe.study.common.series import launch

PROCESSES = 4
SETTING = ("data=digit_sums", "model=resnet18_4", "model.width=0.125", "head=linear", "epochs=6", "resume=auto")
WAYS = {
    "local": ("no feedback", ("target=local",)),
    "feedback": ("feedback: scalars", ("target=global", "scope=block", "decode=smoothed", "step=normalised")),
    "backprop": ("end to end: gradients", ("guess=end_to_end", "schedule=1f1b", f"microbatches={PROCESSES}")),
}
"""Name of the folder to what stands in the table, and overrides."""
TITLE = "One net, trained in three ways"
TASK = """The label is the last digit of the sum of two handwritten digits, so that guessing is right in 10 % of all cases. Three runs:
local, without feedback; feedback, by scalars; backprop, end to end by gradients."""
NOTE = """From seed to seed the first two move by ten points and more, so that one run tells no difference between them: see
docs/guide/first-runs.md for three. Either is far below end to end, whose gradients come back."""


def runs(folder: Path, overrides: Sequence[str]) -> list[list[str]]:
    """Overrides of each run, the caller's last."""
    return [[*SETTING, *keys, *overrides, f"run_dir={quoted(str(folder / name))}"] for name, (_, keys) in WAYS.items()]


def table(found: Mapping[str, FolderContent]) -> str:
    """A line for each finished run, for a terminal.

    Args: found: by name of `WAYS`.
    """
    rows = [("method", "test accuracy", "images/s", "bytes back per batch", "accuracy by depth, %")]
    for name, run in found.items():
        accuracy, speed = f"{run.summary['test_accuracy']:.1%}", f"{run.summary['images_per_second']:.0f}"
        heads = [f"{100 * score.accuracy:.0f}" for _, score in sorted(run.epochs[-1].scores["test"].items())]
        rows.append(
            (WAYS[name][0], accuracy, speed, f"{sum(run.summary['bytes_back_per_batch']):,.0f}", " ".join(heads))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def main(arguments: list[str]) -> int:
    """Run all, and report; returns the exit code.

    Raises:
        UserError: the arguments cannot be run, or the folder cannot be written.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, StudyOptions())
    wanted = runs(folder, overrides)
    for run in wanted:
        compose_config(run)
    claim(folder, overrides)
    launch(wanted, PROCESSES, folder / "runs.json")
    found = {name: FolderContent.read(folder / name) for name in WAYS}
    page = Path(options.out or folder) / comparison.NAME
    write_page(page, comparison.render(list(found.values()), page.parent, TITLE, f"{TASK} {NOTE}"))
    print(f"{table(found)}\n\n{NOTE}")
    print(f"see {page}")
    return 0
