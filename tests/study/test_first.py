"""The first look: three runs that can be made, their table by hand, and the command that the quickstart is."""

import json
import re
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.observe.metrics import Score
from fgpipe.observe.page.folder import Epoch, FolderContent
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies.first import PROCESSES, runs, table
from tests.integration.launching import ROOT, launch

NAMES = ("no feedback ", "feedback: scalars ", "end to end: gradients ")


def test_runs_differ_in_what_comes_back_alone() -> None:
    found = [compose_config(each) for each in runs(Path("F"), ["seed=3"])]
    for config in found:
        check_world(config, PROCESSES)
    assert [config.run_dir for config in found] == ["F/local", "F/feedback", "F/backprop"]
    assert [(config.target.depth, config.guess_name) for config in found[:2]] == [(0, "local"), (None, "local")]
    assert found[2].guess_name == "end_to_end"
    assert len({(str(each.model), str(each.data), str(each.optim), each.epochs, each.seed) for each in found}) == 1


def finished(accuracies: dict[int, float], speed: float, back: list[float]) -> FolderContent:
    """A run by its last epoch and its summary."""
    scores = {block: Score(loss=1.0, accuracy=value, samples=100) for block, value in accuracies.items()}
    summary = {"test_accuracy": accuracies[1], "images_per_second": speed, "bytes_back_per_batch": back}
    return FolderContent(Path("F"), {}, [Epoch(1, 1.0, {"test": scores})], summary, {}, None, [])


def test_table() -> None:
    found = {"local": finished({0: 0.2, 1: 0.5}, 1234.5, [0.0, 0.0]), "backprop": finished({1: 0.875}, 99, [1000, 234])}
    assert table(found).splitlines() == [
        "method                  test accuracy   images/s   bytes back per batch   accuracy by depth, %",
        "no feedback                     50.0%       1234                      0                  20 50",
        "end to end: gradients           87.5%         99                  1,234                     88",
    ]


def test_the_quickstart_is_this_study() -> None:
    assert "-m fgpipe.study first " in (ROOT / "launch" / "quickstart").read_text()


@pytest.mark.slow
def test_first_look(tmp_path: Path) -> None:
    """Real processes, with little of everything: three rows and the page, whose path is the last line."""
    small = ["epochs=1", "data.train_samples=128", "data.test_samples=32", "observe.tensorboard=false", "threads=1"]
    done = launch(1, "-m", "fgpipe.study", "first", str(tmp_path / "first"), *small)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    local, feedback, backprop = (next(line for line in lines if line.startswith(each)) for each in NAMES)
    assert lines[-1] == f"see {tmp_path / 'first' / 'comparison.html'}"
    for line, name in ((local, "local"), (feedback, "feedback"), (backprop, "backprop")):
        summary = json.loads((tmp_path / "first" / name / "summary.json").read_text())
        assert re.split(r" {2,}", line)[1] == f"{summary['test_accuracy']:.1%}"
    assert re.split(r" {2,}", local)[3] == "0"
    gradients = int(re.split(r" {2,}", backprop)[3].replace(",", ""))
    assert gradients == 4 * 64 * (8 * 256 + 16 * 64 + 32 * 16), "of float32, as large as the three activations"
    assert 0 < int(re.split(r" {2,}", feedback)[3].replace(",", "")) < 1000
    page = (tmp_path / "first" / "comparison.html").read_text()
    assert all(
        f">{name}<" in page and f"href='{name}/report.html'" in page for name in ("local", "feedback", "backprop")
    )
    assert "One net, trained in three ways" in page and "guessing is right in 10 %" in page


@pytest.mark.parametrize("argument, expected", [
    ("epochs=0", "fgpipe: epochs=0: allowed: "), ("model.blocks=9", "fgpipe: model.blocks=9: allowed: "),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["first", str(tmp_path / "folder"), argument]) == 2
    assert capsys.readouterr().err.startswith(expected)
