"""`FOLDER [key=value ...]`: a study's own keys among its arguments, of which all others go to every run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fgpipe.config.arguments import own_keys
from fgpipe.errors import UserError, bad_value
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_folder, needed


@dataclass
class StudyOptions:
    """Keys of every study; each study's module adds its own."""

    out: str | None = None
    """Folder of the tables; None: that of the study."""

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""


Study = TypeVar("Study", bound=StudyOptions)


def read(arguments: Sequence[str], defaults: Study) -> tuple[Path, Study, list[str]]:
    """Read the folder, the study's options, and the arguments of every run.

    Args: defaults: a dataclass whose fields are the study's own keys.

    Raises:
        UserError: no folder, a value of the wrong type, one that `check` refuses, or a folder that cannot be written.
    """
    if not arguments or "=" in arguments[0]:
        raise UserError(f"{' '.join(arguments) or 'no argument'}: allowed: FOLDER [key=value ...]")
    folder, *rest = arguments
    options, overrides = own_keys(rest, defaults)
    options.check()
    check_folder("FOLDER", Path(folder))
    if options.out is not None:
        check_folder("out", Path(options.out))
    return Path(folder), options, overrides


def check_choice(key: str, chosen: Sequence[object], known: Sequence[object]) -> None:
    """Check a list of names.

    Raises:
        UserError: it is empty, has one twice, or one that is not known.
    """
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(known):
        raise bad_value(key, chosen, f"a list of {', '.join(map(str, known))}, each once")


def claim(folder: Path, arguments: Sequence[str]) -> None:
    """Make the folder of a study, which is for these arguments alone; where the data lie (`data.root`) does not matter.

    Raises:
        UserError: it holds the study of other arguments, or cannot be written.
    """
    note, kept = folder / "arguments.json", [each for each in arguments if not each.startswith("data.root=")]
    with needed("FOLDER", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if durable.create(note, json.dumps(kept).encode()):
            return
        content = note.read_bytes()
    try:
        had = [str(argument) for argument in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{note}: no list of arguments: allowed: none, if no study is in its folder") from error
    if had != kept:
        raise UserError(f"{folder}: allowed: a new folder, or its study's arguments: {' '.join(had) or 'none'}")
