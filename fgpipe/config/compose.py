"""From `configs/` and a command line to a checked configuration; composed by Hydra."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgpipe.config.checks import check
from fgpipe.config.rules import RULES
from fgpipe.config.schema import Config
from fgpipe.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""The configuration files: inside an installed package, beside it in a checkout."""


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose `configs/train.yaml` with command-line overrides into a checked, typed configuration.

    Raises:
        UserError: an unknown key or group choice, a value of the wrong type, or one that `check` refuses.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    for override in overrides:
        _check_syntax(override)
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("train", overrides=list(overrides))
        OmegaConf.resolve(composed)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from error
    assert isinstance(config, Config)
    check(config)
    return config


def _check_syntax(override: str) -> None:
    if not re.match(r"[A-Za-z_][\w.]*=", override):
        raise UserError(f"{override}: allowed: key=value")
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = " ".join(str(error).split()).partition(" See https")[0]
        raise UserError(f"{override}: the value cannot be read ({reason}); quote it as in key='value'") from error


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line from an error of Hydra or OmegaConf, naming the override at fault where it can be told."""
    text = " ".join(str(error).split())
    group = re.search(r"Could not find '([\w/]+)/([^']*)'.*Available options in '[^']*': (.*?)(?: Config search path|$)", text)
    if group:
        options = " | ".join(sorted(group[3].split()))
        return f"{group[1].split('/')[-1]}={group[2]}: allowed: {options}"
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    unknown = re.search(r"Key '([^']+)'(?: is)? not in|Could not override '([^']+)'", text)
    for override in overrides:
        name, _, value = override.partition("=")
        if unknown and name.split(".")[-1] == (unknown[2] or unknown[1]).split(".")[-1]:
            near = difflib.get_close_matches(name, known_keys(), n=3)
            return f"{override}: no such key" + (f"; did you mean {' or '.join(near)}?" if near else "; --help lists all")
        if name == key or f"merging override {override}" in text:
            reason = re.sub(r"\s*full_key:.*", "", " ".join(str(error.__cause__ or error).split()))
            return f"{name}={value}: " + (f"allowed: {RULES[name][1]}" if name in RULES else reason)
    return text


def known_keys() -> list[str]:
    """Every key of the schema, dotted."""

    def walk(node: DictConfig, prefix: str) -> list[str]:
        keys = []
        for name in node:
            child = node._get_node(name)
            keys += walk(child, f"{prefix}{name}.") if isinstance(child, DictConfig) else [f"{prefix}{name}"]
        return keys

    return walk(OmegaConf.structured(Config), "")
