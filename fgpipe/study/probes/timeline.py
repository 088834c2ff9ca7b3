"""Picture of a few batches of a trace.

    python -m fgpipe.study timeline RUN/trace.json PICTURE.png [BATCHES]

One row for each block, block 0 at the bottom; time goes to the right. BATCHES (4 by default) are taken from the middle
of the run, where the pipeline is full. Arrows follow the first of them: up with its activation, and back with its
scalars.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from fgpipe.errors import UserError, bad_value
from fgpipe.observe.colors import COMPUTE_COLORS
from fgpipe.observe.timeline import RECEIVE, SCALARS, WAITS, Event
from fgpipe.observe.trace import chains, read
from fgpipe.saving.outputs import check_file, written

WAIT_COLOR = "#e4e6ea"
DEFAULT_BATCHES = 4


def main(arguments: Sequence[str]) -> int:
    """Draw it; returns the exit code.

    Raises:
        UserError: the trace cannot be read, or there are too few batches in it.
    """
    if not 2 <= len(arguments) <= 3:
        raise UserError(f"arguments={' '.join(arguments)}: allowed: TRACE PICTURE.png [BATCHES]")
    source, picture, *count = arguments
    try:
        events = read(Path(source))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise bad_value("TRACE", source, "the trace.json of a run with trace=true") from error
    if count and not (count[0].isdecimal() and int(count[0]) > 0):
        raise bad_value("BATCHES", count[0], "a whole number of at least 1")
    check_file("PICTURE", Path(picture))
    draw(events, int(count[0]) if count else DEFAULT_BATCHES, Path(picture))
    return 0


def draw(events: Mapping[int, Sequence[Event]], count: int, picture: Path) -> None:
    """Draw `count` batches in mid-run to a PNG file.

    Raises:
        UserError: there are too few batches.
        OutputError: the file cannot be written.
    """
    batches = sorted({event.batch for each in events.values() for event in each})
    if len(batches) < count:
        raise bad_value("BATCHES", count, f"1 to {len(batches)}, as many as the trace has")
    middle = (len(batches) - count) // 2
    chosen = batches[middle : middle + count]
    shown = [
        event for each in events.values() for event in each if event.batch in chosen and event.kind in COMPUTE_COLORS
    ]
    start, end = min(event.began for event in shown), max(event.ended for event in shown)
    blocks = sorted({event.block for event in shown})
    figure, axes = plt.subplots(figsize=(11, 0.55 * len(blocks) + 1.6), layout="constrained")
    for each in events.values():
        for event in each:
            if event.ended > start and event.began < end and event.kind not in (RECEIVE, SCALARS):
                _bar(axes, event, start, event.batch in chosen)
    _arrows(axes, events, chosen[0], start)
    axes.set_xlim(0, (end - start) / 1e6)
    axes.set_xlabel("ms")
    axes.set_yticks(blocks, [f"block {block}" for block in blocks])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    kinds = [kind for kind in COMPUTE_COLORS if any(event.kind == kind for event in shown)]
    legend = [Patch(color=COMPUTE_COLORS[kind], label=kind) for kind in kinds] + [
        Patch(color=WAIT_COLOR, label="waiting")
    ]
    figure.legend(handles=legend, loc="outside upper left", ncols=len(legend), frameon=False)
    with written(picture):
        figure.savefig(picture, dpi=110, format="png")
    plt.close(figure)


def _bar(axes: Axes, event: Event, start: int, chosen: bool) -> None:
    """Draw a slice; those of batches that were not chosen are pale."""
    span = [((event.began - start) / 1e6, (event.ended - event.began) / 1e6)]
    if event.kind in WAITS:
        axes.broken_barh(span, (event.block - 0.1, 0.2), color=WAIT_COLOR)
    elif event.kind in COMPUTE_COLORS:
        axes.broken_barh(
            span, (event.block - 0.3, 0.6), color=COMPUTE_COLORS[event.kind], alpha=1.0 if chosen else 0.25, linewidth=0
        )
        if chosen and event.kind == "forward":
            axes.text(span[0][0], event.block + 0.33, str(event.batch), fontsize=7, color="#2b2f36")


def _arrows(axes: Axes, events: Mapping[int, Sequence[Event]], batch: int, start: int) -> None:
    for chain in chains(events):
        if chain[0][1].batch != batch:
            continue
        ends = [event for _, event in chain]
        for first, second in pairwise(ends):
            if first.block != second.block and second.kind != "reply":  # what comes back shows where from
                back = second.block < first.block
                axes.annotate(
                    "",
                    xy=((second.began - start) / 1e6, second.block),
                    xytext=((first.ended - start) / 1e6, first.block),
                    arrowprops={"arrowstyle": "->", "color": "#b23a48" if back else "#2b2f36", "lw": 0.9, "alpha": 0.8},
                )
