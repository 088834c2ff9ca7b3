"""Figures of studies, one to a file; matplotlib is imported when one is drawn."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgpipe.saving.outputs import written

INK = "#2b2f36"
"""Colour of text and axes, and of learning without feedback; `currentColor` in an SVG of the report, whose scheme decides."""
GUESS_COLORS = {
    "end_to_end": "#8a8f98",
    "local": "#2f7ed8",
    "ntk": "#d9822b",
    "fixed_ntk": "#b5893a",
    "gaussian": "#c2447f",
    "rademacher": "#8e5cc9",
    "local_subspace": "#2a9d8f",
    "error": "#7a9a3a",
    "twins": "#b0472f",
}
"""Of guesses, in every figure; the two controls, no feedback (`INK`) and end to end, have no hue."""
HEAD_COLORS = {"cnn": "#2f7ed8", "mlp": "#d9822b", "linear": "#2a9d8f", "predsim": "#9a9a1f", "spatial": "#8e5cc9"}
"""Of auxiliary heads, in figures that compare them."""


@contextmanager
def drawn(path: Path, inches: tuple[float, float] = (6, 4), across: int = 1) -> Iterator[Any]:
    """Give the axes to draw on, and write the picture afterwards.

    Args:
        inches: width and height.
        across: panels beside each other, each with axes of its own.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, across, figsize=inches, layout="constrained")
    yield axes
    with written(path):
        figure.savefig(path, dpi=150)
    pyplot.close(figure)


def name_lines(axes: Any, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name at `x`, to the right of its end, and higher where names would overlap; right of `x` is no frame.

    Args: ends: name to height of the line's end, and colour.
    """
    below, above = axes.get_ylim()
    axes.spines[["top", "right"]].set_visible(False)
    height = -math.inf
    for name, (end, color) in sorted(ends.items(), key=lambda each: each[1][0]):
        height = max(end, height + 0.05 * (above - below))
        axes.annotate(name, (x, height), va="center", color=color, annotation_clip=False)
