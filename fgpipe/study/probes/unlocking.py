"""Order in which blocks wait: the paper's table 1, measured in 8 processes.

    python -m fgpipe.study unlocking FOLDER [out=DIR] [key=value ...]

Each cell of the table is trained for one short epoch under torchrun seven times, with its timeline recorded, and each
time another one of blocks 1 to 7 is made slow on purpose: from the order of the events of every batch follows what the
update of the block below had to wait for (`study.probes.orders`). Pipelined backpropagation beside it is trained once,
with the last block slow, as its order needs no slow block. Bytes per training batch are the ledger's, over all links
together; what the blocks below the last keep for a batch in flight is measured on the stages (`study.contests.kept`).
The extra compute, in units of the blocks' forward passes, is that of runs in one process and one thread, as the
simulator's costs are (`study.simulator.calibration`); it alone depends on a clock, and wants a quiet machine.

The table is printed and written to DIR/unlocking.md, in FOLDER without `out`. Runs that FOLDER has are not run again.
The other arguments go to every run, as in `data=cifar10 data.root=DIR model.width=0.5`. docs/results/unlocking.md says
what the checks and the columns are. The exit code is 1 if something is unlocked that the paper has not, or the reverse.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgpipe.config import compose_config
from fgpipe.errors import bad_value
from fgpipe.observe import trace
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.study.common.arguments import StudyOptions, claim, read
from fgpipe.study.common.runs import command_line, page, quoted, read_summary, write_page
from fgpipe.study.common.series import launch
from fgpipe.study.common.split import data_facts
from fgpipe.study.common.ways import Way
from fgpipe.study.contests.kept import kept_by_blocks, kept_together
from fgpipe.study.probes.orders import OrderCheck, Spans, backward_locked, backward_unlocked, spans, update_unlocked
from fgpipe.study.simulator import calibration
from fgpipe.study.simulator.programs import Costs

PROCESSES = 8
LAST = PROCESSES - 1
BATCHES = 4
"""Batches of a run in 8 processes."""
COMMON = ["epochs=1", "window=auto", "threads=1", "device=cpu", "observe.tensorboard=false", "trace=true"]
COMMON += ["optim=constant", "optim.lr=0.001"]  # nothing diverges, whatever is guessed
SLOW = ["slow.factor=100", "deadline=600"]
ALONE = ["window=1"]  # a copy of the weights, for activity space, would count as forward pass


@dataclass(frozen=True)
class UnlockingCell(Way):
    """One way to train, and how the paper's table 1 has it."""

    unlocking: str
    """Unlocking in the paper's table; of backpropagation, in its text."""
    compute: str
    """Compute in the paper's table."""

    @property
    def name(self) -> str:
        return f"{self.guess}-{self.target}-{self.space}"

    @property
    def is_backpropagation(self) -> bool:
        return self.guess == "end_to_end"

    def slow_blocks(self) -> range:
        """Blocks of which each is the slow one of a run in 8 processes."""
        return range(LAST, PROCESSES) if self.is_backpropagation else range(1, PROCESSES)


def verdict(found: Mapping[int, Spans]) -> tuple[str, OrderCheck]:
    """Find what is unlocked, by the order of events, and the check that says so, of all blocks below the last together.

    Args: found: by the slow block of the run.
    """
    below, pairs = range(LAST), [(found.get(block + 1, spans([])), block) for block in range(LAST)]
    checks = {
        "update": [update_unlocked(of_run, block) for of_run, block in pairs],
        "backward": [
            *(backward_unlocked(of_run, block, block + 1) for of_run, block in pairs),
            *(backward_unlocked(found[LAST], block, LAST) for block in below[:-1]),
        ],
        "none": [backward_locked(of_run, block) for of_run in found.values() for block in below],
    }
    for name, verdicts in checks.items():
        lines = tuple(line for each in verdicts for line in each.broken)
        together = OrderCheck(sum(each.batches for each in verdicts), lines)
        if all(each.holds for each in verdicts):
            return name, together
    return "?", together


def cells() -> list[UnlockingCell]:
    """List the paper's table 1, with both spaces, and backpropagation."""
    table = [("end_to_end", "weight", "global", "none", "vJp (global)")]
    for space in ("weight", "activity"):
        for guess in ("local", "ntk"):
            table.append((guess, space, "global", "backward", "vJp (local) + Jvp"))
            table.append((guess, space, "local", "update", "vJp (local)"))
        table.append(("gaussian", space, "global", "backward", "Jvp"))
        table.append(("gaussian", space, "local", "update", "Jvp (local)"))
    return [UnlockingCell(*row) for row in table]


@dataclass(frozen=True)
class UnlockingRow:
    """Figures of one cell."""

    cell: UnlockingCell
    unlocking: str
    checked: int
    """Orders that were looked at, each of two blocks and a batch."""
    extra: float
    """Compute beyond the forward pass, in units of it, of the blocks below the last."""
    up: float
    """Bytes per batch, all links together."""
    down: float
    kept: int
    """Bytes per batch in flight, all blocks below the last together, each in a process of its own."""


class Study:
    """Results of one folder."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        """
        Raises:
            UserError: the folder holds the study of other arguments, or they cannot be run.
        """
        self._folder, self._arguments = folder.resolve(), list(arguments)
        self.configs = {cell: compose_config([*COMMON, *arguments, *cell.overrides()]) for cell in cells()}
        """Configuration of a run of each cell."""
        for config in self.configs.values():
            if (blocks := config.blocks) != PROCESSES:
                raise bad_value("model.blocks", blocks, f"{PROCESSES}, one for each process")
        claim(self._folder, self._arguments)

    def run_missing(self, wanted: Sequence[UnlockingCell]) -> None:
        """Run what the folder does not have: in one set of 8 processes, and in one process.

        Raises:
            CalledProcessError: a run has failed.
        """
        slow, alone = {}, {}
        for cell in wanted:
            for block, path in self._slow(cell).items():
                slow[path] = self._run(cell, path, BATCHES, f"slow.block={block}", *SLOW)
            path = self._alone(cell)
            by_block = calibration.BACKPROPAGATION if cell.is_backpropagation else ()
            alone[path] = self._run(cell, path, calibration.BATCHES, *ALONE, *by_block)
        for runs, processes in ((slow, PROCESSES), (alone, 1)):
            missing = {path: run for path, run in runs.items() if read_summary(path) is None}
            for path in missing:
                shutil.rmtree(path, ignore_errors=True)
            if missing:
                launch(list(missing.values()), processes, self._folder / "runs.json")

    def _run(self, cell: UnlockingCell, path: Path, batches: int, *more: str) -> list[str]:
        size = self.configs[cell].batch_size
        short = [f"data.train_samples={batches * size}", f"data.test_samples={size}"]
        return [*COMMON, *self._arguments, *cell.overrides(), *short, *more, f"run_dir={quoted(str(path))}"]

    def _slow(self, cell: UnlockingCell) -> dict[int, Path]:
        """Folders by slow block."""
        return {block: self._folder / f"{cell.name}-slow-{block}" for block in cell.slow_blocks()}

    def _alone(self, cell: UnlockingCell) -> Path:
        return self._folder / f"{cell.name}-alone"

    def costs(self, cell: UnlockingCell) -> Costs:
        """Seconds by block and kind, of a whole batch in one thread of one process."""
        return calibration.slices(trace.events(self._alone(cell) / "trace.json"))

    def row(self, cell: UnlockingCell, facts: DataFacts, plain: Costs) -> UnlockingRow:
        """Read the figures of a cell whose runs are there.

        Args: plain: costs of backpropagation.
        """
        unlocking, found = verdict(
            {block: spans(trace.events(path / "trace.json")) for block, path in self._slow(cell).items()}
        )
        up, down = bytes_per_batch((read_summary(self._slow(cell)[LAST]) or {})["bytes"])
        kept = kept_by_blocks(Plan.make(self.configs[cell], facts))[:LAST]
        extra = extra_compute(self.costs(cell)[:LAST], plain[:LAST])
        return UnlockingRow(
            cell, unlocking, found.batches, extra, up, down, sum(kept_together([block]) for block in kept)
        )

    def write(self, out: Path, command: str, wanted: Sequence[UnlockingCell], text: str) -> None:
        """Write the table to unlocking.md in `out`, under what it was made with."""
        config = self.configs[wanted[0]]
        setting = f"Width {config.model.width:g}, batch {config.batch_size}, "
        setting += f"{BATCHES} batches, a process for each block."
        summaries = [read_summary(path) or {} for cell in wanted for path in self._slow(cell).values()]
        title = "What is unlocked: the paper's table 1, by execution"
        write_page(out / "unlocking.md", page(title, command, setting, summaries, text))


def extra_compute(costs: Costs, plain: Costs) -> float:
    """Compute of a step beyond the forward passes and the optimizer's own steps, in units of those forward passes.

    Args:
        costs: seconds of each kind of the blocks that count, all of it; the forward pass of block 0 has the loading of a batch.
        plain: the same of backpropagation, which has the optimizer's step alone in `update`.
    """
    steps = sum(block["update"] for block in plain)
    return (sum(sum(block.values()) for block in costs) - steps) / sum(block["forward"] for block in costs) - 1


def bytes_per_batch(links: dict[str, dict[str, dict[str, int]]]) -> tuple[float, float]:
    """Bytes upwards and downwards per training batch; the one test batch is as large, and carries activations only."""
    totals = [0.0, 0.0]
    for link, kinds in links.items():
        source, destination = map(int, link.split("->"))
        for kind, sent in kinds.items():
            tested = kind in ("activations", "control")
            totals[source > destination] += sent["bytes"] / (BATCHES + tested)
    return totals[0], totals[1]


def table(rows: Sequence[UnlockingRow]) -> str:
    """Markdown: measured beside published."""
    head = "| guess | target | space | unlocked (paper) | unlocked (measured) | orders checked | compute (paper) "
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
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, StudyOptions())
    study, wanted = Study(folder, overrides), cells()
    study.run_missing(wanted)
    facts = data_facts(study.configs[wanted[0]])
    plain = study.costs(wanted[0])
    rows = [study.row(cell, facts, plain) for cell in wanted]
    print(table(rows), end="")
    study.write(Path(options.out or folder), command_line("unlocking", arguments[1:]), wanted, table(rows))
    return int(any(row.unlocking != row.cell.unlocking for row in rows))
