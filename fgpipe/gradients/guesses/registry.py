"""Guesses by name: this package's own, those of a program, and those of installed packages."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgpipe.errors import UserError, bad_value, one_line
from fgpipe.gradients.guesses.base import Guess

GROUP = "fgpipe.guesses"
"""Group of entry points."""
OWN = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "base", "registry", "noise", "two_heads", "mixing")
)
_classes: dict[str, type[Guess]] = {}

Kind = TypeVar("Kind", bound=type[Guess])


def guess(name: str) -> Callable[[Kind], Kind]:
    """Register a subclass of `Guess` as `guess=name`.

    Raises:
        ValueError: the name is no word, or is another class's; or a field has no default.
    """

    def register(kind: Kind) -> Kind:
        if not re.fullmatch(r"[a-z]\w*", name):
            raise ValueError(f"guess {name!r}: allowed: a word in lower case")
        taken = name in OWN and not kind.__module__.startswith(__package__)
        if taken or name in _classes:
            where = "this package" if taken else _classes[name].__module__
            raise ValueError(f"guess {name!r} is taken, by {where}: allowed: another name")
        for each in fields(kind):
            if each.default is MISSING and each.default_factory is MISSING:
                raise ValueError(f"guess {name!r}: field {each.name}: allowed: one with a default, as fields are keys")
        kind.name = name
        _classes[name] = kind
        return kind

    return register


def names() -> list[str]:
    """All that can be had, sorted."""
    return sorted({*OWN, *_classes, *(each.name for each in metadata.entry_points(group=GROUP))})


def make(chosen: Mapping[str, Any] | str) -> Guess:
    """The guess of a configuration's `guess`: its `name` and other keys, or the name alone.

    Raises:
        UserError: there is no such guess, it has no such key, or a value is of the wrong type.
    """
    keys = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
    name = keys.pop("name")
    kind = find(name)
    own = {each.name for each in fields(kind)}
    for key, value in list(keys.items()):
        if key not in own:
            raise bad_value(f"guess.{key}", value, f"as a key of guess={name}, {' | '.join(sorted(own)) or 'none'}")
        try:
            typed = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(kind), {key: value}))
            keys[key] = cast(dict[str, Any], typed)[key]
        except OmegaConfBaseException as error:
            raise UserError(f"guess.{key}={value}: {one_line(error).partition(' full_key:')[0]}") from error
    return kind(**keys)


def find(name: str) -> type[Guess]:
    """The class of a guess, imported if it is not yet.

    Raises:
        UserError: there is none.
    """
    if name not in _classes:
        if name in OWN:
            import_module(f"{__package__}.{name}")
        else:
            for each in metadata.entry_points(group=GROUP, name=name):
                each.load()
    if name not in _classes:
        raise bad_value("guess", name, " | ".join(names()))
    return _classes[name]
