"""The page of several runs beside each other: one colour for each run."""

import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import ascii_uppercase
from urllib.parse import quote

from fgpipe.observe.colors import RUN_COLORS
from fgpipe.observe.page import figures, html, settings
from fgpipe.observe.page.chart import Bar, Series, bars, figure, lines
from fgpipe.observe.page.folder import FolderContent
from fgpipe.observe.page.run import NAME as PAGE
from fgpipe.observe.page.run import state_word
from fgpipe.observe.page.scale import duration, number, size

NAME = "comparison.html"
LONGEST = 9
"""Characters of a name that fits beside a line."""
NONE = "–"
COLUMNS = (
    "run",
    "test accuracy",
    "images/s",
    "training time",
    "back per batch",
    "mean staleness",
    "state",
    "epochs",
    "folder",
)
Points = list[tuple[float, float]]


def render(runs: Sequence[FolderContent], folder: Path, title: str | None = None, lead: str = "") -> str:
    """The page as HTML.

    Args:
        folder: of the page, from which it links to those of the runs.
        lead: text below the title.
    """
    names, title = labels(runs), title or f"{len(runs)} runs"
    return html.page(
        f"{title}: fgpipe",
        [
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(lead)}</p>" if lead else "",
            overview(runs, names, folder),
            html.charts(charts(runs, names)),
            differences(runs, names),
        ],
    )


def labels(runs: Sequence[FolderContent]) -> list[str]:
    """What stands beside each line: the folders' names if they are short and different, else letters."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names) and max(map(len, names)) <= LONGEST:
        return names
    return [ascii_uppercase[k] if len(runs) <= len(ascii_uppercase) else str(k) for k in range(len(runs))]


def color(position: int) -> str:
    return RUN_COLORS[position % len(RUN_COLORS)]


def overview(runs: Sequence[FolderContent], names: Sequence[str], folder: Path) -> str:
    """A row for each run, and what ended those that ended badly."""
    rows = "\n".join(_row(run, name, color(k), folder) for k, (run, name) in enumerate(zip(runs, names, strict=True)))
    top = "".join(f"<th>{each}</th>" for each in COLUMNS)
    causes = [
        f"{name}: {run.verdict['cause']}" for run, name in zip(runs, names, strict=True) if "cause" in run.verdict
    ]
    ended = "".join(f"<div class=panel>{escape(each)}</div>" for each in causes)
    return f"<div class=scroll><table class=overview><thead><tr>{top}</tr></thead><tbody>\n{rows}\n</tbody></table></div>{ended}"


def _row(run: FolderContent, name: str, color: str, folder: Path) -> str:
    speed = run.summary.get("images_per_second")
    stale = [each["mean"] for each in run.summary.get("staleness", {}).values()]
    cells = (
        figures.accuracy(run),
        NONE if speed is None else number(round(speed)),
        duration(run.epochs[-1].seconds) if run.epochs else NONE,
        size(figures.bytes_back(run)) if "bytes_back_per_batch" in run.summary else NONE,
        number(sum(stale) / len(stale)) if stale else NONE,
        state_word(run)[0],
        f"{run.epochs[-1].number if run.epochs else 0} of {run.config.get('epochs', '?')}",
    )
    own, shown = run.path / PAGE, escape(str(run.path))
    if own.exists():
        shown = f"<a href='{escape(quote(os.path.relpath(own, folder)))}'>{shown}</a>"
    mark = f"<i style='background:{color}'></i>{escape(name)}"
    return f"<tr><th>{mark}</th>{''.join(f'<td>{escape(each)}</td>' for each in cells)}<td>{shown}</td></tr>"


def charts(runs: Sequence[FolderContent], names: Sequence[str]) -> Iterator[str]:
    """The nets' accuracy by epoch, by time of training and by depth; their loss; bytes."""

    def by(time: str, what: str) -> list[Series]:
        return _series([_of_net(run, time, what) for run in runs], names)

    def depth(run: FolderContent) -> Points:
        scores = run.epochs[-1].scores["test"] if run.epochs else {}
        return [(block, each.accuracy) for block, each in sorted(scores.items())]

    whole = (0.0, 1.0)
    by_number, by_seconds = by("number", "accuracy"), by("seconds", "accuracy")
    yield figure("Test accuracy by epoch, %", lines(by_number, "epoch", shown=figures.plain, bounds=whole))
    yield figure(
        "Test accuracy by time, %",
        lines(by_seconds, "seconds of training", shown=figures.plain, bounds=whole, whole=False),
    )
    yield figure("Test accuracy by depth, %", lines(_series(map(depth, runs), names), "block", shown=figures.plain))
    yield figure("Test loss, nats", lines(by("number", "loss"), "epoch", log=True))
    yield from _bytes(runs, names)


def _of_net(run: FolderContent, time: str, what: str) -> Points:
    """Accuracy or loss of the whole net on the test images, by an attribute of `Epoch`."""
    last = run.blocks - 1
    scored = [each for each in run.epochs if last in each.scores["test"]]
    return [(getattr(each, time), getattr(each.scores["test"][last], what)) for each in scored]


def _bytes(runs: Sequence[FolderContent], names: Sequence[str]) -> Iterator[str]:
    finished = [(k, run) for k, run in enumerate(runs) if run.summary]
    up = {k: figures.bytes_up(run) for k, run in finished}
    back = {k: figures.bytes_back(run) for k, run in finished}
    for title, found in (("Bytes up, in the whole run", up), ("Bytes back, per training batch", back)):
        if found:
            rows = [Bar(names[k], [("all links", count, color(k))]) for k, count in found.items()]
            yield figure(title, bars(rows, size, left=12 + 7 * max(map(len, names))))


def _series(points: Iterable[Points], names: Sequence[str]) -> list[Series]:
    return [
        Series(name, each, color(position), name, strong=True)
        for position, (name, each) in enumerate(zip(names, points, strict=True))
    ]


def differences(runs: Sequence[FolderContent], names: Sequence[str]) -> str:
    sizes = [{"parameters": run.summary.get("parameters")} for run in runs]  # nets of one's own have no keys
    known = all(each["parameters"] for each in sizes)
    found = [*(settings.table(sizes) if known else ()), *settings.table([run.config for run in runs])]
    rows = [[key, *values] for key, values in found]
    shown = html.table(["key", *names], rows) if rows else "<p class=muted>The same configuration.</p>"
    return f"<h2>Where their configurations differ</h2>\n{shown}"
