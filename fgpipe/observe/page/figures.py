"""Figures of one run, each as HTML; empty where the run has nothing to show."""

from collections.abc import Iterator, Mapping
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
    if all(len(each) == 1 for each in scores.values()):
        hint = "<p class=muted>The net alone has a head; observe.heads=true trains one beside each block.</p>"
        return figure("Accuracy by depth, %", hint)
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


def back(run: FolderContent) -> dict[str, list[float]]:
    """Bytes that come back per training batch: kind -> to each block."""
    kind = "gradients" if any("gradients" in kinds for kinds in traffic(run).values()) else "feedback"
    found = {kind: run.summary.get("bytes_back_per_batch", [])}
    weights = run.summary.get("weights_back_per_batch")
    return found if weights is None else found | {"weights": weights}


def bytes_back(run: FolderContent) -> float:
    """Bytes that come back per training batch, to all blocks."""
    return sum(map(sum, back(run).values()))


def links(run: FolderContent) -> Iterator[str]:
    """Bytes per link: up, back, and between replicas."""
    sent = sorted(traffic(run).items())
    if not run.summary:
        return
    up = {f"{a} → {b}": kinds for (a, b), kinds in sent if b > a}
    within = "" if len(up) == run.blocks - 1 else " Links within a process carry none."
    yield _by_kind("Bytes up, per link", up, "In the whole run, tests included", within)
    kinds = back(run)
    down = {f"to {block}": dict(zip(kinds, counts, strict=True)) for block, counts in enumerate(zip(*kinds.values()))}
    down = down if any(map(any, kinds.values())) else {}
    yield _by_kind("Bytes back, per training batch", down, "To each block from all above")
    if own := {f"block {a}": kinds for (a, b), kinds in sent if a == b}:
        yield _by_kind("Bytes between replicas, per block", own, "In the whole run")


def _by_kind(title: str, sent: Mapping[str, Mapping[str, float]], what: str, note: str = "") -> str:
    """Bars of bytes by kind.

    Args: sent: name of the bar -> kind -> bytes.
    """
    if not sent:
        return figure(title, "<p class=muted>None crossed from process to process.</p>")
    rows = [
        Bar(name, [(kind, count, LINK_COLORS[kind]) for kind, count in kinds.items()]) for name, kinds in sent.items()
    ]
    kinds = {kind: None for each in sent.values() for kind in each}
    return figure(title, bars(rows, size, left=52), f"{what}: {key(kinds)}.{note}")


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
