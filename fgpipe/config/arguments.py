"""Arguments `key=value` of a command: their keys, and a dataclass of options with values of checked types on top."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from fgpipe.errors import UserError, one_line

Options = TypeVar("Options")
"""Dataclass whose fields are keys."""
MANY = 16
"""Keys that one line does not list."""
ALLOWED: dict[Any, str] = {
    bool: "true | false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
    list[str]: "a list of texts",
}
"""Words for what a field of a type accepts, with None or without."""


def split(argument: str) -> tuple[str, str]:
    """Key and value.

    Raises:
        UserError: it is no `key=value`.
    """
    key, equals, value = argument.partition("=")
    if not equals:
        raise UserError(f"{argument}: allowed: key=value")
    return key, value


def by_key(arguments: Iterable[str]) -> dict[str, str]:
    """Key to its last value; errors as for `split`."""
    return dict(map(split, arguments))


def no_such_key(argument: str, known: Collection[str]) -> UserError:
    """Error for a key that is none of the known ones, with those that end with it, else the nearest, else all if they are
    few. Where the key's group exists, only the group's keys are looked at."""
    key = split(argument)[0]
    group = "".join(key.rpartition(".")[:2])
    own = [each for each in known if group and each.startswith(group)]
    group = group if own else ""
    names = [each.removeprefix(group) for each in own or known]
    ends = [name for name in names if name.endswith(f".{key}")]
    hint = "--help lists all" if len(names) > MANY else f"allowed: {' | '.join(group + name for name in names)}"
    if near := ends or difflib.get_close_matches(key.removeprefix(group), names, n=3):
        hint = f"did you mean {' or '.join(group + name for name in near)}?"
    return UserError(f"{argument}: no such key; {hint}")


def check_keys(arguments: Iterable[str], known: Collection[str]) -> None:
    """Refuse arguments that have another key; errors as for `split` and `no_such_key`."""
    for argument in arguments:
        if split(argument)[0] not in known:
            raise no_such_key(argument, known)


def parse(arguments: Sequence[str], defaults: Options) -> Options:
    """Make the options from arguments, none of which may have another key; errors as for `merged`."""
    check_keys(arguments, get_type_hints(type(defaults)))
    return merged(defaults, arguments)


def own_keys(arguments: Sequence[str], defaults: Options) -> tuple[Options, list[str]]:
    """Make the options from the arguments with keys of theirs; returns the others too. Errors as for `parse`."""
    names = get_type_hints(type(defaults))
    own = [argument for argument in arguments if split(argument)[0] in names]
    return merged(defaults, own), [argument for argument in arguments if argument not in own]


def merged(defaults: Options, arguments: Iterable[str]) -> Options:
    """Put the values of arguments, which have keys of the options, on top of defaults.

    Raises:
        UserError: a value that cannot be read, or of the wrong type.
    """
    options = OmegaConf.structured(defaults)
    for argument in arguments:
        key, value = split(argument)
        kind = get_type_hints(type(defaults)).get(key)
        as_it_is = (
            kind in (str, str | None) and value not in ("", "null") and value[0] not in "'\"[{"
        )  # 2024_01 is text
        try:
            options = OmegaConf.merge(options, {key: value} if as_it_is else OmegaConf.from_dotlist([argument]))
            OmegaConf.to_container(options, resolve=True)  # what refers to nothing is found here
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            allowed = next((words for each, words in ALLOWED.items() if kind in (each, each | None)), None)
            if isinstance(error, ValidationError) and allowed is not None:
                raise UserError(f"{argument}: allowed: {allowed}") from error
            raise UserError(f"{argument}: {problem(error)}") from error
    return _object(options, type(defaults))


def problem(error: Exception) -> str:
    """Reason why Hydra, OmegaConf or YAML cannot read a value, in one line without its place in a file or schema."""
    return getattr(error, "problem", None) or re.sub(r"\s*full_key:.*", "", one_line(error))


def load(kind: type[Options], path: Path) -> Options:
    """Read the options that a YAML file states.

    Raises:
        UserError: a key that is none of theirs, or a value of the wrong type.
    """
    try:
        return _object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(path)), kind)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def _object(options: Any, kind: type[Options]) -> Options:
    found = OmegaConf.to_object(options)
    assert isinstance(found, kind)
    return found
