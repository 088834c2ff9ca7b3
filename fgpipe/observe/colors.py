"""Colours of things that several pictures show, as CSS."""

COMPUTE_COLORS = {
    "forward": "#2f7ed8",
    "loss": "#2a9d8f",
    "guess": "#d9822b",
    "push": "#8e5cc9",
    "read": "#c2447f",
    "head": "#7fb069",
    "update": "#e3b505",
    "backward": "#b23a48",
    "weights": "#b5893a",
}
"""Of each kind of `timeline.COMPUTE`."""
LINK_COLORS = {
    "activations": "#2f7ed8",
    "tangents": "#8e5cc9",
    "gradients": "#b23a48",
    "feedback": "#d9822b",
    "control": "#8a8f98",
    "averages": "#2a9d8f",
    "weights": "#b5893a",
}
"""Of each of `ledger.KINDS`."""
RUN_COLORS = ("#2f7ed8", "#d9822b", "#8e5cc9", "#2a9d8f", "#c2447f", "#7a9a3a", "#b23a48", "#8a8f98")
"""Of runs beside each other, in order."""


def of_block(block: int, blocks: int) -> str:
    """From block 0's to the last block's; the page defines both (`--first`, `--top`)."""
    return f"color-mix(in oklch, var(--first), var(--top) {100 * block / max(1, blocks - 1):.0f}%)"
