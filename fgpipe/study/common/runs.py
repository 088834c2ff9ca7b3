"""Knowledge of all studies about runs: overrides for Hydra, summaries, where they were made; and the runs of a grid.

A run of a grid has one folder, named by its settings and seed.
"""

import fcntl
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from fgpipe.config import Config, compose_config
from fgpipe.errors import UserError, bad_value, reason
from fgpipe.saving import durable
from fgpipe.saving.outputs import written
from fgpipe.saving.resume import FREE, differences, flat
from fgpipe.study.paper.profile import mismatches
from fgpipe.study.paper.tables import Cell

SAVE_MINUTES = 2
"""Time between checkpoints: what a crash can cost."""
LOGS = "logs"
"""Folder in the grid's: what each run printed, and its lock."""


@dataclass
class Run:
    """One training; cells that mean the same one share it."""

    settings: Mapping[str, str]
    """Key to value for `fgpipe.train`, without data root, seed and folder."""
    seed: int
    cells: list[Cell] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder: words for people and a hash of settings and seed.

        The hash is of the settings as the grid states them, so that a new key of `fgpipe.train` changes no name.
        """
        stated = json.dumps([sorted(self.settings.items()), self.seed])
        return f"{self.cells[0].key.words}-s{self.seed}-{hashlib.sha256(stated.encode()).hexdigest()[:8]}"

    def folder(self, out: Path) -> Path:
        return out / self.name

    def log(self, out: Path) -> Path:
        """File of what the run prints; the lines of an interrupted attempt stay above those of the next."""
        return out / LOGS / f"{self.name}.log"

    def lock(self, out: Path) -> IO[str] | None:
        """Take the run's lock, which lasts while any process has the file open; None if another driver's run has it.

        A child that inherits the file keeps the lock when its driver is killed.

        Raises:
            UserError: the folder cannot be written, or its file system has no locks.
        """
        path, file = out / LOGS / f"{self.name}.lock", None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if file is not None:
                file.close()
            if isinstance(error, BlockingIOError):
                return None
            raise bad_value("out", out, f"a folder to write in, with file locks (flock): {reason(error)}") from error
        return file

    def compose(self) -> Config:
        """
        Raises:
            UserError: no run can have these settings, or they are not of the run's cells.
        """
        config = compose_config([*(f"{key}={value}" for key, value in self.settings.items()), f"seed={self.seed}"])
        for cell in self.cells:
            if wrong := list(mismatches(cell.key, asdict(config))):
                raise UserError(f"{cell.key.words}: its configuration is of another cell: {', '.join(wrong)}")
        return config

    def is_done(self, out: Path, config: Config) -> bool:
        """Tell whether the run is finished, as `finished` does.

        Raises:
            UserError: it is finished with another configuration.
        """
        return finished(self.folder(out), config)

    def overrides(self, out: Path, root: str | None) -> list[str]:
        """Command line of `fgpipe.train` for this run."""
        overrides = [
            f"run_dir={quoted(str(self.folder(out)))}",
            *(f"{key}={value}" for key, value in self.settings.items()),
        ]
        overrides += [f"seed={self.seed}", "resume=auto", f"checkpoint.every_minutes={SAVE_MINUTES}"]
        return overrides + ([f"data.root={quoted(root)}"] if root is not None else [])


def quoted(text: str) -> str:
    """Quote a string for Hydra's command line, where a backslash is special before a quote and at the end."""
    return '"' + re.sub(r'(\\+)(?="|$)', r"\1\1", text).replace('"', '\\"') + '"'


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the `summary.json` of a run that is done; None if there is none or it was cut short.

    Raises:
        UserError: there is one that cannot be read.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
    return summary if isinstance(summary, dict) and "test_accuracy" in summary else None


def finished(folder: Path, config: Config) -> bool:
    """Tell whether the run of a folder is done, with the configuration that was composed for it now.

    A key that `configs/train.yaml` has got since is no difference, nor one that it has lost and that was null.

    Raises:
        UserError: it is done with another one.
    """
    summary = read_summary(folder)
    if summary is None:
        return False
    there = summary.get("config", {})
    had, has = dict(flat(there)), {key for key, _ in flat(asdict(config))}
    other = (has - had.keys()) | {key for key, value in had.items() if key not in has and value is None}
    if differing := list(differences(there, config, FREE | other)):
        allowed = "no run, or one of the settings asked for"
        raise UserError(f"{folder}: allowed: {allowed}; it is finished with {', '.join(differing)}")
    return True


def command_line(study: str, arguments: Iterable[str]) -> str:
    """Command that makes a study's page again, on any machine: FOLDER and DIR stand for folders of this one.

    Args: arguments: of the study, behind its folder.
    """
    kept = [argument for argument in arguments if not argument.startswith("out=")]
    named = ["data.root=DIR" if argument.startswith("data.root=") else argument for argument in kept]
    return shlex.join(["python", "-m", "fgpipe.study", study, "FOLDER", *named])


def page(title: str, command: str, setting: str, summaries: Iterable[Mapping[str, Any]], table: str) -> str:
    """Markdown: a study's table, under what it was made with.

    Args:
        command: as of `command_line`.
        summaries: of its runs.
    """
    return f"# {title}\n\n```bash\n{command}\n```\n\n{setting} {origin(summaries)}\n\n{table}"


def write_page(file: Path, text: str) -> None:
    """Write a page, in a folder that is made if need be.

    Raises:
        OutputError: it cannot be written.
    """
    with written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write(file, text.encode())


def origin(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Machines on which, and commits by which, runs were made; for a person to read."""
    summaries = list(summaries)
    known = ({str(summary.get(key) or "not recorded") for summary in summaries} for key in ("machine", "commit"))
    machines, commits = map(sorted, known)
    return f"On {'; '.join(machines)}; commit {', '.join(commits)}."
