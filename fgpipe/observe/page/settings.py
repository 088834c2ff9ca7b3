"""Differences of configurations: of one from the default, and of several from each other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.saving.resume import flat

OWN = {"run_dir"}
"""Keys that differ between any two runs."""
GROUPS = ("guess", "head", "target")
"""Groups of keys whose file has the name that the group's `name` says."""
NOTHING = "–"
"""A key that a configuration does not have."""


def changed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value and default of each key that has not the value of `configs/train.yaml`; one that only follows from the
    choice of a target, guess or head is left out."""
    names = {f"{group}.name": name for group in GROUPS if (name := dict(flat(config)).get(f"{group}.name"))}
    try:
        follows = compose_config([f"{key.removesuffix('.name')}={name}" for key, name in names.items()])
    except UserError:  # a plug-in's, of another version, or nothing without other keys
        follows = compose_config([])
    implied = {key for key, _ in flat(config)} - {key for key, _ in table([config, asdict(follows)])} - set(names)
    rows = table([config, asdict(compose_config([]))])
    return [(key, here, default) for key, (here, default) in rows if key not in implied]


def table(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys in which configurations differ, and the value in each."""
    flats = [{key: shown(value) for key, value in flat(config)} for config in configs]
    keys = sorted({key for each in flats for key in each} - OWN)
    rows = [(key, [each.get(key, NOTHING) for each in flats]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def method(config: Mapping[str, Any]) -> str:
    """The run in a few words."""
    values = dict(flat(config))
    guess = values.get("guess.name") or values.get("guess") or "?"
    modules, blocks = values.get("model.modules"), f"{values.get('model.blocks', '?')} blocks"
    net = f"{len(modules)} modules of {blocks}" if isinstance(modules, list) else blocks
    data = f"{net} on {values.get('data.name', '?')}"
    if guess == "end_to_end":
        return f"backpropagation ({values.get('schedule')}), {data}"
    where = f"{values.get('space', '?')} space, scope {values.get('scope') or 'by default'}"
    return f"{guess} guesses, {values.get('target.name', '?')} target, {where}, {data}"
