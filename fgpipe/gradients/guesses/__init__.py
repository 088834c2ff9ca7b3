"""Gradient guesses (paper, section 3.1), one file each; `Guess` says what another one needs to say.

A guess is a class under a name: `@guess("name")`. Installed packages bring theirs by entry points of the group
`fgpipe.guesses`, each a module or class whose import registers it. A configuration names guesses, never modules.
"""

from fgpipe.gradients.guesses.base import Guess, GuessHead, GuessMemory, View, lacking, redraw
from fgpipe.gradients.guesses.registry import find, guess, make, names
from fgpipe.gradients.readings import Reading

__all__ = [
    "Guess",
    "GuessHead",
    "GuessMemory",
    "Reading",
    "View",
    "find",
    "guess",
    "lacking",
    "make",
    "names",
    "redraw",
]
