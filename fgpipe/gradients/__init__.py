"""Gradient estimates by forward-mode differentiation, and the oracle that defines them."""

from fgpipe.gradients import rules as _rules  # noqa: F401 - it registers the tangent rules
from fgpipe.gradients.dual import Direction, Push, PushLosses, Tangent, linearize, linearize_losses, loss_rule, rule

__all__ = ["Direction", "Push", "PushLosses", "Tangent", "linearize", "linearize_losses", "loss_rule", "rule"]
