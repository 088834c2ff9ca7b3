"""Figures of studies, one to a file; matplotlib is imported when one is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgpipe.saving.outputs import written


@contextmanager
def drawn(path: Path, inches: tuple[float, float] = (6, 4)) -> Iterator[Any]:
    """Give the axes to draw on, and write the picture afterwards.

    Args: inches: width and height.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    yield axes
    with written(path):
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
