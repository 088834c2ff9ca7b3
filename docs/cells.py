"""The page of the measured accuracies, made of the runs' summaries: python docs/cells.py > docs/results/cells.md"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from fgpipe.study.card.measured import NAMES, Collection, Measurement, Values, published_values
from fgpipe.study.card.plots import label
from fgpipe.study.card.ranks import Ranks
from fgpipe.study.card.report import judge
from fgpipe.study.paper.tables import Cell, published, spelled, unpublished

RESULTS = Path(__file__).parent / "results"
HEAD = """# The measured cells

Made of the runs in `docs/results`; a test holds the page to them. Protocols and commands: [the accuracy grid](grid.md).

```bash
pip install -e '.[report]'
python docs/cells.py > docs/results/cells.md
python -m fgpipe.report docs/results/scaled    # the same cells, with figures
```

Test accuracies in percent, beside the paper's. Where a cell has two, the first is of weight space and the second of activity space. One seed, or the mean of three (*). Intervals are of 95 %, over cells, or over groups of cells where pairs share a run.
"""
PROTOCOLS = ("scaled", "scaled_long")
TRIALS = {"4,096 steps": ("scaled_steps", False), "heads at full width": ("scaled_heads", True)}
"""What was tried on top of the long protocol -> folder of its runs, of seed 0, and whether all cells that it changes ran."""
PAGES = (
    ((2, 3), "cifar10"),
    ((4,), "cifar10"),
    ((5,), "cifar10"),
    ((6,), "cifar10"),
    ((7,), "fashion_mnist"),
    ((7,), "imagenette"),
    ((8,), "cifar10"),
    ((9,), "fashion_mnist"),
    ((9,), "imagenette"),
    ((10,), "cifar10"),
    ((11, 12), "cifar10"),
)
"""Tables of the paper that are one here, and the data set."""
SPACES = (None, "weight", "activity")


def claims(collection: Collection) -> Iterable[str]:
    """Yield the lines of a table: each claim that has a measured pair, and what the paper's own tables say of it."""
    yield from ("| claim | verdict | here | the paper's tables |", "|---|---|---|---|")
    for verdict, theirs in judge(collection.values, published_values(), collection.kept):
        if not verdict.numbers.startswith("no "):
            word = f"**{verdict.word}**" if verdict.word == "contradicted" else verdict.word
            published = dict(theirs).get("published, all")
            yield f"| {verdict.claim} | {word} | {verdict.numbers} | {published.numbers if published else ''} |"


def ranks(values: Values) -> Iterable[str]:
    """Yield the lines of a table: the rank correlation of tables 2 and 3, that without each of their rows, and the cells
    most out of order."""
    found = Ranks.of(values, published_values())
    yield from (f"| Spearman, {len(found.keys)} cells of tables 2 and 3 | {found.shown} |", "|---|---|")
    yield from (f"| without {label(key)} | {numbers[0]:.3f} |" for key, numbers in found.without_row() if numbers[0])
    yield from ("", "| most out of order | rank here | published |", "|---|---|---|")
    for key, here, there in found.disagreements[:5]:
        yield f"| {label(key)}, {key.space}, {key.blocks} blocks | {here:g} | {there:g} |"


def trials(values: Values) -> Iterable[str]:
    """Yield two tables: the cells that were tried, and the rank correlation with those in place of the protocol's own."""
    cells = [cell for cell in published() if cell.table in (2, 3) and cell.dataset == "cifar10"]
    first: Values = {key: {0: seeds[0]} for key, seeds in values.items()}
    tried = {name: _runs(RESULTS / folder) for name, (folder, _) in TRIALS.items()}
    columns = {"1,024 steps": first, **tried}
    lines = [f"| Tables 2 and 3, seed 0 | published | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name, count in dict.fromkeys((label(cell.key), cell.blocks) for cell in cells):
        own = [cell for cell in cells if (label(cell.key), cell.blocks) == (name, count)]
        if any(cell.key in each for each in tried.values() for cell in own):
            numbers = "".join(f" {_measured(each, own)} |" for each in columns.values())
            lines.append(f"| {name}, {count} blocks | {_published(own)} |{numbers}")
    yield "\n".join(lines)
    lines = [f"| Spearman, seed 0 | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    local = {key for key in first if key.guess == "local"}
    partial = {name for name, (_, whole) in TRIALS.items() if not whole}
    for words, keys, unknown in (("local guesses alone", local, set()), ("all cells", set(first), partial)):
        found = {
            name: Ranks.of({key: {**first, **each}[key] for key in keys}, published_values())
            for name, each in columns.items()
        }
        numbers = "".join(f" {'-' if name in unknown else ranks.shown} |" for name, ranks in found.items())
        lines.append(f"| {words} |{numbers}")
    yield "\n".join(lines)


def _runs(folder: Path) -> Values:
    """Accuracies of runs that need not have a protocol in common."""
    paths = sorted(path.parent for path in folder.glob("*/summary.json"))
    found = [Measurement.read(path, NAMES[path.name.rpartition("-s")[0]]) for path in paths]
    return {each.key: {each.seed: each.accuracy} for each in found}


def tables(values: Values) -> Iterable[str]:
    """Yield a table for each of `PAGES`, target and width that has a measured cell."""
    every = [*published(), *unpublished()]
    for numbers, dataset in PAGES:
        cells = [cell for cell in every if cell.table in numbers and cell.dataset == dataset]
        for target, width in dict.fromkeys((cell.target, cell.width) for cell in cells):
            own = [cell for cell in cells if (cell.target, cell.width) == (target, width)]
            if any(cell.key in values for cell in own):
                yield _table(values, own, _heading(sorted({cell.table for cell in own}), own[0]))


def _heading(numbers: Sequence[int], cell: Cell) -> str:
    tables = f"Table{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"
    width = "" if cell.width == "1" else f", width {cell.width}"
    return f"{tables}, {spelled(cell.dataset)}, {cell.target} target{width}"


def _table(values: Values, cells: Sequence[Cell], heading: str) -> str:
    blocks = sorted({cell.blocks for cell in cells})
    lines = [
        f"| {heading} |" + "".join(f" {count} blocks | published |" for count in blocks),
        "|---|" + "---|---|" * len(blocks),
    ]
    for name in dict.fromkeys(label(cell.key) for cell in cells):
        of_name = [cell for cell in cells if label(cell.key) == name]
        if any(cell.key in values for cell in of_name):
            columns = [[cell for cell in of_name if cell.blocks == count] for count in blocks]
            lines.append(
                f"| {name} |" + "".join(f" {_measured(values, each)} | {_published(each)} |" for each in columns)
            )
    return "\n".join(lines)


def _measured(values: Values, cells: Iterable[Cell]) -> str:
    return _shown(
        (cell, f"{mean(seeds.values()):.1f}{'*' * (len(seeds) > 2)}" if (seeds := values.get(cell.key)) else "-")
        for cell in cells
    )


def _published(cells: Iterable[Cell]) -> str:
    return _shown((cell, "-" if cell.accuracy is None else f"{cell.accuracy:.1f}") for cell in cells)


def _shown(numbers: Iterable[tuple[Cell, str]]) -> str:
    """Those of weight and activity space, or the one where there is no space; one stroke where there are none."""
    by_space = {cell.space: number for cell, number in numbers}
    shown = [by_space[space] for space in SPACES if space in by_space]
    return " / ".join(shown) if set(shown) - {"-"} else "-"


if __name__ == "__main__":
    parts = [HEAD.rstrip()]
    for protocol in PROTOCOLS:
        collection = Collection.read(RESULTS / protocol)
        count = sum(cell.key in collection.values for cell in published())
        parts += [f"## `profile={protocol}`", f"{count} published cells, {len(collection.kept)} runs."]
        parts += ["\n".join(claims(collection)), "\n".join(ranks(collection.values)), *tables(collection.values)]
    parts += ["## What moves the ranks", *trials(Collection.read(RESULTS / "scaled_long").values)]
    print("\n\n".join(parts))
