"""What waits for what: the paper's table 1, measured in 8 processes.

    python -m fgpipe.study unlocking FOLDER [key=value ...]

Each cell of the table, and pipelined backpropagation beside it, is trained twice for one short epoch under torchrun,
with its timeline recorded. Once with the last block made slow on purpose: from the order of the events of every batch
follows what each block's update had to wait for (`study.orders`). And once as it is: that gives the extra compute, in
units of the blocks' forward passes. Bytes per training batch are the ledger's, over all links together; what the blocks
below the last keep for a batch in flight is measured on the stages in one process (`study.kept`).

The table is printed and written to FOLDER/unlocking.md; runs that FOLDER has already are not run again. The other
arguments go to every run, as in `data=cifar10 data.root=DIR model.width=0.5`. Times mean something on a quiet machine
with at least 8 cores; the orders hold anywhere.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgpipe.assembly import DataFacts, Plan
from fgpipe.config import Config, compose_config
from fgpipe.observe import trace
from fgpipe.observe.timeline import COMPUTE, Event
from fgpipe.study.arguments import claim
from fgpipe.study.kept import kept_by_blocks, kept_together
from fgpipe.study.orders import Verdict, backward_locked, backward_unlocked, extra_compute, spans, update_unlocked
from fgpipe.study.series import launch
from fgpipe.study.split import data_facts

PROCESSES = 8
LAST = PROCESSES - 1
BATCHES = 8
COMMON = ["epochs=1", "trace=true", "window=auto", "threads=1", "device=cpu", "observe.tensorboard=false"]
COMMON += ["optim=constant", "optim.lr=0.001"]  # nothing diverges, whatever is guessed
SLOW = [f"slow.block={LAST}", "slow.factor=300", "deadline=600"]


@dataclass(frozen=True)
class Cell:
    """One way to train, and how the paper's table 1 has it."""

    guess: str
    target: str
    space: str
    unlocking: str
    """In the paper; of backpropagation, in its text."""
    compute: str
    """In the paper."""

    @property
    def name(self) -> str:
        return f"{self.guess}-{self.target}-{self.space}"

    def overrides(self) -> list[str]:
        projects = self.guess != "end_to_end" and not (self.guess == "local" and self.target == "local")
        keys = [f"guess={self.guess}", f"target={self.target}", f"space={self.space}"]
        return keys + ["lanes=1"] * projects  # one Jvp, as in the paper's table

    def verdict(self, events: Sequence[Event]) -> tuple[str, Verdict]:
        """What is unlocked, by the order of events, and the check that says so, over all blocks that it was made on."""
        found, below = spans(events), range(LAST)
        checks = {
            "update": [update_unlocked(found, LAST - 1)],  # that is the block below the slow one
            "backward": [backward_unlocked(found, block, LAST) for block in below],
            "none": [backward_locked(found, block) for block in below],
        }
        for name, verdicts in checks.items():
            together = Verdict(
                sum(each.batches for each in verdicts), tuple(line for each in verdicts for line in each.broken)
            )
            if all(each.holds for each in verdicts):
                return name, together
        return "?", together


def cells() -> list[Cell]:
    """The paper's table 1, with both spaces, and backpropagation."""
    table = [("end_to_end", "global", "weight", "none", "vJp (global)")]
    for space in ("weight", "activity"):
        for guess in ("local", "ntk"):
            table.append((guess, "global", space, "backward", "vJp (local) + Jvp"))
            table.append((guess, "local", space, "update", "vJp (local)"))
        table.append(("gaussian", "global", space, "backward", "Jvp"))
        table.append(("gaussian", "local", space, "update", "Jvp (local)"))
    return [Cell(*row) for row in table]


@dataclass(frozen=True)
class Row:
    """The figures of one cell."""

    cell: Cell
    unlocking: str
    checked: int
    """Pairs of a block and a batch."""
    extra: float
    """Compute beyond the forward pass, in units of it, of the blocks below the last."""
    up: float
    """Bytes per batch, all links together."""
    down: float
    kept: int
    """Bytes per batch in flight, all blocks below the last together."""


class Study:
    """The results of one folder."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        """
        Raises:
            UserError: the folder holds the study of other arguments.
        """
        self._folder, self._arguments = folder.resolve(), list(arguments)
        claim(self._folder, self._arguments)

    def config(self, cell: Cell) -> Config:
        return compose_config([*COMMON, *self._arguments, *cell.overrides()])

    def run_missing(self, wanted: Sequence[Cell]) -> None:
        """Run what the folder does not have, in one set of processes."""
        runs = []
        for cell in wanted:
            size = self.config(cell).batch_size
            short = [f"data.train_samples={BATCHES * size}", f"data.test_samples={size}"]
            for kind, slow in (("plain", []), ("slow", SLOW)):
                path = self._folder / f"{cell.name}-{kind}"
                if not (path / "trace.json").exists():
                    shutil.rmtree(path, ignore_errors=True)
                    runs.append([*COMMON, *self._arguments, *cell.overrides(), *short, *slow, f"run_dir={path}"])
        if runs:
            launch(runs, PROCESSES, self._folder / "runs.json")

    def row(self, cell: Cell, facts: DataFacts) -> Row:
        """The figures of a cell whose runs are there."""
        plain, slow = (self._folder / f"{cell.name}-{kind}" for kind in ("plain", "slow"))
        unlocking, verdict = cell.verdict(_events(slow))
        up, down = _bytes(json.loads((plain / "summary.json").read_text())["bytes"])
        kept = kept_by_blocks(Plan.make(self.config(cell), facts, None, 0, 1))[:LAST]
        extra = extra_compute(_events(plain), COMPUTE, range(LAST))
        return Row(cell, unlocking, verdict.batches, extra, up, down, sum(kept_together([storages]) for storages in kept))


def _events(folder: Path) -> list[Event]:
    return [event for events in trace.read(folder / "trace.json").values() for event in events]


def _bytes(links: dict[str, dict[str, dict[str, int]]]) -> tuple[float, float]:
    """Upwards and downwards, of each training batch; the one test batch is as large, and carries activations only."""
    totals = [0.0, 0.0]
    for link, kinds in links.items():
        source, destination = map(int, link.split("->"))
        for kind, sent in kinds.items():
            tested = kind in ("activations", "control")
            totals[source > destination] += sent["bytes"] / (BATCHES + tested)
    return totals[0], totals[1]


def table(rows: Sequence[Row]) -> str:
    """Markdown: measured beside published."""
    head = "| guess | target | space | unlocked (paper) | unlocked (measured) | pairs of block and batch | compute (paper) "
    head += "| extra compute, in forward passes | bytes up | bytes down | kept per batch in flight, bytes |"
    lines = [head, "|" + "---|" * 11]
    for row in rows:
        cell = row.cell
        texts = [cell.guess, cell.target, cell.space, cell.unlocking, row.unlocking, str(row.checked), cell.compute]
        figures = [f"{row.extra:.2f}", f"{row.up:,.0f}", f"{row.down:,.0f}", f"{row.kept:,}"]
        lines.append(f"| {' | '.join([*texts, *figures])} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns 1 if something is unlocked that the paper has not, or the reverse.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
    """
    parser = argparse.ArgumentParser(prog="python -m fgpipe.study unlocking")
    parser.add_argument("folder", type=Path)
    options, overrides = parser.parse_known_args(arguments)
    study, wanted = Study(options.folder, overrides), cells()
    study.run_missing(wanted)
    facts = data_facts(study.config(wanted[0]))
    rows = [study.row(cell, facts) for cell in wanted]
    print(table(rows), end="")
    (options.folder / "unlocking.md").write_text(table(rows))
    return int(any(row.unlocking != row.cell.unlocking for row in rows))
