"""Differences of configurations: of one from the default, and of several from each other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fgpipe.config import compose_config
from fgpipe.saving.resume import flat

OWN = {"run_dir"}
"""Keys that differ between any two runs."""
NOTHING = "–"
"""A key that a configuration does not have."""


def changed(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value and default of each key that has not the value of `configs/train.yaml`."""
    return [(key, here, default) for key, (here, default) in table([config, asdict(compose_config([]))])]


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
    data = f"{values.get('model.blocks', '?')} blocks on {values.get('data.name', '?')}"
    if guess == "end_to_end":
        return f"backpropagation ({values.get('schedule')}), {data}"
    where = f"{values.get('space', '?')} space, scope {values.get('scope') or 'by default'}"
    return f"{guess} guesses, {values.get('target.name', '?')} target, {where}, {data}"
