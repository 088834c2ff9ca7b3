"""The page of a run against numbers that were written by hand, read off its own axes; and of runs that are not whole."""

import json
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import fgpipe.show
from fgpipe.config import compose_config
from fgpipe.observe.page import run as page_of_run
from fgpipe.observe.page.scale import Scale, duration, size, spread
from fgpipe.observe.page.settings import method
from fgpipe.observe.timeline import Event
from fgpipe.observe.trace import write as write_trace
from fgpipe.saving.claim import claimed
from tests.observe.pages import ACCURACIES, CONFIG, LOSSES, SECONDS, SUMMARY, Page, lines, write_run

HOSTILE = "</title></style><script src=//evil.example/x.js>alert('1')</script><img src=x onerror=alert(1)>"


def show(*arguments: object) -> Page:
    """What the command writes for these, on RUN/report.html or on the file that is named last."""
    assert fgpipe.show.main(list(map(str, arguments))) == 0
    *_, last = arguments
    return Page(
        Path(str(last).removeprefix("out=")) if str(last).startswith("out=") else Path(str(last)) / "report.html"
    )


def read_off(page: Page, figure: str, *, log: bool = False) -> list[tuple[float, float]]:
    """Values of a figure's dots, by its axes' ticks, in order."""
    across, up = page.ticks(figure, "middle"), page.ticks(figure, "end")
    (x_low, (left, _)), (x_high, (right, _)) = min(across.items()), max(across.items())
    (y_low, (_, low)), (y_high, (_, high)) = min(up.items()), max(up.items())
    if log:
        y_low, y_high = math.log10(y_low), math.log10(y_high)
    found = []
    for x, y in page.dots(figure):
        value = y_low + (y_high - y_low) * (y + 4 - low) / (high - low)  # text stands 4 pixels below its line
        found.append((round(x_low + (x_high - x_low) * (x - left) / (right - left), 1), 10**value if log else value))
    return sorted(found)


def linked(page: Page) -> list[str]:
    """Where a page's links lead."""
    return [attributes["href"] for tag, attributes, _ in page.elements if tag == "a"]


def near(wanted: Iterable[tuple[float, float]]) -> list[Any]:
    """The same in order, as far as pixels tell."""
    return [pytest.approx(point, rel=0.01, abs=0.1) for point in sorted(wanted)]


def test_curves(tmp_path: Path) -> None:
    """Every dot stands where the axis has its number."""
    page = show(write_run(tmp_path / "run"))
    for phase, name in (("test", "Test"), ("train", "Training")):
        log = phase == "test"  # from 0.25 to 40
        accuracies = [(k + 1, 100 * share) for k in (0, 1) for share in ACCURACIES[phase][k]]
        losses = [(k + 1, loss) for k in (0, 1) for loss in LOSSES[phase][k]]
        assert read_off(page, f"{name} accuracy, %") == near(accuracies)
        assert read_off(page, f"{name} loss, nats", log=log) == near(losses)
    last = [(j, 100 * ACCURACIES[phase][1][j]) for phase in ("test", "train") for j in (0, 1)]
    assert read_off(page, "Accuracy by depth, %") == near(last)


def test_figures(tmp_path: Path) -> None:
    page = show(write_run(tmp_path / "run"))
    assert "local guesses, ? target, weight space, scope by default, 2 blocks on digits." in page.text
    for said in ("Finished : 2 of 2 epochs", "93.8 % test accuracy", "4 s training time", "123 images per second"):
        assert said in page.text
    assert "2 processes" in page.text and "100 B back per training batch" in page.text
    assert page.titles("Staleness, updates") == ["block 0: 0 to 1, mean 0.75", "block 1: 0 to 0, mean 0.00"]
    assert page.titles("Bytes up, per link") == ["0 → 1, activations: 3 MB", "0 → 1, tangents: 1 MB"]
    widths = [float(a["width"]) for tag, a, title in page.elements if tag == "rect" and title == "Bytes up, per link"]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.2)
    assert page.titles("Bytes back, per training batch") == ["to 0, feedback: 100 B", "to 1, feedback: 0 B"]
    assert ["1", "0.5", "0.25", "87.5 %", "93.8 %"] in page.rows()


def test_weights_come_back_too(tmp_path: Path) -> None:
    """Those of twins, beside numbers; where nothing else comes back, alone."""
    page = show(write_run(tmp_path / "run", summary=SUMMARY | {"weights_back_per_batch": [4000.0, 0.0]}))
    assert "4.1 kB back per training batch" in page.text
    assert page.titles("Bytes back, per training batch")[:2] == ["to 0, feedback: 100 B", "to 0, weights: 4 kB"]
    alone = {"bytes_back_per_batch": [0.0, 0.0], "weights_back_per_batch": [4000.0, 0.0]}
    assert "to 0, weights: 4 kB" in show(write_run(tmp_path / "own", summary=SUMMARY | alone)).titles(
        "Bytes back, per training batch"
    )


def test_configuration(tmp_path: Path) -> None:
    """Keys with another value than `configs/train.yaml` has, and no others."""
    run = write_run(tmp_path / "run")
    config = compose_config([f"run_dir={run}", "epochs=2", "optim.lr=0.25", "window=[2,1,1,1,1,1,1,1]", "trace=true"])
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    rows = [row for row in show(run).rows() if len(row) == 3]
    assert rows == [
        ["epochs", "2", "8"], ["optim.lr", "0.25", "0.05"], ["trace", "true", "false"],
        ["window", "[2, 1, 1, 1, 1, 1, 1, 1]", "auto"],
    ]  # fmt: skip


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """It is asked who holds the folder; nothing of the run is touched."""
    run = tmp_path / "run"
    with claimed(compose_config([f"run_dir={run}"])):
        write_run(run, CONFIG | {"epochs": 9}, summary=None)
        assert re.search(r"Running \(pid \d+ on host .*\): 2 of 9 epochs\.", show(run).text)
    assert "Stopped before its end, without a verdict : 2 of 9 epochs." in show(run).text


def test_a_run_that_ended_badly(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", summary=None)
    verdict: dict[str, Any] = {
        "cause": "[block 1] <loss> is not finite", "rank": 1, "blocks": [1], "reported_by": 1, "last_batch": 17,
        "last_checkpoint": None, "resume": "cd /x && torchrun a='b c'", "note": "set run_dir",
    }  # fmt: skip
    (run / "verdict.json").write_text(json.dumps(verdict))
    text = show(run).text
    for said in ("Ended badly", verdict["cause"], "rank 1, block 1", "last batch begun 17", "set run_dir"):
        assert said in text
    assert verdict["resume"] in text and "last checkpoint none" in text


def test_without_metrics(tmp_path: Path) -> None:
    """Before the first epoch is done."""
    run = write_run(tmp_path / "run", summary=None)
    for leave in (lambda file: file.write_text(""), Path.unlink):
        leave(run / "metrics.jsonl")
        page = show(run)
        assert "0 of 2 epochs" in page.text and "test accuracy" not in page.text
        assert not [tag for tag, *_ in page.elements if tag in ("svg", "figure")]


@pytest.mark.parametrize(
    "torn", ['{"epoch": 2, "train_sec', "{}\n", "7\n", "\x00\x00\n", '{"epoch": 2, "train_seconds": 1}']
)
def test_a_torn_last_line(torn: str, tmp_path: Path) -> None:
    """The epochs before it are shown."""
    run = write_run(tmp_path / "run", summary=None)
    whole = show(run).text
    with (run / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert show(run).text == whole and "2 of 2 epochs" in whole


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A page says so, and shows the others."""
    run = write_run(tmp_path / "run")
    for name in ("verdict.json", "trace.json"):
        (run / name).write_text('{"traceEv')
    text = show(run).text
    assert "Not to be read: verdict.json." in text and "trace.json cannot be read" in text and "93.8 %" in text


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """They have no place on an axis."""
    run = write_run(tmp_path / "run")
    broken = lines()
    broken[1]["test"]["0"]["loss"], broken[0]["test"]["1"]["loss"] = math.nan, math.inf
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in broken))
    page = show(run)
    assert len(page.dots("Test loss, nats")) == 2
    marks = [value for tag, a, _ in page.elements if tag in ("circle", "polyline") for value in a.values()]
    assert not [value for value in marks if "nan" in value or "inf" in value]


def test_timeline(tmp_path: Path) -> None:
    """Slices are as long as the axis says, four batches in mid-run; the others that overlap them are pale."""
    run = write_run(tmp_path / "run")
    ms = 1_000_000
    slices = [Event("forward", 0, b, -1, 10 * b * ms, (10 * b + 4) * ms) for b in range(8)]
    slices += [Event("push", 1, b, -1, (10 * b + 5) * ms, (10 * b + 8) * ms) for b in range(8)]
    slices.append(Event("update", 1, 1, -1, 22 * ms, 24 * ms))
    write_trace(run / "trace.json", {0: slices}, {0: "blocks 0 and 1"}, {})
    page = show(run)
    scale = page.ticks("Timeline", "middle")
    (low, (left, _)), (high, (right, _)) = min(scale.items()), max(scale.items())
    pixels = (right - left) / (high - low)
    rects = [a for tag, a, title in page.elements if tag == "rect" and title == "Timeline"]
    wanted = {**{f"forward, block 0, batch {b}: 4 ms": 4.0 for b in (2, 3, 4, 5)}, **{f"push, block 1, batch {b}: 3 ms": 3.0 for b in (2, 3, 4, 5)}}  # fmt: skip
    wanted["update, block 1, batch 1: 2 ms"] = 2.0
    said = dict(zip(page.titles("Timeline"), rects, strict=True))
    assert {text: round(float(a["width"]) / pixels, 1) for text, a in said.items()} == wanted
    assert [text for text, a in said.items() if "opacity" in a] == ["update, block 1, batch 1: 2 ms"]
    assert "Batches 2 to 5" in page.text


def test_values_are_text(tmp_path: Path) -> None:
    """Whatever a configuration, a verdict or a folder's name holds, a page runs and loads nothing."""
    config = CONFIG | {"guess": {"name": HOSTILE}, "placement": HOSTILE, HOSTILE: HOSTILE, "epochs": HOSTILE}
    folder = tmp_path / "<b onclick=alert(1)>&amp;"
    write_run(folder, config, summary=None)
    (folder / "verdict.json").write_text(
        json.dumps(dict.fromkeys(("cause", "rank", "last_batch", "resume", "note"), HOSTILE))
    )
    other = write_run(tmp_path / "other")
    pages = [show(folder), show(folder, other, f"out={tmp_path / 'both.html'}")]
    for page in pages:
        assert HOSTILE in page.text and "<b onclick=alert(1)>&amp;" in page.text
        tags = {tag for tag, *_ in page.elements}
        assert not tags & {"script", "img", "iframe", "object", "base"}, tags
        assert all(re.fullmatch(r"[\w./%~-]*report\.html", each) for each in linked(page)), linked(page)
        assert not [name for _, a, _ in page.elements for name in a if name.startswith("on")]


def test_no_network(tmp_path: Path) -> None:
    """No address is in the file, and the page's own policy forbids all but its styles."""
    run = write_run(tmp_path / "run")
    show(run)
    text = (run / "report.html").read_text()
    assert not re.search(r"https?:|//|@import|url\(|<script", text)
    links = [a for tag, a, _ in Page(run / "report.html").elements if tag == "link" or "src" in a or "href" in a]
    assert [a["href"] for a in links] == ["data:,"]
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One colour for each, the same in all figures; keys in which they differ; one that has nothing yet."""
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", CONFIG | {"seed": 5}), tmp_path / "three"]
    write_run(runs[2], summary=None)
    (runs[2] / "metrics.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert fgpipe.show.main(["one", "two", "three"]) == 0
    assert capsys.readouterr().out == "see comparison.html\n"
    page = Page(tmp_path / "comparison.html")
    assert ["one", "93.8 %", "123", "4 s", "100 B", "0.375", "Finished", "2 of 2", "one"] in page.rows()
    assert [
        "three",
        "–",
        "–",
        "–",
        "–",
        "–",
        "Stopped before its end, without a verdict",
        "0 of 2",
        "three",
    ] in page.rows()
    assert ["seed", "–", "5", "–"] in page.rows()
    assert not linked(page), "no run has a page yet"
    for run in runs[:2]:
        show(run)
    (tmp_path / "pages").mkdir()
    assert linked(show(*runs, f"out={tmp_path / 'pages' / 'all.html'}")) == ["../one/report.html", "../two/report.html"]
    nets = [share[1] for share in ACCURACIES["test"]]
    by_epoch = [(k + 1, 100 * nets[k]) for k in (0, 1)]
    by_time = [(sum(SECONDS[: k + 1]), 100 * nets[k]) for k in (0, 1)]
    by_depth = [(j, 100 * ACCURACIES["test"][1][j]) for j in (0, 1)]
    for figure, wanted in (("by epoch", by_epoch), ("by time", by_time), ("by depth", by_depth)):
        assert read_off(page, f"Test accuracy {figure}, %") == near([*wanted, *wanted]), "of both runs"
    marks = [(title, a["style"]) for tag, a, title in page.elements if tag in ("polyline", "rect")]
    assert len(set(marks)) == 2 * len({title for title, _ in marks}), "two colours in each figure"
    assert len({style.partition(":")[2] for _, style in marks}) == 2, "and the same ones in all"


def test_nets_of_ones_own_differ_by_their_parameters(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(n), summary={**SUMMARY, "parameters": [n, 7]}) for n in (40, 48)]
    page = show(*runs, f"out={tmp_path / 'both.html'}")
    assert ["parameters", "[40, 7]", "[48, 7]"] in page.rows()
    assert "55 parameters of blocks" in show(runs[1]).text


def test_a_folder_of_runs(tmp_path: Path) -> None:
    """Stands for the runs in it, by name; one of one run for that run."""
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "logs").mkdir()
    rows = show(tmp_path / "runs", f"out={tmp_path / 'page.html'}").rows()
    assert [row[0] for row in rows if row[-1].startswith(str(tmp_path))] == ["a", "b"]
    write_run(tmp_path / "single" / "run")
    assert fgpipe.show.main([str(tmp_path / "single")]) == 0 and (tmp_path / "single/run/report.html").exists()


def test_only_what_was_chosen(tmp_path: Path) -> None:
    """Keys that follow from another target or head are not listed; those that were set beside it are."""
    chosen = asdict(compose_config(["target=local", "head=strided", "optim.lr=0.1"]))
    rows = show(write_run(tmp_path / "run", chosen)).rows()
    wanted = {"target.name": ["local", "global"], "head.name": ["strided", "mlp"], "optim.lr": ["0.1", "0.05"]}
    assert {row[0]: row[1:] for row in rows if "." in row[0]} == wanted


def test_names_beside_lines(tmp_path: Path) -> None:
    """Folders of one name, or of long ones, are told apart by letters."""
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    rows = show(*runs, f"out={tmp_path / 'page.html'}").rows()
    assert [row[0] for row in rows if row[-1] in map(str, runs)] == ["A", "B"]


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, and nothing is written; one of several is as bad."""
    run = write_run(tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file"):
        for arguments in ([wrong], [run, wrong]):
            assert fgpipe.show.main(list(map(str, arguments))) == 2
            line = f"fgpipe: RUN={wrong}: allowed: the folder of a run, which has a config.yaml in it\n"
            assert capsys.readouterr().err == line
    assert fgpipe.show.main([]) == 2 and capsys.readouterr().err.startswith("fgpipe: usage: ")
    assert fgpipe.show.main([str(run), f"out={tmp_path / 'nowhere' / 'page.html'}"]) == 2
    assert "allowed: a file in a folder that exists" in capsys.readouterr().err
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "run"]
        and not (run / "report.html").exists()
    )


def test_a_summary_alone(tmp_path: Path) -> None:
    """What is kept of a study's runs: the configuration and the epochs are in it too."""
    run = write_run(tmp_path / "run")
    whole = show(run).text
    kept = tmp_path / "kept" / "run"
    kept.mkdir(parents=True)
    shutil.copy(run / "summary.json", kept)
    assert show(kept).text.partition("folder ")[0] == whole.partition("folder ")[0]


SMALL = [
    "epochs=1", "data.train_samples=32", "batch_size=16", "data.test_samples=16", "model.width=0.07", "device=cpu",
    "threads=1", "scope=block", "observe.tensorboard=false",
]  # fmt: skip


def test_a_finished_run_has_its_page(tmp_path: Path) -> None:
    """Its numbers are those of the summary."""
    run = tmp_path / "run"
    summary = fgpipe.run(compose_config([f"run_dir={run}", *SMALL]))
    page = Page(run / "report.html")
    assert "Finished : 1 of 1 epochs" in page.text
    assert f"{100 * summary['test_accuracy']:.1f} % test accuracy" in page.text
    accuracies = [json.loads((run / "metrics.jsonl").read_text())[phase] for phase in ("test", "train")]
    wanted = [(int(j), 100 * score["accuracy"]) for of_phase in accuracies for j, score in of_phase.items()]
    assert read_off(page, "Accuracy by depth, %") == near(wanted)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("whatever")])
def test_no_page_is_no_failure(error: Exception, tmp_path: Path, monkeypatch, capsys) -> None:
    """A warning, and the run ends well."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(page_of_run, "write", fail)
    run = tmp_path / "run"
    assert fgpipe.run(compose_config([f"run_dir={run}", *SMALL]))["test_accuracy"] >= 0
    why = (
        "cannot be written: No space left on device"
        if isinstance(error, OSError)
        else "is not made: KeyError: 'whatever'"
    )
    assert f"fgpipe: warning: {run / 'report.html'} {why}\n" in capsys.readouterr().err
    assert (run / "summary.json").exists() and not (run / "verdict.json").exists()


def test_ticks() -> None:
    """Round numbers, against literal tables."""
    assert Scale(0.0, 1.0, 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Scale(1, 100, 0, 1).ticks(most=8, whole=True) == [20, 40, 60, 80, 100]
    assert Scale(1, 3, 0, 1).ticks(whole=True) == [1, 2, 3]
    assert Scale(0.2, 60, 0, 1, log=True).ticks() == pytest.approx([0.3, 1, 3, 10, 30])
    assert Scale(0.5, 9, 0, 1, log=True).ticks() == pytest.approx([0.5, 1, 2, 5])
    assert Scale(0.02, 5e6, 0, 1, log=True).ticks(most=5) == pytest.approx([1, 100, 1e4, 1e6])


def test_numbers_as_text() -> None:
    assert [size(count) for count in (0, 999, 1000, 999_600, 5_770_000_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "5.77 GB",
    ]
    assert [duration(s) for s in (0.25, 59.4, 61, 3725)] == ["0.25 s", "59.4 s", "1:01 min", "1 h 2 min"]
    assert list(spread([5, 6, 30], 12, 0, 40)) == [5, 17, 30]
    assert list(spread([30, 31, 32], 12, 0, 40)) == [16, 28, 40]


def test_modules_are_counted_too() -> None:
    assert method({"model": {"blocks": 8, "modules": [4, 4]}, "data": {"name": "digits"}}).endswith(
        "2 modules of 8 blocks on digits"
    )
