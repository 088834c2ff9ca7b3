"""Timeline of a traced run: a few batches in mid-run, a row for each block."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from fgpipe.observe import trace
from fgpipe.observe.colors import COMPUTE_COLORS
from fgpipe.observe.page.chart import BOTTOM, bottom, drawing, figure
from fgpipe.observe.page.figures import key
from fgpipe.observe.page.scale import Scale, size
from fgpipe.observe.timeline import WAITS, Event

BATCHES = 4
LARGEST = 64_000_000
"""Bytes of a trace that a page reads; a larger one takes seconds."""
MOST = 4000
"""Slices in a page."""
WIDTH, ROW, LEFT = 1100, 22, 52


def timeline(run: Path) -> str:
    """The figure; empty without a trace."""
    path, title = run / "trace.json", "Timeline"
    if not path.exists():
        return ""
    if (bytes_ := path.stat().st_size) > LARGEST:
        return figure(title, f"<p class=muted>trace.json has {size(bytes_)}: for Perfetto (ui.perfetto.dev).</p>")
    try:
        events = trace.events(path)
    except (OSError, ValueError, KeyError, TypeError):
        return figure(title, "<p class=muted>trace.json cannot be read.</p>")
    batches = sorted({event.batch for event in events})
    middle = max(0, (len(batches) - BATCHES) // 2)
    chosen = batches[middle : middle + BATCHES]
    shown = [event for event in events if event.batch in chosen and event.kind in COMPUTE_COLORS]
    if not shown:
        return figure(title, "<p class=muted>No slice of compute in trace.json.</p>")
    start, end = min(event.began for event in shown), max(event.ended for event in shown)
    within = [event for event in events if event.ended > start and event.began < end]
    kinds = dict.fromkeys(kind for kind in COMPUTE_COLORS if any(event.kind == kind for event in within))
    said = f"Batches {chosen[0]} to {chosen[-1]}, others pale: {key(kinds, COMPUTE_COLORS)}, <span class=key><i class=wait></i>waiting</span>."
    return figure(title, _drawn(within, chosen, start, end), said, wide=True)


def _drawn(events: Sequence[Event], chosen: Sequence[int], start: int, end: int) -> str:
    blocks = sorted({event.block for event in events})
    height = ROW * len(blocks) + 4
    x = Scale(0.0, (end - start) / 1e6, LEFT, WIDTH - 10)
    parts = []
    for block in blocks:
        parts.append(
            f"<text x={LEFT - 6} y={_row(blocks, block) + 15} text-anchor=end>block {escape(str(block))}</text>"
        )
    drawn = [event for event in events if event.kind in COMPUTE_COLORS or event.kind in WAITS]
    drawn.sort(key=lambda event: event.batch not in chosen)  # of too many, pale ones are left out
    for event in sorted(drawn[:MOST], key=lambda event: event.kind not in WAITS):
        began, ended = max(0.0, (event.began - start) / 1e6), min(x.high, (event.ended - start) / 1e6)
        top, place = _row(blocks, event.block), f"x={x(began):.1f} width={max(0.3, x(ended) - x(began)):.1f}"
        if event.kind in WAITS:
            parts.append(f"<rect class=wait {place} y={top + 9} height=4 />")
            continue
        pale = " opacity=.25" * (event.batch not in chosen)
        said = f"{event.kind}, block {event.block}, batch {event.batch}: {(event.ended - event.began) / 1e6:.3g} ms"
        color = f"style='fill:{COMPUTE_COLORS[event.kind]}'"
        parts.append(f"<rect {place} y={top + 2} height={ROW - 6} {color}{pale}><title>{escape(said)}</title></rect>")
    parts += bottom(x, "ms", x.ticks(most=8), height + BOTTOM)
    return drawing(parts, WIDTH, height + BOTTOM)


def _row(blocks: Sequence[int], block: int) -> int:
    """Pixels from the top; block 0 is at the bottom."""
    return ROW * (len(blocks) - 1 - blocks.index(block))
