"""The folder of a run of elastic blocks, and the generations of each block in it.

RUN/elastic/key                          the run's key (`elastic.secret`)
RUN/elastic/run.json                     what all members must agree on, from the process of block 0
RUN/elastic/block-3/generation-2/        of the process that took the block's place as the second one
    tally                                its counts (`elastic.tally`)
    checkpoints/step-140/                the block's own state, as files of any checkpoint
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from fgpipe.config import Config
from fgpipe.elastic.tally import Tally
from fgpipe.errors import bad_value
from fgpipe.plan.plan import DataFacts
from fgpipe.saving import claim, durable
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest
from fgpipe.saving.outputs import needed
from fgpipe.saving.resume import FREE, differences

KEPT = 2
"""Generations of a block whose states are kept, the newest of those that have any."""


class Places:
    """Paths of a run, and what is in them."""

    def __init__(self, run: Path) -> None:
        self.run, self._path = run, run / "elastic"
        self.key, self.facts, self.summary = self._path / "key", self._path / "run.json", run / "summary.json"

    def begin(self) -> None:
        """Make the folder, unless there is one of such a run.

        Raises:
            UserError: it holds something else, or cannot be made.
        """
        with needed("run_dir", self.run):
            if self.run.exists() and not self._path.exists() and not claim.is_free(self.run):
                allowed = "with elastic.block: a folder of such a run, or one that does not exist yet or is empty"
                raise bad_value("run_dir", self.run, allowed)
            self._path.mkdir(parents=True, exist_ok=True)

    def agree(self, config: Config, facts: DataFacts) -> None:
        """Say what the run is, from the process of block 0.

        Raises:
            UserError: the run in this folder is another one.
        """
        content = {"config": plain(config), "facts": astuple(facts), "began": time.time()}
        with needed("run_dir", self.run):
            durable.create(self.facts, json.dumps(content).encode())
        found = self.agreed(config)
        if found != facts:
            raise bad_value(
                "data", config.data.name, f"the data of the run in {self.run}, {found}, where these are {facts}"
            )

    def agreed(self, config: Config) -> DataFacts:
        """The facts that block 0 has found.

        Raises:
            UserError: the run in this folder is another one.
        """
        content = self.agreement()
        if differing := list(differences(content["config"], config, FREE)):
            raise bad_value("run_dir", self.run, f"another folder, as the run in it has {', '.join(differing)}")
        return DataFacts(*content["facts"])

    def agreement(self) -> dict[str, Any]:
        """What `agree` has written."""
        content: dict[str, Any] = json.loads(self.facts.read_text())
        return content

    def block(self, block: int) -> Path:
        return self._path / f"block-{block}"

    def generation(self, block: int, generation: int) -> Path:
        return self.block(block) / f"generation-{generation}"

    def generations(self, block: int) -> list[int]:
        """Those of a block so far, in order."""
        names = (path.name.partition("-")[2] for path in self.block(block).glob("generation-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def take(self, block: int, least: int) -> int:
        """Begin a new generation of a block, of this number at least; two processes never get the same.

        Raises:
            UserError: its folder cannot be made.
        """
        with needed("run_dir", self.run):
            while True:
                number = max(least, 1, *(1 + each for each in self.generations(block)))
                with suppress(FileExistsError):
                    self.generation(block, number).mkdir(parents=True)
                    return number

    def tally(self, block: int) -> dict[str, int]:
        """The counts of the block's newest generation; empty if it has none."""
        for generation in reversed(self.generations(block)):
            if counts := Tally.read(self.generation(block, generation) / "tally"):
                return counts
        return {}

    def newest(self, block: int, warn: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """Folder and manifest of the newest whole state of a block; None if no generation has saved any.

        A zombie's states are older than those of the generation that took its place, whenever it wrote them.

        Args: warn: told of each damaged one that is passed over.

        Raises:
            CheckpointError: there are states, and all are damaged.
        """
        damaged: CheckpointError | None = None
        for generation in reversed(self.generations(block)):
            checkpoints = Checkpoints(self.generation(block, generation))
            try:
                if (manifest := checkpoints.newest(warn)) is not None:
                    return checkpoints.folder(manifest.step), manifest
            except CheckpointError as error:
                damaged = error
        if damaged is not None:
            raise damaged
        return None

    def prune(self, block: int) -> None:
        """Remove the states of old generations."""
        saved = [each for each in self.generations(block) if Checkpoints(self.generation(block, each)).steps()]
        for generation in saved[:-KEPT]:
            Checkpoints(self.generation(block, generation)).discard(after=-1)


def plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries, as JSON gives it back."""
    tree: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return tree
