"""A checked configuration from `configs/` and a command line; composed by Hydra."""

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import import_module
from os.path import expanduser  # not Path's, which raises where there is no such user
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from fgpipe.config.arguments import no_such_key, problem, split
from fgpipe.config.checks import check
from fgpipe.config.rules import RULES
from fgpipe.config.schema import Config
from fgpipe.errors import UserError, one_line

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""The configuration files: inside an installed package, beside it in a checkout."""
GROUPS = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
"""Keys that choose a file."""


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose `configs/train.yaml` with command-line overrides into a checked, typed configuration.

    Raises:
        UserError: an unknown key or group choice, a value of the wrong type, or one that `check` refuses.
    """
    overrides = [_at_home(override) for override in overrides]
    parsed = {override: _parsed(override) for override in overrides}
    choices = [override for override, each in parsed.items() if each.key_or_group in GROUPS]
    try:
        _offer_plug_ins(choices)
        composed = copy.deepcopy(_of_choices(tuple(choices)))
        for override in overrides:
            if override not in choices:
                _merge(composed, override, parsed[override])
        OmegaConf.resolve(composed)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from error
    assert isinstance(config, Config)
    check(config)
    return config


def _at_home(override: str) -> str:
    """Expand a `~` at the start of a value, which shells leave after a key with a dot and Hydra cannot read."""
    return re.sub(r"^([\w.]+=['\"]?)(~[\w.-]*)", lambda found: found[1] + expanduser(found[2]), override)


def _offer_plug_ins(choices: Sequence[str]) -> None:
    """Give Hydra the default keys of guesses that have no file."""
    for choice in choices:
        group, name = split(choice)
        if group == "guess" and not (CONFIGS / group / f"{name}.yaml").exists():
            kind = import_module("fgpipe.gradients.guesses").find(name)
            ConfigStore.instance().store(group=group, name=name, node={"name": name, **asdict(kind())})


@lru_cache(maxsize=1024)
def _of_choices(overrides: tuple[str, ...]) -> DictConfig:
    """Compose by Hydra, which takes a tenth of a second; of groups there are few choices, and many values on top."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@lru_cache(maxsize=1024)
def _parsed(override: str) -> Override:
    if not re.match(r"[A-Za-z_][\w.]*=", override):
        raise UserError(f"{override}: allowed: key=value")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = one_line(error).partition(" See https")[0]
        raise UserError(f"{override}: the value cannot be read ({reason}); quote it as in key='value'") from error
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        raise UserError(f"{override}: allowed: one value; a list is in brackets, text with a comma in quotes")
    if key in GROUPS and key != "experiment" and parsed.value() is None:
        raise UserError(f"{override}: allowed: {' | '.join(sorted(path.stem for path in (CONFIGS / key).iterdir()))}")
    return parsed


def _merge(config: DictConfig, override: str, parsed: Override) -> None:
    key = parsed.key_or_group
    try:
        OmegaConf.update(
            config, key, parsed.value(), merge=True, force_add=key.startswith(("guess.", "optim.options."))
        )  # it says which
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise no_such_key(override, known_keys()) from error
    except (OmegaConfBaseException, OverflowError) as error:
        raise UserError(f"{override}: " + (f"allowed: {RULES[key][1]}" if key in RULES else problem(error))) from error


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line from an error about the whole, naming the override at fault where it can be told."""
    text = problem(error)
    group = re.search(
        r"Could not find '([\w/]+)/([^']*)'.*Available options in '[^']*': (.*?)(?: Config search path|$)", text
    )
    if group:
        options = " | ".join(sorted(group[3].split()))
        return f"{group[1].split('/')[-1]}={group[2]}: allowed: {options}"
    key = getattr(error, "full_key", None)
    unknown = re.search(r"Key '([^']+)'(?: is)? not in|Could not override '([^']+)'", text)
    for override in overrides:
        name, value = split(override)
        if unknown and name.split(".")[-1] == (unknown[2] or unknown[1]).split(".")[-1]:
            return str(no_such_key(override, known_keys()))
        if isinstance(error, InterpolationResolutionError) and "${" in value:
            return f"{override}: {text}"
        if name == key:
            return f"{name}={value}: " + (f"allowed: {RULES[name][1]}" if name in RULES else text)
    return text


def known_keys() -> list[str]:
    """Every key of the schema, dotted."""

    def walk(node: DictConfig, prefix: str) -> list[str]:
        keys = []
        for name in map(str, node):
            child = node._get_node(name)
            keys += walk(child, f"{prefix}{name}.") if isinstance(child, DictConfig) else [f"{prefix}{name}"]
        return keys

    own = {
        f"guess.{key}"
        for file in (CONFIGS / "guess").glob("*.yaml")
        for key in map(str, OmegaConf.load(file))
        if key != "name"
    }
    return sorted({*walk(OmegaConf.structured(Config), ""), *own} - {"guess"})
