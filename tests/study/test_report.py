"""The page of the report, on made-up runs: what it holds, what is compared, and that a browser opens it."""

import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fgpipe.study.card.measured import Collection, published_values
from fgpipe.study.card.plots import color_of, plots, plt, smooth
from fgpipe.study.card.report import main
from fgpipe.study.paper.tables import published
from tests.integration.launching import ROOT
from tests.study.results import key, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_one_protocol_is_compared_and_the_rest_is_listed(tmp_path: Path) -> None:
    what = key("local", "mlp", "weight")
    write_run(tmp_path / "a", what, 70, seed=0)
    unwatched = write_run(tmp_path / "a", what, 72, seed=1)
    other = write_run(tmp_path / "b", what, 99, seed=2, epochs=5)
    again = write_run(tmp_path / "b", what, 10, seed=0)
    watched = write_run(tmp_path / "c", what, 72, seed=1, cosine={0: [0.1] * 7})
    unfinished = write_run(tmp_path / "a", key("ntk", "mlp", "weight"), 50)
    (unfinished / "summary.json").write_text('{"test_accuracy": 0.')
    collection = Collection.read(tmp_path)
    assert collection.values == {what: {0: 70.0, 1: 72.0}}
    assert watched in {each.folder for each in collection.kept}
    reasons = {each.folder: each.reason for each in collection.others}
    assert set(reasons) == {other, again, unwatched, unfinished}
    assert "epochs=5 (there 2)" in reasons[other] and "not that of a run that is done" in reasons[unfinished]
    assert reasons[unwatched] == f"the same run as {watched.name}"


ACCIDENTS = {
    "model.width": 0.5, "optim.momentum": 0.8, "optim.weight_decay": 0.0, "data.augment": "none", "dtype": "float64",
    "step": "normalised", "decode": "smoothed", "autocast": True, "head.hidden": 7, "data.mean": [0.5] * 3,
}  # fmt: skip


@pytest.mark.parametrize("name", ACCIDENTS)
def test_runs_of_other_settings_are_listed(name: str, tmp_path: Path) -> None:
    what = key("local", "mlp", "weight")
    for seed in (0, 1):
        write_run(tmp_path, what, 70, seed=seed)
    other = write_run(tmp_path, what, 90, seed=2, settings={name: ACCIDENTS[name]})
    collection = Collection.read(tmp_path)
    assert collection.values == {what: {0: 70.0, 1: 70.0}}
    (listed,) = collection.others
    assert listed.folder == other and listed.accuracy == 90 and f"{name}=" in listed.reason


def test_widths_of_cells_are_no_accident_and_neither_is_what_changes_no_number(tmp_path: Path) -> None:
    narrow = key("local", "mlp", "weight", blocks=16, width="w1")
    write_run(tmp_path, narrow, 60)
    write_run(tmp_path, key("local", "mlp", "weight"), 70)
    later = write_run(tmp_path, key("local", "mlp", "activity"), 65, settings={"threads": 2, "observe.cosine": 50})
    summary = json.loads((later / "summary.json").read_text())
    del summary["config"]["slow"], summary["config"]["autocast"]  # as of an older commit
    (later / "summary.json").write_text(json.dumps(summary))
    collection = Collection.read(tmp_path)
    assert len(collection.kept) == 3 and not collection.others
    assert collection.protocols() == {
        "cifar10": "training images 6400, test images 5000, epochs 2, batch 64, schedule one_cycle, width factor 0.25, "
        "computed by two backward passes"
    }


def test_a_key_that_only_one_run_has_is_listed(tmp_path: Path) -> None:
    for name in ("mlp", "cnn"):
        write_run(tmp_path, key("local", name, "weight"), 70)
    older = write_run(tmp_path, key("local", "mlp", "activity"), 65, settings={"gone": 3})
    collection = Collection.read(tmp_path)
    (listed,) = collection.others
    assert len(collection.kept) == 2 and listed.folder == older and "gone=3 (there unknown)" in listed.reason


def test_keys_of_the_cells_own_guess_are_of_the_cell(tmp_path: Path) -> None:
    """With their defaults, as no other cell can have them."""
    write_run(tmp_path, key("local", "mlp", "weight"), 40)
    kept = [write_run(tmp_path, key("local_subspace", aux, "activity"), 40) for aux in ("mlp", "cnn")]
    other = write_run(tmp_path, key("local_subspace", "linear", "activity"), 40, settings={"guess.directions": 3})
    collection = Collection.read(tmp_path)
    assert {each.folder for each in collection.kept} >= set(kept) and len(collection.kept) == 3
    assert [(each.folder, "guess.directions=3" in each.reason) for each in collection.others] == [(other, True)]


def test_the_results_of_the_repository_are_all_compared() -> None:
    collection = Collection.read(ROOT / "docs/results/scaled")
    assert len(collection.kept) + len(collection.others) == len(
        list((ROOT / "docs/results/scaled").glob("*/summary.json"))
    )
    assert {each.reason[:12] for each in collection.others} <= {"the same run"}


def test_of_one_cell_and_seed_no_run_is_chosen_by_luck(tmp_path: Path) -> None:
    """One rate against one: neither. With the other seeds, the rate of most."""
    what, sure = key("local", "mlp", "weight"), key("local", "mlp", "activity")
    write_run(tmp_path, sure, 50)
    write_run(tmp_path, what, 70)
    write_run(tmp_path, what, 80, settings={"optim.lr": 0.03})
    collection = Collection.read(tmp_path)
    assert set(collection.values) == {sure} and [each.accuracy for each in collection.others] in ([70, 80], [80, 70])
    write_run(tmp_path, what, 71, seed=1)
    collection = Collection.read(tmp_path)
    assert collection.values[what] == {0: 70.0, 1: 71.0}
    (other,) = collection.others
    assert other.accuracy == 80 and "optim.lr=0.03 (there 0.1)" in other.reason


def test_what_cannot_be_read_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = key("local", "mlp", "weight")
    broken = {
        "cut": write_run(tmp_path, what, 70, seed=1, cosine={0: [0.1] * 7}),
        "folder": write_run(tmp_path, what, 70, seed=2),
        "bare": write_run(tmp_path, what, 70, seed=3),
        "other cell": write_run(tmp_path, what, 70, seed=4, settings={"guess.name": "ntk"}),
    }
    (broken["cut"] / "cosine.jsonl").write_text('{"step": 0, "cosine": {"0": 0.1}}\n{"step": 5, "cos')
    (broken["folder"] / "summary.json").unlink()
    (broken["folder"] / "summary.json").mkdir()
    (broken["bare"] / "summary.json").write_text('{"test_accuracy": 0.5, "config": {"seed": 3}}')
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1, "nothing is left to compare"
    write_run(tmp_path, what, 70)
    collection = Collection.read(tmp_path)
    assert collection.values == {what: {0: 70.0}}
    reasons = {each.folder: each.reason for each in collection.others}
    for name, expected in {
        "cut": "cosine.jsonl: line 2 cannot be read",
        "folder": "summary.json: cannot be read: Is a directory",
        "bare": "no summary of fgpipe.train",
        "other cell": "another cell: guess.name=ntk (the cell has local)",
    }.items():
        assert expected in reasons[broken[name]]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three seeds of some cells, one of others."""
    out = tmp_path / "results"
    for seed in range(3):
        write_run(out, key("local", "mlp", "weight"), 70 + seed, seed=seed, cosine={0: [0.1] * 7, 5: [0.2] * 7})
        write_run(out, key("gaussian", None, "weight"), 40 - seed, seed=seed)
    write_run(out, key("local", "mlp", "activity"), 65)
    write_run(out, key("end_to_end", None, None), 80, settings={"head.name": "cnn"})
    write_run(out, key("ntk", "cnn", "activity", blocks=16), 30)
    write_run(out, key("local", "mlp", None, target="local"), 71)
    return out


class Page(HTMLParser):
    """Ids, every address that a browser would fetch, and every link."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids += [values["id"] or ""] if "id" in values else []
        for name in ("src", "href", "xlink:href", "data"):
            if values.get(name):
                (self.links if tag == "a" else self.addresses).append(values[name] or "")


def test_the_page_has_every_cell_and_needs_no_network(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    printed = capsys.readouterr().out
    assert "Spearman correlation, CIFAR-10, tables 2 and 3: 1.000 [" in printed and "] over 4 cells" in printed
    assert "too little data: Local guesses beat random ones (global target): +32 points; 1 of 1 groups" in printed
    html = (results / "report" / "index.html").read_text()
    page = Page()
    page.feed(html)
    assert len(page.ids) > 20 and not [name for name, count in Counter(page.ids).items() if count > 1]
    assert all(address.startswith(("#", "data:")) for address in page.addresses) and "@import" not in html
    assert html.count("<tr hidden>") == 462 - 5, "the Gaussian cell is not a published one"
    assert len(page.links) == 10 and all((results / "report" / link).is_file() for link in page.links)
    claim = re.search(r'<div class="claim"><h3>Local guesses beat random.*?</div>', html, re.DOTALL)
    assert claim is not None and "averaged" in claim[0], "the card says what the differences are of"
    assert "seeds 0,1,2: +32 [+27, +37] points" in claim[0]  # 30, 32, 34: 4.303 * 2 / sqrt(3) = 4.97
    assert "The correlation without a row" in html
    assert "<td><b>71.0</b></td><td>1.0</td>" in html
    for name in (
        "scatter",
        "groups-global",
        "loss-8-blocks",
        "depth-8-blocks",
        "cosine-8-blocks-weight",
    ):
        assert (results / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f'id="{name}"' in html
    with (results / "report" / "cells.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 463 and sum(line["measured"] != "" for line in lines) == 6
    assert [float(line["published"]) for line in lines if line["published"]] == [cell.accuracy for cell in published()]
    line = next(
        line
        for line in lines
        if line["table"] == "3" and line["aux"] == "mlp" and line["guess"] == "local" and line["measured"]
    )
    assert (line["measured"], line["seeds"]) == ("65.00", "0")


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path / "absent")], [str(tmp_path)]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("fgpipe: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_smooth() -> None:
    assert smooth([0.0, 3.0, 6.0, 9.0], reach=1) == [1.5, 3.0, 6.0, 7.5]
    assert smooth([0.0, 3.0], reach=0) == [0.0, 3.0]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_in_a_browser_without_a_console_error(results: Path, tmp_path: Path, width: int) -> None:
    assert main([str(results)]) == 0
    page = results / "report" / "index.html"
    clean, clean_width = browse(page, tmp_path, width)
    assert not clean and clean_width <= width, "nothing is logged, and nothing is wider than the window"
    page.write_text(page.read_text().replace("</body>", "<script>undefined_name()</script></body>"))
    assert browse(page, tmp_path, width)[0], "a page with an error is noticed"


def browse(page: Path, folder: Path, width: int) -> tuple[list[str], int]:
    """Lines on the browser's console, and the width in pixels that the page takes in a frame of `width` pixels.

    In a frame, as a browser's window is never as narrow as a phone's screen.
    """
    script = "<script>parent.postMessage('width ' + document.documentElement.scrollWidth, '*')</script></html>"
    lines, title = in_a_frame(page, folder, width, script)
    return lines, int(title.removeprefix("width "))


def in_a_frame(page: Path, folder: Path, width: int, script: str) -> tuple[list[str], str]:
    """Lines on the console, and what a script at the page's end posts."""
    copy, frame = folder / "copy.html", folder / "frame.html"
    copy.write_text(page.read_text().replace("</html>", script))
    listening = "<script>onmessage = event => { document.title = event.data }</script>"
    frame.write_text(
        f'<!doctype html>{listening}<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px">'
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
    ]
    flags += [
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [str(CHROMIUM), *flags, frame.as_uri()], capture_output=True, text=True, timeout=200, check=True
    )
    found = re.search(r"<title>(.+?)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], found[1]


def drawn(folder: Path) -> dict[str, Figure]:
    """Every figure of the runs there, by name, laid out."""
    collection = Collection.read(folder)
    figures = {}
    for plot in plots(collection.kept, collection.values, published_values()):
        figures[plot.name] = plot.figure()
        figures[plot.name].draw_without_rendering()
        plt.close(figures[plot.name])
    return figures


def test_no_two_colours_of_alignment_are_the_same() -> None:
    keys = {cell.key for cell in published() if cell.dataset == "cifar10" and cell.target == "global"}
    rows = {(each.guess, each.aux): color_of(each) for each in keys}
    assert len(rows) > 14 and len(set(rows.values())) == len(rows)


@pytest.mark.parametrize("blocks", [8, 16])
def test_alignment_is_of_one_net_and_easy_to_read(tmp_path: Path, blocks: int) -> None:
    """Curves of that data set, width and target alone; the legend is on no axes, and each column has its ticks."""
    steps = {step: [0.1] * (blocks - 1) for step in range(0, 400, 50)}
    wanted = [key("local", aux, "weight", blocks=blocks) for aux in ("cnn", "mlp", "linear")]
    wanted += [key("ntk", "mlp", "weight", blocks=blocks)]
    others = [key("local", "mlp", "weight", blocks=blocks, target="intermediate")]
    others += [key("local", "mlp", "weight", blocks=blocks)._replace(dataset="fashion_mnist")]
    others += [key("local", "mlp", "weight", blocks=16, width="w2")] * (blocks == 16)
    for what in wanted + others:
        folder = write_run(tmp_path, what, 50, cosine=steps)
        if what.guess == "ntk":  # as it is: only the net's own loss has a curve
            summary = json.loads((folder / "summary.json").read_text())
            for epoch in summary["epochs"]:
                for phase in ("train", "test"):
                    epoch[phase] = {str(blocks - 1): epoch[phase][str(blocks - 1)]}
            (folder / "summary.json").write_text(json.dumps(summary))
    figures = drawn(tmp_path)
    with_heads = ["local cnn", "local linear", "local mlp"]
    for kind, expected in (("cosine", [*with_heads, "ntk mlp"]), ("heads", with_heads)):
        *panels, free = figures[f"{kind}-{blocks}-blocks-weight"].axes
        (legend,) = [legend for axes in (*panels, free) if (legend := axes.get_legend()) is not None]
        assert [text.get_text() for text in legend.get_texts()] == expected
        box = legend.get_window_extent()
        boxes = [tight for axes in panels if (tight := axes.get_tightbbox()) is not None]
        assert len(panels) == len(boxes) == blocks - 1 and not any(map(box.overlaps, boxes))
        labelled = [any(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks()) for axes in panels]
        assert labelled == [False] * (blocks - 5) + [True] * 4
    lines = figures[f"cosine-{blocks}-blocks-weight"].axes[0].get_lines()
    assert len(lines) == 1 + 4, "zero, and of so few steps no running mean"


def test_loss_by_depth_is_of_cnn_heads(tmp_path: Path) -> None:
    """Heads of end-to-end and random runs are whatever `head` says; others than CNN are not comparable."""
    write_run(tmp_path, key("local", "cnn", "weight"), 50)
    write_run(tmp_path, key("end_to_end", None, None), 80)
    write_run(tmp_path, key("gaussian", None, "weight"), 40, settings={"head.name": "cnn"})
    (legend,) = drawn(tmp_path)["depth-8-blocks"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["local, global", "gaussian, global"]


SORTED = """<script>
const words = () => [...document.querySelectorAll("#cells tbody tr:not([hidden])")].map(row => row.cells[5].textContent + " " + row.cells[8].textContent).join("|");
const button = at => document.querySelectorAll("#cells button")[at].click();
const found = [words()];
button(8); found.push(words());
button(8); found.push(words());
const guess = document.querySelector('select[data-column="5"]');
guess.value = "local"; guess.dispatchEvent(new Event("change")); found.push(words());
guess.value = ""; document.querySelector("#measured").click(); found.push(document.querySelector("#shown").textContent);
parent.postMessage(found.join(";"), "*");
</script></html>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_table_is_sorted_and_filtered(results: Path, tmp_path: Path) -> None:
    assert main([str(results)]) == 0
    _, title = in_a_frame(results / "report" / "index.html", tmp_path, 1280, SORTED)
    _, falling, rising, local, everything = title.split(";")
    by_accuracy = ["end-to-end 80.0", "local 71.0", "local 71.0", "local 65.0", "gaussian 39.0", "ntk 30.0"]
    assert falling.split("|") == by_accuracy and rising.split("|") == by_accuracy[::-1]
    assert local.split("|") == ["local 65.0", "local 71.0", "local 71.0"] and everything == "463 of 463 cells"


def test_panels_are_of_whatever_is_measured(tmp_path: Path) -> None:
    for space in ("weight", "activity"):
        write_run(tmp_path, key("local", "mlp", space, target="intermediate"), 50)
        write_run(tmp_path, key("gaussian", "mlp", space, blocks=16, target="local"), 30)
    write_run(tmp_path, key("local", "mlp", None, blocks=16, target="local"), 60)
    write_run(tmp_path, key("local", "mlp", "weight"), 70)  # alone in its table
    figures = {name: figure.axes for name, figure in drawn(tmp_path).items() if name.startswith("groups")}
    assert set(figures) == {"groups-intermediate", "groups-local"}
    (panel,) = figures["groups-local"]
    assert panel.get_title() == "cifar10, 16 blocks"
    lines: list[Any] = panel.get_lines()
    filled = {
        (round(line.get_ydata()[0]), float(line.get_xdata()[0]))
        for line in lines
        if line.get_markerfacecolor() != "none"
    }
    names = [each.get_text() for each in panel.get_yticklabels()]
    assert names == ["local mlp", "gaussian mlp"], "no row that only another target has"
    assert {(names[at], accuracy) for at, accuracy in filled} == {("local mlp", 60), ("gaussian mlp", 30)}
