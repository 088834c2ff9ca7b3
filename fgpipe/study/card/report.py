"""`python -m fgpipe.report FOLDER`: the reproduction card, a page that sets every measured cell beside the published.

Writes `FOLDER/report/`: index.html (with everything in it, no network), cells.csv, and a PNG of each figure.
Exit codes: 0, written; 1, not all can be written; 2, bad input; 130, interrupted.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fgpipe.command import command
from fgpipe.errors import UserError
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_folder, written
from fgpipe.study.card.alignment import Positivity, alignment_verdicts
from fgpipe.study.card.claims import ClaimVerdict, verdicts
from fgpipe.study.card.measured import Collection, Measurement, Values, published_values, spread
from fgpipe.study.card.plots import label, plots
from fgpipe.study.card.ranks import PARTS, Ranks
from fgpipe.study.paper.tables import Cell, Key, published, spelled, unpublished

USAGE = "usage: python -m fgpipe.report FOLDER\n\nFOLDER: where python -m fgpipe.grid put its runs (out=)."


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        raise UserError(f"{' '.join(arguments) or 'no argument'}: allowed: one folder that exists")
    report(Path(arguments[0]))
    return 0


def report(folder: Path) -> None:
    """Print the report's figures, and write it.

    Raises:
        UserError: nothing is measured in there, or nothing can be written there.
        OutputError: not all of the report can be written.
    """
    out = folder / "report"
    check_folder("FOLDER", out)
    collection = Collection.read(folder)
    values, paper = collection.values, published_values()
    measured = sum(cell.key in values for cell in published())
    ranks = Ranks.of(values, paper)
    claims = judge(values, paper, collection.kept)
    print(f"{len(collection.kept)} runs, {measured} of {len(published())} published cells")
    print(f"Spearman correlation, CIFAR-10, tables 2 and 3: {ranks.shown} over {len(ranks.keys)} cells")
    for verdict, _ in claims:
        print(f"{verdict.word}: {verdict.claim}: {verdict.numbers}")
    with written(out):
        out.mkdir(exist_ok=True)
        drawn = [(plot, plot.write(out)) for plot in plots(collection.kept, values, paper)]
        write_csv(out / "cells.csv", collection)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((files("fgpipe.study.card") / "report.html.j2").read_text()).render(
        measured=measured,
        cells=len(published()),
        ranks=ranks,
        parts=list(PARTS),
        without_row=[(label(key), numbers) for key, numbers in ranks.without_row()],
        disagreements=[(label(key), key, a, b) for key, a, b in ranks.disagreements[:8] if a != b],
        claims=claims,
        plots=drawn,
        tables=list(card(collection)),
        facts=facts(collection),
        others=[
            (each.folder.name, "–" if each.accuracy is None else f"{each.accuracy:.1f}", each.reason)
            for each in collection.others
        ],
    )
    with written(out / "index.html"):
        durable.write(out / "index.html", page.encode())
    print(f"see {out / 'index.html'}")


def judge(
    values: Values, paper: Values, measurements: Sequence[Measurement]
) -> list[tuple[ClaimVerdict | Positivity, list[tuple[str, ClaimVerdict]]]]:
    """Judge every claim, with the verdicts on the published numbers beside it, each with its name."""
    same = {key: paper[key] for key in values if key in paper}
    published = zip(verdicts(same), verdicts(paper), strict=True)
    names = ("published, the cells measured here", "published, all")
    accuracy = zip(verdicts(values), published, strict=True)
    return [
        *((ours, list(zip(names, theirs, strict=True))) for ours, theirs in accuracy),
        *((verdict, []) for verdict in alignment_verdicts(measurements)),
    ]


@dataclass(frozen=True)
class CardEntry:
    """One cell of the card, as text."""

    measured: str
    """Mean, with the standard deviation where there is more than one seed; "missing" where there is none."""
    published: str
    note: str
    """Seeds and learning rate."""
    share: float
    """Measured accuracy, 0 to 1; 0 if missing."""


@dataclass(frozen=True)
class CardPart:
    """Cells of one table that share data set, blocks, width and target."""

    title: str
    columns: list[str]
    """Spaces, or one for the accuracy."""
    rows: list[tuple[str, list[CardEntry | None]]]
    """Name and one entry for each column, None where the table has no cell; a single entry spans all columns."""


def card(collection: Collection) -> Iterator[tuple[str, str, list[CardPart]]]:
    """Yield every table: its title, how many cells are measured, and its parts."""
    runs: dict[Key, list[Measurement]] = defaultdict(list)
    for each in collection.kept:
        runs[each.key].append(each)
    cells = [*published(), *(cell for cell in unpublished() if cell.key in runs)]
    for table in sorted({cell.table for cell in cells}):
        own = [cell for cell in cells if cell.table == table]
        parts: dict[tuple, list[Cell]] = defaultdict(list)
        for cell in own:
            parts[cell.dataset, cell.blocks, cell.width, cell.target].append(cell)
        found = sum(cell.key in runs for cell in own)
        yield f"Table {table}", f"{found} of {len(own)} cells measured", [_part(each, runs) for each in parts.values()]


def _part(cells: Sequence[Cell], runs: Mapping[Key, list[Measurement]]) -> CardPart:
    first = cells[0]
    width = "" if first.width == "1" else f", width {first.width}"
    spaces = [space for space in ("activity", "weight") if any(cell.space == space for cell in cells)]
    rows: dict[str, dict[str, CardEntry]] = defaultdict(dict)
    for cell in cells:
        name = label(cell.key) + " (plain)" * (cell.space is None and cell.target == "local")
        rows[name][cell.space or ""] = _entry(cell, runs.get(cell.key, []))
    title = f"{spelled(first.dataset)}, {first.blocks} blocks{width}, {first.target} target"
    entries: list[tuple[str, list[CardEntry | None]]] = [
        (name, [by_space[""]] if "" in by_space else [by_space.get(space) for space in spaces])
        for name, by_space in rows.items()
    ]
    return CardPart(title, spaces or ["accuracy"], entries)


def _entry(cell: Cell, runs: Sequence[Measurement]) -> CardEntry:
    paper = (
        "–"
        if cell.accuracy is None
        else f"{cell.accuracy:.1f}" + (f" ± {cell.std:.1f}" if cell.std is not None else "")
    )
    if not runs:
        return CardEntry("missing", paper, "", 0.0)
    average, deviation = spread(each.accuracy for each in runs)
    measured = f"{average:.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")
    seeds = ",".join(str(each.seed) for each in runs)
    rates = " and ".join(sorted({f"{each.config['optim']['lr']:g}" for each in runs}))
    return CardEntry(measured, paper, f"seed {seeds} · lr {rates}", average / 100)


def facts(collection: Collection) -> list[tuple[str, str]]:
    """List how the grid was measured, for the head of the card."""
    kept = collection.kept
    machines = Counter(str(each.summary.get("machine", "not recorded")) for each in kept)
    commits = Counter(str(each.summary["commit"] or "not recorded") for each in kept)
    widths = sorted({each.config["model"]["width"] for each in kept if each.key.width == "1"})
    seconds = sum(each.summary["train_seconds"] for each in kept)
    return [
        *((f"Protocol, {spelled(name)}", protocol) for name, protocol in collection.protocols().items()),
        ("Width of the standard net", ", ".join(f"{width:g}" for width in widths) or "not measured"),
        ("Seeds", ", ".join(map(str, sorted({each.seed for each in kept})))),
        ("Runs", f"{len(kept)}, {seconds / 3600:.1f} hours of training"),
        ("Commit", "; ".join(f"{name} ({count} runs)" for name, count in commits.most_common())),
        ("Machine", "; ".join(f"{name} ({count} runs)" for name, count in machines.most_common())),
    ]


def write_csv(path: Path, collection: Collection) -> None:
    """Write a line for each published cell and each of ours: measured mean, deviation and seeds, and the published."""
    values = collection.values
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", *Key._fields, "measured", "measured_std", "seeds", "published", "published_std"])
        for cell in (*published(), *(cell for cell in unpublished() if cell.key in values)):
            seeds = values.get(cell.key, {})
            average, deviation = spread(seeds.values()) if seeds else (None, None)
            numbers = ["" if number is None else f"{number:.2f}" for number in (average, deviation)]
            own: list[Any] = [
                cell.table,
                *cell.key,
                *numbers,
                " ".join(map(str, sorted(seeds))),
                cell.accuracy,
                cell.std,
            ]
            writer.writerow(own)
