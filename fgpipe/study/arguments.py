"""`FOLDER [key=value ...]`: a study's own keys among its arguments, of which all others go to every run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgpipe import durable
from fgpipe.errors import UserError

Options = TypeVar("Options")


@dataclass
class StudyOptions:
    """Keys of every study; their modules say what is theirs."""

    out: str | None = None
    """Folder of the tables; None: that of the study."""

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""


Study = TypeVar("Study", bound=StudyOptions)


def read(arguments: Sequence[str], defaults: Study) -> tuple[Path, Study, list[str]]:
    """The folder, the study's options, and the arguments of every run.

    Args: defaults: a dataclass whose fields are the study's own keys.

    Raises:
        UserError: no folder, a value of the wrong type, or one that `check` refuses.
    """
    if not arguments or "=" in arguments[0]:
        raise UserError(f"{' '.join(arguments) or 'no argument'}: allowed: FOLDER [key=value ...]")
    folder, *rest = arguments
    options, overrides = own_keys(rest, defaults)
    options.check()
    return Path(folder), options, overrides


def own_keys(arguments: Sequence[str], defaults: Options) -> tuple[Options, list[str]]:
    """The options, and the arguments that are none; errors as for `read`, but nothing is checked."""
    names = {field.name for field in fields(defaults)}
    own = [argument for argument in arguments if argument.partition("=")[0] in names]
    merged = OmegaConf.structured(defaults)
    for argument in own:
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([argument]))
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{argument}: {str(error).splitlines()[0]}") from error
    options = OmegaConf.to_object(merged)
    assert isinstance(options, type(defaults))
    return options, [argument for argument in arguments if argument not in own]


def claim(folder: Path, arguments: Sequence[str]) -> None:
    """Make the folder of a study, which is for these arguments alone.

    Raises:
        UserError: it holds the study of other arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "arguments.json"
    if durable.create(note, json.dumps(list(arguments)).encode()):
        return
    if (had := json.loads(note.read_text())) != list(arguments):
        raise UserError(f"{folder}: allowed: a new folder, or its study's arguments: {' '.join(had) or 'none'}")
