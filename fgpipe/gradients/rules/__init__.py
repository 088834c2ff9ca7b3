"""Tangent rules; importing this registers them."""

from fgpipe.gradients.rules import graph, residual, tokens

__all__ = ["graph", "residual", "tokens"]
