"""Figures of one run, each as HTML; empty where the run has nothing to show."""

from collections.abc import Iterator
from html import escape

from fgpipe.observe.colors import LINK_COLORS, of_block
from fgpipe.observe.page.chart import Bar, Series, bars, figure, lines, ranges
from fgpipe.observe.page.folder import FolderContent
from fgpipe.observe.page.scale import percent, size

PHASE_NAMES = {"test": "test", "train": "training"}
Traffic = dict[tuple[int, int], dict[str, int]]
"""Source and destination -> kind -> bytes."""


def every(run: FolderContent) -> Iterator[str]:
    """All figures, in rows of three: accuracy, loss and staleness, links."""
    yield from (over_time(run, phase, "accuracy") for phase in PHASE_NAMES)
    yield by_depth(run)
    yield from (over_time(run, phase, "loss") for phase in PHASE_NAMES)
    yield staleness(run)
    yield from links(run)


def over_time(run: FolderContent, phase: str, what: str) -> str:
    """Accuracy or loss of every block, by epoch."""
    total, blocks = run.blocks, sorted({block for each in run.epochs for block in each.scores[phase]})
    if not blocks:
        return ""
    series = [
        Series(
            f"block {block}",
            [(each.number, getattr(score, what)) for each in run.epochs if (score := each.scores[phase].get(block))],
            of_block(block, total),
            f"block {block}" if block in (blocks[0], blocks[-1]) else "",
            strong=block == total - 1,
        )
        for block in blocks
    ]
    name = PHASE_NAMES[phase].capitalize()
    if what == "accuracy":
        return figure(f"{name} accuracy, %", lines(series, "epoch", shown=plain, bounds=(0.0, 1.0)))
    return figure(f"{name} loss, nats", lines(series, "epoch", log=True))


def plain(share: float) -> str:
    """Percent without the sign."""
    return f"{100 * share:.4g}"


def by_depth(run: FolderContent) -> str:
    """Accuracy of every block's head after the last epoch; the last one is the net's."""
    if not run.epochs:
        return ""
    scores, total = run.epochs[-1].scores, run.blocks
    series = [
        Series(
            name,
            [(block, score.accuracy) for block, score in sorted(scores[phase].items())],
            "var(--ink)" if phase == "test" else "var(--muted)",
            name,
            strong=phase == "test",
            dot_colors=[of_block(block, total) for block in sorted(scores[phase])],
        )
        for phase, name in PHASE_NAMES.items()
    ]
    after = f"After epoch {run.epochs[-1].number}, of each block's own head; that of block {total - 1} is the net's."
    return figure("Accuracy by depth, %", lines(series, "block", shown=plain), after)


def staleness(run: FolderContent) -> str:
    """Updates between a batch's forward pass in a block and its feedback there."""
    found = {int(block): each for block, each in run.summary.get("staleness", {}).items()}
    if not found:
        return ""
    title = "Staleness, updates"
    if not any(each["max"] for each in found.values()):
        return figure(title, "<p class=muted>None: every update used the weights of its batch’s forward pass.</p>")
    spans = [
        (f"block {block}", each["min"], each["mean"], each["max"], of_block(block, len(found)))
        for block, each in sorted(found.items())
    ]
    return figure(
        title, ranges(spans, "block"), "Updates since the batch’s forward pass: least to greatest, the dot is the mean."
    )


def traffic(run: FolderContent) -> Traffic:
    """Bytes of the whole run, by link and kind."""
    found: Traffic = {}
    for link, kinds in run.summary.get("bytes", {}).items():
        source, destination = map(int, link.split("->"))
        found[source, destination] = {kind: each["bytes"] for kind, each in kinds.items()}
    return found


def bytes_up(run: FolderContent) -> int:
    """Of the whole run, over all links."""
    return sum(sum(kinds.values()) for (source, destination), kinds in traffic(run).items() if destination > source)


def links(run: FolderContent) -> Iterator[str]:
    """Bytes per link, up and back."""
    sent = traffic(run)
    if not run.summary:
        return
    up = {link: kinds for link, kinds in sorted(sent.items()) if link[1] > link[0]}
    rows = [Bar(f"{a} → {b}", [(kind, count, LINK_COLORS[kind]) for kind, count in kinds.items()]) for (a, b), kinds in up.items()]  # fmt: skip
    if rows:
        kinds = {kind: None for each in up.values() for kind in each}
        yield figure("Bytes up, per link", bars(rows, size), f"In the whole run, tests included: {key(kinds)}.")
    else:
        yield figure("Bytes up, per link", "<p class=muted>None: all blocks are in one process.</p>")
    back = run.summary.get("bytes_back_per_batch", [])
    if any(back):
        kind = "gradients" if any("gradients" in each for each in sent.values()) else "feedback"
        rows = [Bar(f"to {block}", [(kind, count, LINK_COLORS[kind])]) for block, count in enumerate(back)]
        yield figure(
            "Bytes back, per training batch", bars(rows, size), f"To each block from all above: {key({kind: None})}."
        )
    else:
        yield figure("Bytes back, per training batch", "<p class=muted>None crossed a process.</p>")


def key(kinds: dict[str, None], colors: dict[str, str] = LINK_COLORS) -> str:
    """Names in their colours."""
    return ", ".join(
        f"<span class=key><i style='background:{colors[kind]}'></i>{escape(kind)}</span>" for kind in kinds
    )


def accuracy(run: FolderContent) -> str:
    """The net's, on the test images, after the last epoch; a dash before the first."""
    scores = run.epochs[-1].scores["test"] if run.epochs else {}
    if run.blocks - 1 in scores:
        return percent(scores[run.blocks - 1].accuracy)
    return "–"
