"""The report on made-up runs whose correlation, differences and intervals are worked out by hand."""

import csv
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fgpipe.study.claims import Ranks, Verdict, alignment_verdicts, verdicts
from fgpipe.study.measured import Collection, published_values
from fgpipe.study.paper import Key, published
from fgpipe.study.plots import smooth
from fgpipe.study.report import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def key(
    guess: str, aux: str | None, space: str | None, blocks: int = 8, target: str = "global", width: str = "1"
) -> Key:
    return Key("cifar10", blocks, width, target, guess, aux, space)


def write_run(
    out: Path,
    what: Key,
    accuracy: float,
    seed: int = 0,
    epochs: int = 2,
    cosine: Mapping[int, list[float]] | None = None,
) -> Path:
    """A run folder as `python -m fgpipe.grid` leaves it; accuracy in percent. All heads have curves."""
    folder = out / f"{what.words}-s{seed}-{abs(hash((what, seed, epochs))) % 16**8:08x}"
    folder.mkdir(parents=True)
    scores = {
        str(block): {"loss": 2.0 - block / 10, "accuracy": accuracy / 100, "samples": 10}
        for block in range(what.blocks)
    }
    config = {
        "seed": seed, "epochs": epochs, "batch_size": 64, "tangents": "oracle",
        "data": {"train_samples": 6400, "test_samples": None},
        "optim": {"schedule": "one_cycle", "lr": 0.05}, "model": {"width": 0.25},
    }  # fmt: skip
    lines = [{"epoch": epoch, "train_seconds": 1.0, "train": scores, "test": scores} for epoch in range(epochs)]
    summary = {
        "config": config,
        "commit": "abc",
        "epochs": lines,
        "test_accuracy": accuracy / 100,
        "train_seconds": 60.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if cosine is not None:
        text = [json.dumps({"step": step, "cosine": dict(enumerate(values))}) for step, values in cosine.items()]
        (folder / "cosine.jsonl").write_text("\n".join(text) + "\n")
    return folder


def verdict_on(claim: str, values: Mapping[Key, Mapping[int, float]]) -> Verdict:
    return next(verdict for verdict in verdicts(values) if verdict.claim.startswith(claim))


def test_interval_and_words_by_hand() -> None:
    """Differences 1, 2, 3, 6: mean 3, deviation sqrt(14/3); Student's t, 3 degrees of freedom, 97.5 %: 3.1824."""
    verdict = Verdict("", "points", [1.0, 2.0, 3.0, 6.0])
    assert verdict.mean == 3 and verdict.half_width == pytest.approx(3.18245 * math.sqrt(14 / 3) / 2, rel=1e-5)
    assert verdict.word == "too little data", "3 - 3.44 is below zero"
    assert Verdict("", "", [2.0, 2.5, 3.0, 2.5]).word == "supported"
    assert Verdict("", "", [-2.0, -2.5, -3.0, -2.5]).word == "contradicted"
    assert Verdict("", "", [50.0, 50.0]).word == "too little data", "two pairs are no interval"
    assert Verdict("", "", []).numbers == "no pairs"


def test_pairs_have_the_same_seed_and_differ_in_one_thing() -> None:
    values = {
        key("local", "mlp", "weight"): {0: 80.0, 1: 82.0},
        key("local", "mlp", "activity"): {0: 70.0, 2: 1.0},
        key("local", "cnn", "activity"): {0: 10.0},
        key("local", "mlp", "weight", blocks=16): {0: 75.0, 1: 76.0},
        key("gaussian", None, "weight"): {0: 50.0, 1: 49.0},
        key("rademacher", None, "activity"): {0: 40.0},
        key("local", "mlp", None, target="local"): {0: 81.0, 1: 84.0},
        key("local", "mlp", "weight", target="intermediate"): {1: 81.5},
        key("ntk", "mlp", "weight"): {0: 60.0},
    }
    expected = {
        "Local guesses beat random": [30.0, 33.0, 30.0, -30.0],
        "Weight space beats": [10.0],
        "8 blocks beat 16": [5.0, 6.0],
        "Global targets beat intermediate": [0.5],
        "Global targets beat local": [-1.0, -2.0, -11.0],
        "Width helps": [],
    }
    for claim, differences in expected.items():
        assert sorted(verdict_on(claim, values).differences) == sorted(differences), claim


def test_widths() -> None:
    values = {
        key("local", "cnn", "weight", blocks=16, width="w3"): {0: 90.0},
        key("local", "cnn", "weight", blocks=16): {0: 5.0},
        key("local", "cnn", "weight", blocks=16, width="w1"): {0: 80.0},
        key("gaussian", None, "weight", blocks=16, width="w1"): {0: 50.0},
        key("gaussian", None, "weight", blocks=16): {0: 45.0},
        key("rademacher", None, "weight", blocks=16): {0: 45.0},
    }
    assert verdict_on("Width helps local", values).differences == [10.0]
    assert verdict_on("Width hurts random", values).differences == [5.0]


def test_spearman_by_hand_and_disagreements() -> None:
    """Five cells in their published order have measured ranks 1 2 3 5 4: 1 - 6 (1 + 1) / (5 (25 - 1)) = 0.9."""
    keys = [key("local", aux, space) for aux, space in (("cnn", "weight"), ("mlp", "weight"), ("cnn", "activity"))]
    keys += [key("ntk", "mlp", "weight"), key("ntk", "cnn", "activity")]  # published 92.0 91.6 90.4 63.1 55.2
    values = {what: {0: number} for what, number in zip(keys, [70.0, 60.0, 50.0, 30.0, 40.0], strict=True)}
    values[key("gaussian", None, "weight")] = {0: 99.0}  # not published
    values[key("local", "mlp", "weight", target="intermediate")] = {0: 1.0}  # not in tables 2 and 3
    ranks = Ranks.of(values, published_values())
    assert set(ranks.keys) == set(keys)
    assert ranks.spearman == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert set(ranks.disagreements[:2]) == {(keys[3], 5.0, 4.0), (keys[4], 4.0, 5.0)}
    assert {(a, b) for _, a, b in ranks.disagreements[2:]} == {(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)}
    assert Ranks.of({keys[0]: {0: 1.0}}, published_values()).spearman is None


def test_verdicts_on_the_published_numbers() -> None:
    """The paper's own tables, by the same test: what it says in words holds, but for the target (see docs/results)."""
    words = {verdict.claim.split(" (")[0]: verdict.word for verdict in verdicts(published_values())}
    assert words["Local guesses beat random ones"] == "supported"
    assert words["Weight space beats activity space for local guesses"] == "supported"
    assert words["8 blocks beat 16"] == "supported"
    assert words["Width helps local guesses"] == "supported"
    assert words["Global targets beat local ones for local guesses"] == "contradicted"


def test_alignment(tmp_path: Path) -> None:
    for seed, rise in enumerate((0.1, 0.2, 0.3)):
        steps = {0: [0.05, 0.05, 0.05, 0.05 + rise, 0.05 + rise, 0.05 + rise, 0.05 + rise], 10: [0.05] * 7}
        write_run(tmp_path, key("local", "mlp", "weight"), 50, seed=seed, cosine=steps)
    rises, positive = alignment_verdicts(Collection.read(tmp_path).kept)
    assert sorted(rises.differences) == pytest.approx([0.05, 0.1, 0.15])
    assert positive.differences == pytest.approx([0.05] * 3) and positive.word == "supported"


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
    assert {each.folder for each, _ in collection.others} == {other, again, unwatched}
    assert watched in {each.folder for each in collection.kept}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three seeds of some cells, one of others."""
    out = tmp_path / "results"
    for seed in range(3):
        write_run(out, key("local", "mlp", "weight"), 70 + seed, seed=seed, cosine={0: [0.1] * 7, 5: [0.2] * 7})
        write_run(out, key("gaussian", None, "weight"), 40 - seed, seed=seed)
    write_run(out, key("local", "mlp", "activity"), 65)
    write_run(out, key("end_to_end", None, None), 80)
    write_run(out, key("ntk", "cnn", "activity", blocks=16), 30)
    write_run(out, key("local", "mlp", None, target="local"), 71)
    return out


class Page(HTMLParser):
    """Ids, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids += [values["id"] or ""] if "id" in values else []
        for name in ("src", "href", "xlink:href", "data"):
            if values.get(name):
                self.addresses.append(values[name] or "")


def test_the_page_has_every_cell_and_needs_no_network(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    printed = capsys.readouterr().out
    assert "Spearman correlation, CIFAR-10, tables 2 and 3: 1.000 over 4 cells" in printed
    assert "supported: Local guesses beat random ones (global target): +32 [" in printed
    html = (results / "report" / "index.html").read_text()
    page = Page()
    page.feed(html)
    assert len(page.ids) > 20 and not [name for name, count in Counter(page.ids).items() if count > 1]
    assert all(address.startswith(("#", "data:")) for address in page.addresses) and "@import" not in html
    assert html.count(">missing<") == 462 - 5, "the Gaussian cell is not a published one"
    assert "71.0 ± 1.0" in html and "seed 0,1,2 · lr 0.05" in html
    for name in (
        "scatter",
        "heat-8-blocks",
        "heat-16-blocks",
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
    measuring = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></html>"
    copy, frame = folder / "copy.html", folder / "frame.html"
    copy.write_text(page.read_text().replace("</html>", measuring))
    listening = "<script>onmessage = event => { document.title = 'width ' + event.data }</script>"
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
    found = re.search(r"<title>width (\d+)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], int(found[1])
