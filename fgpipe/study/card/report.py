"""`python -m fgpipe.report FOLDER`: the reproduction card, a page that sets every measured cell beside the published.

Writes `FOLDER/report/`: index.html (with everything in it, no network), cells.csv, and a PNG of each figure.
Exit codes: 0, written; 1, not all can be written; 2, bad input; 130, interrupted.
"""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fgpipe.command import command
from fgpipe.errors import UserError
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_folder, written
from fgpipe.study.card.alignment import Positivity, alignment_verdicts
from fgpipe.study.card.cells import CardRow, rows
from fgpipe.study.card.claims import ClaimVerdict, verdicts
from fgpipe.study.card.measured import Collection, Measurement, Values, published_values, spread
from fgpipe.study.card.plots import label, plots
from fgpipe.study.card.ranks import PARTS, Ranks
from fgpipe.study.paper.tables import Key, published, spelled, unpublished

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
    every = list(rows(collection, out))
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
        rows=every,
        choices=choices(every),
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


def choices(every: Sequence[CardRow]) -> list[tuple[str, list[str]]]:
    """List the columns that the table is filtered by, each with its values."""
    columns = [("table", [str(row.cell.table) for row in every])]
    names = ("data set", "blocks", "width", "target", "guess", "head", "space")
    columns += [(name, [row.words[at] for row in every]) for at, name in enumerate(names)]
    return [(name, list(dict.fromkeys(values))) for name, values in columns]


def facts(collection: Collection) -> list[tuple[str, str]]:
    """List how the grid was measured, for the head of the card."""
    kept = collection.kept
    machines = Counter(str(each.summary.get("machine", "not recorded")) for each in kept)
    commits = Counter((each.summary["commit"] or "")[:8] or "not recorded" for each in kept)
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
