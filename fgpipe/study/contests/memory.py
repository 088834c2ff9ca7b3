"""Memory: what each block keeps of a batch in flight, and the peak of each process, beside GPipe and 1F1B.

    python -m fgpipe.study memory FOLDER [processes=2] [split=[4,4]] [batches=8] [repeats=1] [out=DIR] [key=value ...]

The first table has, for every guess, space and target, the bytes that each block keeps of one batch from its forward
pass to its update, and what all of them keep together in one process, where neighbours share a storage; measured on the
stages in one process (`study.contests.kept`). The second has contestants of the same split, batch and threads, each
trained in processes of its own: how many batches or microbatches are in flight at each block, what the blocks of each
process keep together for all of them, and the most memory that the process held while it trained, above what it held
when training began (`fgpipe.observe.memory`). All in MB, which are 1,000,000 bytes.

The tables are printed and written to DIR/memory-PROCESSES.md, in FOLDER without `out`. Runs that FOLDER has are not run
again. The other arguments go to every run, as in `model.width=0.25 batch_size=64`. docs/results/memory.md says what
is compared and how.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgpipe.config import SCOPES, Config, compose_config
from fgpipe.errors import bad_value
from fgpipe.gradients.guesses import find, names
from fgpipe.gradients.method import Method
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.schedule import windows
from fgpipe.plan.topology import runs_of
from fgpipe.study.common.arguments import read
from fgpipe.study.common.series import launch
from fgpipe.study.common.split import data_facts
from fgpipe.study.common.ways import Way
from fgpipe.study.contests import throughput
from fgpipe.study.contests.contest import COMMON, Contest, Contestant, ContestOptions
from fgpipe.study.contests.kept import Storages, kept_by_blocks, kept_together

MB = 1_000_000
LEFT_OUT = ("zero bubble",)
"""Pipelined contestant whose memory between its two backward passes is not `study.contests.kept`'s to say."""

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""Variable for glibc: what has at least so many bytes goes back to the system when it is freed. Of itself glibc raises
the bound to 32 MB as it goes, and then the peak depends on how freed tensors happen to lie in its heap."""


@dataclass
class MemoryOptions(ContestOptions):
    """Keys of this study."""

    batches: int = 8
    repeats: int = 1
    epochs: int = 1

    def least_epochs(self) -> int:
        return 1

    def setting(self) -> str:
        return f"{self.batches} batches, the most of {self.repeats} rounds"


def ways() -> list[Way]:
    """Backpropagation, and every guess in every space that it may be in, for a global and a local target."""
    guesses = [name for name in names() if name != "end_to_end"]
    placed = [(name, space) for space in SCOPES for name in guesses if space in find(name).spaces]
    backpropagation = Way("end_to_end", "weight", "global")
    return [backpropagation, *(Way(*each, target) for target in ("global", "local") for each in placed)]


def contestants(processes: int) -> list[Contestant]:
    """List those of `throughput` that have as many processes, and hold a graph or a guess from one pass to the next."""
    return [each for each in throughput.contestants(processes) if each.processes is None and each.name not in LEFT_OUT]


def in_flight(config: Config, split: Sequence[int]) -> list[int]:
    """Count the batches, or microbatches of GPipe, 1F1B and 2BW, that each block keeps something of at one time, at most.

    Args: split: blocks per process.
    """
    if not config.pipelined:
        method = Method.of(config)
        return [window * method.waits(j) for j, window in enumerate(windows(method, config.window))]
    processes, counts = len(split), [config.microbatches] * len(split)
    if config.schedule == "1f1b":  # the first backward pass of process p comes after processes - p forward passes
        counts = [min(processes - p, config.microbatches) for p in range(processes)]
    return [count for count, size in zip(counts, split, strict=True) for _ in range(size)]


def kept_of_batch(config: Config, facts: DataFacts) -> list[Storages]:
    """Measure what each block keeps of one batch."""
    return kept_by_blocks(Plan.make(config, facts))


def microbatches(config: Config) -> int:
    """Microbatches of a batch; 1 where it goes as a whole."""
    return config.microbatches if config.pipelined else config.parts


def by_process(values: Sequence[Any], split: Sequence[int]) -> list[list[Any]]:
    """Divide what is by block into runs of blocks."""
    return [[values[j] for j in blocks] for blocks in runs_of(split)]


@dataclass(frozen=True)
class MemoryRow:
    """One contestant."""

    name: str
    unit: str
    """Size of what is in flight."""
    in_flight: Sequence[Sequence[int]]
    """Number in flight, by process and block."""
    kept: Sequence[int]
    """Bytes, by process: what its blocks keep together for all that is in flight at each."""
    peak: Sequence[int]
    """Bytes, by process: the most while it trained, above what it held before."""


def measure(study: Contest, contestant: Contestant, facts: DataFacts) -> MemoryRow:
    """Read the runs of a contestant, and measure what its blocks keep."""
    config, split = study.config(study.keys(contestant)), study.split
    one = replace(config, batch_size=config.batch_size // microbatches(config))
    counts = by_process(in_flight(config, split), split)
    each = by_process(kept_of_batch(one, facts), split)
    kept = [kept_together(storages, batches) for storages, batches in zip(each, counts, strict=True)]
    most = [max(of) for of in zip(*map(peaks, study.summaries(contestant)), strict=True)]
    return MemoryRow(contestant.name, f"{one.batch_size} images", counts, kept, most)


def peaks(summary: Mapping[str, Any]) -> list[int]:
    """Bytes of each process while it trained, above what it held before."""
    pairs = zip(summary["peak_memory_bytes"], summary["memory_before_training_bytes"], strict=True)
    return [peak - before for peak, before in pairs]


def kept_table(kept: dict[Way, Sequence[Storages]]) -> str:
    """Markdown, a column for each block, and one for all in one process."""
    blocks = len(next(iter(kept.values())))
    head = ["guess", "space", "target", *(f"block {j}" for j in range(blocks)), "all, in one process"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for way, of_blocks in kept.items():
        sizes = [kept_together([storages]) for storages in of_blocks]
        cells = [way.guess, way.space, way.target, *map(_mb, [*sizes, kept_together(of_blocks)])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def peak_table(rows: Sequence[MemoryRow]) -> str:
    """Markdown, three columns for each process."""
    head = ["", "in flight, each"]
    for p in range(len(rows[0].peak)):
        head += [f"process {p}: in flight, by block", "kept for them", "peak"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, row.unit]
        for counts, kept, peak in zip(row.in_flight, row.kept, row.peak, strict=True):
            cells += [" ".join(map(str, counts)), _mb(kept), _mb(peak)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mb(size: int) -> str:
    return f"{size / MB:{',.1f' if size >= MB else '.3f'}}" if size else "0"


def apart(runs: Sequence[Sequence[str]], processes: int, file: Path) -> None:
    """Launch each run in processes of its own, as an allocator does not give back all that it had."""
    for run in runs:
        launch([run], processes, file, environment=GIVES_BACK)


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        CalledProcessError: a run has failed.
    """
    folder, options, overrides = read(arguments, MemoryOptions())
    if options.batches < (blocks := compose_config([*COMMON, *overrides]).blocks):
        raise bad_value("batches", options.batches, f"at least the {blocks} that may be in flight, one for each block")
    wanted = contestants(options.processes)
    study = Contest(folder, options, overrides, wanted)
    study.run(apart)
    facts = data_facts(study.config(()))
    kept: dict[Way, Sequence[Storages]] = {way: kept_of_batch(study.config(way.overrides()), facts) for way in ways()}
    rows = [measure(study, each, facts) for each in wanted]
    text = f"Kept by each block of one batch in flight, MB:\n\n{kept_table(kept)}\n"
    text += (
        "In flight, kept for all of it by the blocks of a process together, and the peak of training above what was "
    )
    text += f"held before it, MB:\n\n{peak_table(rows)}"
    print(text, end="")
    name = f"memory-{options.processes}"
    study.write(name, f"Memory, {options.processes} processes", ["memory", *arguments], text)
    return 0
