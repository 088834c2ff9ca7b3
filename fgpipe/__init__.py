"""Training as one process per block: forward-mode tangents up, only scalars back.

The public names. Each is imported when it is first used, so that `import fgpipe` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgpipe.config import compose_config as compose
    from fgpipe.errors import UserError
    from fgpipe.gradients import Direction, Tangent, linearize
    from fgpipe.gradients.guesses import Guess, GuessHead, Reading, View, guess
    from fgpipe.models.heads import Head
    from fgpipe.models.net import Net
    from fgpipe.plan.cut import cut
    from fgpipe.train import program as main
    from fgpipe.trainers.session import run

__all__ = [
    "Direction",
    "Guess",
    "GuessHead",
    "Head",
    "Net",
    "Reading",
    "Tangent",
    "UserError",
    "View",
    "compose",
    "cut",
    "guess",
    "linearize",
    "main",
    "run",
]

_PLACES = {
    "compose": ("fgpipe.config", "compose_config"),
    "Head": ("fgpipe.models.heads", "Head"),
    "cut": ("fgpipe.plan.cut", "cut"),
    "main": ("fgpipe.train", "program"),
    "Net": ("fgpipe.models.net", "Net"),
    "run": ("fgpipe.trainers.session", "run"),
    "UserError": ("fgpipe.errors", "UserError"),
} | {name: ("fgpipe.gradients", name) for name in ("Direction", "Tangent", "linearize")}
_PLACES |= {name: ("fgpipe.gradients.guesses", name) for name in ("Guess", "GuessHead", "Reading", "View", "guess")}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
