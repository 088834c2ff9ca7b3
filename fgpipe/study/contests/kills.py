"""Work that survives kills of single processes: blocks that are jobs of their own, beside jobs that start again as a whole.

    python -m fgpipe.study kills FOLDER [processes=8] [kills=3] [every=45] [calm=20] [repeats=3] [saves=40] [seed=0] [out=DIR]
                                 [key=value ...]

Each contestant trains for `calm` seconds in peace, then for `kills` times `every` seconds, with a SIGKILL of one block's
process in the middle of each. Victims are drawn by the seed and the round, and are the same for all contestants.
Blocks of their own are `launch/elastic`, which takes a checkout. The others are `torchrun --max-restarts` with
`resume=auto`: 1F1B, and blocks with a local target, in the order of an ordinary run. Blocks of their own save every 10
updates, which drains nothing, the others every `saves` (default 40).

Epochs are long, and tests short, as blocks of their own are tested only in the end.

An update counts if it is in a block's weights in the end. The time lost per kill is that of the updates which `every`
seconds in peace would have had more. All contestants of a round run one after the other. Runs that FOLDER has are not
run again. The table is printed and written to DIR/kills.md, in FOLDER without `out`.
"""

import json
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fgpipe.config import CONFIGS, compose_config
from fgpipe.errors import UserError, bad_value
from fgpipe.observe.record import commit, machine
from fgpipe.saving import durable
from fgpipe.saving.outputs import written
from fgpipe.study.common.arguments import StudyOptions, claim, read
from fgpipe.study.common.runs import command_line, page, quoted, write_page
from fgpipe.study.common.series import torchrun
from fgpipe.study.contests.contest import Spread, microbatches, turns
from fgpipe.study.contests.survival import Survival, free_port, kept_by_job, kept_by_members, survive

ELASTIC = CONFIGS.parent / "launch" / "elastic"
COMMON = [
    "data=digit_sums",
    "data.test_samples=64",
    "model.width=0.25",
    "threads=1",
    "device=cpu",
    "observe.tensorboard=false",
    "epochs=100000",
]
COMMON += ["optim=constant", "optim.lr=0.001"]
OWN = "blocks of their own, local target"
BUFFERS = ("replay.size=8", "replay.reuse=16")
"""Buffers above a gap that last as long as a process takes to come back."""


@dataclass
class KillOptions(StudyOptions):
    """Keys of this study."""

    processes: int = 8
    kills: int = 3
    every: float = 45.0
    """Seconds from one kill to the next."""
    calm: float = 20.0
    """Seconds without kills before the first."""
    repeats: int = 3
    saves: int = 40
    """Updates from one checkpoint of a whole job to the next."""
    seed: int = 0

    def check(self) -> None:
        for key, least in (
            ("processes", 2),
            ("kills", 1),
            ("every", 1),
            ("calm", 1),
            ("repeats", 1),
            ("saves", 1),
            ("seed", 0),
        ):
            if not getattr(self, key) >= least:
                raise bad_value(key, getattr(self, key), f"a number of at least {least}")

    def stated(self) -> list[str]:
        """List what makes a study another one; more rounds do not."""
        values = {key: value for key, value in asdict(self).items() if key not in ("repeats", "out")}
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def contestants(options: KillOptions) -> dict[str, tuple[str, ...]]:
    """Overrides by name."""
    whole = (f"checkpoint.every_steps={options.saves}", "resume=auto")
    peer = ("guess=end_to_end", "schedule=1f1b", f"microbatches={microbatches(options.processes)}")
    return {
        OWN: ("target=local", *BUFFERS, "checkpoint.every_steps=10"),
        "whole job, local target": ("target=local", *whole),
        "whole job, 1F1B": (*peer, *whole),
    }


class Kills:
    """Runs of one folder."""

    def __init__(self, folder: Path, options: KillOptions, overrides: Sequence[str]) -> None:
        """
        Raises:
            UserError: the folder holds another study, or a run has keys that it cannot have.
        """
        if not ELASTIC.is_file():
            raise UserError("study kills: needs launch/elastic, which is in a checkout")
        self._folder, self._options, self._common = folder, options, [*COMMON, *overrides]
        self.contestants = contestants(options)
        for name, keys in self.contestants.items():
            place = ["elastic.block=0", "elastic.store=127.0.0.1:1"] if name == OWN else []
            config = compose_config([*self._common, *keys, *place, f"run_dir={quoted(str(folder))}"])
            if options.processes != config.blocks:
                raise bad_value("processes", options.processes, f"{config.blocks}, one for each block")
        claim(folder, [*options.stated(), *overrides])

    def run(self) -> None:
        """Run what is missing, round by round.

        Raises:
            RunError: a job does not train.
        """
        for round in range(self._options.repeats):
            chance = random.Random(f"{self._options.seed} {round}")
            victims = [chance.randrange(self._options.processes) for _ in range(self._options.kills)]
            for name in turns(list(self.contestants), round):
                file = self._file(name, round)
                if not file.exists():
                    shutil.rmtree(file.parent, ignore_errors=True)
                    with written(file):
                        file.parent.mkdir(parents=True)
                        found = self._survive(name, file.parent, victims)
                        note = {"machine": machine(), "commit": commit(), "survival": asdict(found)}
                        durable.write(file, json.dumps(note).encode())

    def _file(self, name: str, round: int) -> Path:
        return self._folder / str(round) / name.replace(",", "").replace(" ", "-") / "survival.json"

    def _survive(self, name: str, folder: Path, victims: Sequence[int]) -> Survival:
        run, blocks = (folder / "run").resolve(), self._options.processes
        train = ["-m", "fgpipe.train", *self._common, *self.contestants[name], f"run_dir={quoted(str(run))}"]
        if name == OWN:
            command, kept = ["bash", str(ELASTIC), str(blocks), *train], kept_by_members
        else:
            command, kept = [*torchrun(blocks), "--max-restarts=1000", *train], kept_by_job
        store = {"STORE": f"127.0.0.1:{free_port()}", "RESTARTS": "1000"}
        options = self._options
        return survive(command, store, lambda: kept(run, blocks), run, options.calm, options.every, victims)

    def survivals(self, name: str) -> list[Survival]:
        """Read what a contestant kept, one for each round."""
        files = [self._file(name, round) for round in range(self._options.repeats)]
        return [Survival(**json.loads(file.read_text())["survival"]) for file in files]

    def write(self, arguments: Sequence[str], table: str) -> None:
        """Write the table to kills.md, under what it was made with."""
        files = [self._file(name, round) for name in self.contestants for round in range(self._options.repeats)]
        made = [json.loads(file.read_text()) for file in files]
        options = self._options
        config = compose_config(self._common)
        setting = f"{config.data.name}, width {config.model.width:g}, {options.processes} processes; "
        setting += f"rounds: {options.repeats}, with "
        setting += f"{options.kills} kills, one every {options.every:g} s, after {options.calm:g} s in peace."
        text = page("Kills of single processes", command_line("kills", arguments), setting, made, table)
        write_page(Path(options.out or self._folder) / "kills.md", text)


def table(survivals: Mapping[str, Sequence[Survival]]) -> str:
    """Markdown.

    Args: survivals: of each round, by the contestant's name.
    """
    head = "| | updates per second in peace, median | range | under kills, share of that, median | range "
    lines = [head + "| block that keeps least | seconds lost per kill, median | range |", "|" + "---|" * 8]
    for name, found in survivals.items():
        cells = [
            Spread.of(each.rate for each in found).cells(".1f"),
            Spread.of(each.share for each in found).cells(".2f"),
            f"{statistics.median(each.worst for each in found):.2f}",
            Spread.of(each.lost for each in found).cells(".1f"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Run what is missing, and report; returns the exit code.

    Raises:
        UserError: the folder holds another study, or the arguments cannot be run.
        RunError: a job does not train.
    """
    folder, options, overrides = read(arguments, KillOptions())
    kills = Kills(folder, options, overrides)
    kills.run()
    text = table({name: kills.survivals(name) for name in kills.contestants})
    print(text, end="")
    kills.write(arguments[1:], text)
    return 0
