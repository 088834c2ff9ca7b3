"""`FOLDER [key=value ...]`: a study's own keys among its arguments, of which all others go to every run."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fgpipe.errors import UserError, one_line
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_folder, needed

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


def own_keys(arguments: Sequence[str], defaults: Options) -> tuple[Options, list[str]]:
    """The options, and the arguments that are none; errors as for `read`, but nothing is checked."""
    names = {field.name for field in fields(defaults)}
    own = [argument for argument in arguments if argument.partition("=")[0] in names]
    options = merged(OmegaConf.structured(defaults), own)
    assert isinstance(options, type(defaults))
    return options, [argument for argument in arguments if argument not in own]


def merged(options: Any, arguments: Iterable[str]) -> Any:
    """The object that a structured configuration and `key=value` arguments on top of it make.

    Raises:
        UserError: a value that cannot be read, or of the wrong type.
    """
    for argument in arguments:
        try:
            options = OmegaConf.merge(options, OmegaConf.from_dotlist([argument]))
            OmegaConf.to_container(options, resolve=True)  # what refers to nothing is found here
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or one_line(error).partition(" full_key: ")[0]
            raise UserError(f"{argument}: {problem}") from error
    return OmegaConf.to_object(options)


def claim(folder: Path, arguments: Sequence[str]) -> None:
    """Make the folder of a study, which is for these arguments alone.

    Raises:
        UserError: it holds the study of other arguments, or cannot be written.
    """
    note = folder / "arguments.json"
    with needed("FOLDER", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if durable.create(note, json.dumps(list(arguments)).encode()):
            return
        content = note.read_bytes()
    try:
        had = [str(argument) for argument in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{note}: no list of arguments: allowed: none, if no study is in its folder") from error
    if had != list(arguments):
        raise UserError(f"{folder}: allowed: a new folder, or its study's arguments: {' '.join(had) or 'none'}")
