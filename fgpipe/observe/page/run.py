"""The page of one run."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from fgpipe.observe.page import figures, html, settings
from fgpipe.observe.page.folder import FolderContent
from fgpipe.observe.page.scale import duration, number, percent, size
from fgpipe.observe.page.slices import timeline
from fgpipe.saving import durable

NAME = "report.html"
"""File of a run's folder."""


def write(run: Path, file: Path) -> None:
    """Write the page of a run.

    Raises:
        UserError: no folder of a run.
        OSError: it cannot be written.
    """
    durable.write(file, render(FolderContent.read(run)).encode())


def render(run: FolderContent) -> str:
    """The page as HTML."""
    return html.page(
        f"{run.name}: fgpipe",
        [
            f"<h1>{escape(run.name)}</h1>\n<p class=muted>{escape(settings.method(run.config))}.</p>",
            state(run),
            verdict(run),
            html.figures(numbers(run)),
            html.charts([*figures.every(run), timeline(run.path)]),
            configuration(run),
            scores(run),
            facts(run),
        ],
    )


def state(run: FolderContent) -> str:
    """How far the run is, in a sentence."""
    word, color = state_word(run)
    total = run.config.get("epochs", "?")
    done = f"{run.epochs[-1].number if run.epochs else 0} of {total} epochs"
    who = f" ({run.holder})" if run.holder else ""
    unread = f" Not to be read: {', '.join(run.unread)}." if run.unread else ""
    return f"<p><span class='state {color}'>{word}</span>{escape(who)}: {escape(done)}.{escape(unread)}</p>"


def state_word(run: FolderContent) -> tuple[str, str]:
    """A word or two, and the class of its colour."""
    if run.verdict:
        return "Ended badly", "bad"
    if run.summary:
        return "Finished", "good"
    return ("Running", "") if run.holder else ("Stopped before its end, without a verdict", "bad")


def verdict(run: FolderContent) -> str:
    """Content of verdict.json."""
    if not (found := run.verdict):
        return ""
    blocks = ", ".join(map(str, found.get("blocks") or []))
    pairs = [
        ("at fault", f"rank {found.get('rank', '?')}, block {blocks or '?'}"),
        ("last batch begun", settings.shown(found.get("last_batch"))),
        ("last checkpoint", found.get("last_checkpoint") or "none"),
        *([("note", str(found["note"]))] if found.get("note") else []),
    ]
    goes_on = f"<p>It goes on with</p><pre>{escape(str(found['resume']))}</pre>" if found.get("resume") else ""
    cause = escape(str(found.get("cause", "?")))
    return f"<div class=panel><b>{cause}</b>{html.facts(pairs)}{goes_on}</div>"


def numbers(run: FolderContent) -> Iterator[tuple[str, str]]:
    """Figures at the head of the page: name and value."""
    if run.epochs:
        yield "test accuracy", figures.accuracy(run)
        yield "training time", duration(run.epochs[-1].seconds)
    if run.summary:
        if (speed := run.summary.get("images_per_second")) is not None:
            yield "images per second", number(round(speed))
        if sizes := run.summary.get("parameters"):
            yield "parameters of blocks", f"{sum(sizes):,}"
        yield "processes", str(run.summary.get("world_size", "?"))
        yield "back per training batch", size(figures.bytes_back(run))
        if peaks := run.summary.get("peak_memory_bytes"):
            yield "peak memory, largest process", size(max(peaks))


def configuration(run: FolderContent) -> str:
    rows = settings.changed(run.config)
    shown = html.table(["key", "here", "default"], rows) if rows else "<p class=muted>All keys have their defaults.</p>"
    return f"<h2>Differences from the default configuration</h2>\n{shown}"


def scores(run: FolderContent) -> str:
    """The last epoch in numbers."""
    if not run.epochs:
        return ""
    last = run.epochs[-1].scores
    rows = []
    for block in sorted({block for phase in last.values() for block in phase}):
        found = [last[phase].get(block) for phase in ("train", "test")]
        cells = [
            f(each) if each else "" for f in (lambda s: number(s.loss), lambda s: percent(s.accuracy)) for each in found
        ]
        rows.append([str(block), *cells])
    head = ["block", "training loss", "test loss", "training accuracy", "test accuracy"]
    shown = html.table(head, rows, numbers=True)
    return f"<details><summary>Epoch {run.epochs[-1].number} in numbers</summary>{shown}</details>"


def facts(run: FolderContent) -> str:
    """Where and how it ran."""
    pairs = [("folder", str(run.path.resolve()))]
    for name in ("machine", "commit", "device", "blocks_per_process", "replicas", "windows", "threads_per_process"):
        if name in run.summary:
            pairs.append((name.replace("_", " "), settings.shown(run.summary[name])))
    return f"<h2>Where and how</h2>\n{html.facts(pairs)}"
