"""Every key of a run: its type, what it accepts, what it cannot be combined with, and how Hydra composes it.

Every rejection is a `UserError` that names the key, the value and what is allowed.
"""

from fgpipe.config.checks import check, check_world
from fgpipe.config.compose import CONFIGS, compose_config, known_keys
from fgpipe.config.rules import RULES
from fgpipe.config.schema import (
    SCOPES,
    Config,
    DataConfig,
    HeadConfig,
    LinkConfig,
    ModelConfig,
    OptimConfig,
    ReplayConfig,
    SlowConfig,
)

__all__ = [
    "CONFIGS",
    "RULES",
    "SCOPES",
    "Config",
    "DataConfig",
    "HeadConfig",
    "LinkConfig",
    "ModelConfig",
    "OptimConfig",
    "ReplayConfig",
    "SlowConfig",
    "check",
    "check_world",
    "compose_config",
    "known_keys",
]
