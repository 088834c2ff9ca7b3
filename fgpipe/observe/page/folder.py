"""The folder of a run as a page reads it: also of one that goes on, ended badly, or has files that were cut short."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fgpipe.errors import UserError, bad_value
from fgpipe.observe.metrics import Score
from fgpipe.observe.record import scores_of
from fgpipe.saving import claim, verdict

CONFIG, SUMMARY = "config.yaml", "summary.json"


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`."""

    number: int
    """From 1."""
    seconds: float
    """Of training, since the run's start."""
    scores: Mapping[str, Mapping[int, Score]]
    """Phase -> block -> score."""


@dataclass(frozen=True)
class FolderContent:
    """What there is of a run."""

    path: Path
    config: dict[str, Any]
    epochs: list[Epoch]
    summary: dict[str, Any]
    """Empty while there is none."""
    verdict: dict[str, Any]
    """Empty unless the last job ended badly."""
    holder: str | None
    """Process that writes there now."""
    unread: list[str]
    """Files that are there and cannot be read."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def blocks(self) -> int:
        """Blocks that learn by themselves, as far as the files tell."""
        return 1 + max((block for each in self.epochs for phase in each.scores.values() for block in phase), default=-1)

    @staticmethod
    def within(path: Path) -> list[Path]:
        """The folders of runs in a folder that is none itself, in order of their names; else the folder alone."""

        def is_run(folder: Path) -> bool:
            return (folder / CONFIG).exists() or (folder / SUMMARY).exists()

        try:
            inside = [] if is_run(path) or not path.is_dir() else sorted(filter(is_run, path.iterdir()))
        except OSError:  # `read` says so
            inside = []
        return inside or [path]

    @classmethod
    def read(cls, path: Path) -> "FolderContent":
        """
        Raises:
            UserError: no folder of a run.
        """
        unread: list[str] = []
        try:
            summary = _mapping(path / SUMMARY, unread)
            config = _mapping(path / CONFIG, unread) or summary.get("config")
            if not isinstance(config, dict):
                raise bad_value("RUN", path, f"the folder of a run, which has a {CONFIG} in it")
            epochs = list(_epochs(path / "metrics.jsonl", summary))
            ended = _mapping(path / verdict.NAME, unread)
            holder = None if summary else claim.holder(path)
        except OSError as error:
            raise UserError(f"RUN={path}: allowed: a folder that can be read ({error})") from error
        return cls(path, config, epochs, summary, ended, holder, unread)


def _mapping(path: Path, unread: list[str]) -> dict[str, Any]:
    """Content of a JSON or YAML file; nothing if it is not there, or is no mapping, which is noted."""
    try:
        text = path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER)
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        unread.append(path.name)
        return {}
    return found


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _epochs(path: Path, summary: Mapping[str, Any]) -> Iterator[Epoch]:
    """The lines of `metrics.jsonl`, or the summary's; what was cut short is left out."""
    try:
        found: list[Any] = list(map(_line, path.read_text(errors="replace").splitlines()))
    except FileNotFoundError:
        found = summary.get("epochs") or []
    seconds = 0.0
    for line in found:
        try:
            seconds += line["train_seconds"]
            yield Epoch(line["epoch"] + 1, seconds, scores_of(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
