"""The study of sparse feedback: which runs it makes, and its table by hand."""

from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.accuracies.sparse import contestants, table, ways


def test_ways_can_be_run() -> None:
    found = ways([1, 8])
    assert list(found) == ["every 1", "every 8", "local target", "end to end"]
    every = [compose_config([*SETTING, *keys]).feedback.every for keys in found.values()]
    assert every == [1, 8, 1, 1]
    for each in contestants([1, 8]):
        check_world(compose_config(["batch_size=64", *each.overrides]), 2)


def test_table() -> None:
    """Differences are paired by seed, and those of seeds that diverged are left out."""
    lines = table(
        {"every 1": [0.50, 0.54, 0.52], "every 8": [0.51, None, 0.50], "local target": [0.4] * 3}
    ).splitlines()
    assert lines[2] == "| every 1 | 52.0% | 50.0% to 54.0% |  |"
    assert lines[3] == "| every 8 | 50.5% and 1 diverged | 50.0% to 51.0% | -0.5 (-2.0 to +1.0) |"
    assert lines[4] == "| local target | 40.0% | 40.0% to 40.0% | -12.0 (-14.0 to -10.0) |"


@pytest.mark.parametrize("argument, expected", [
    ("every=[0]", "fgpipe: every=[0]: allowed: a list of whole"), ("rounds=-1", "fgpipe: rounds=-1: allowed: a whole"),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparse", str(tmp_path / "folder"), argument]) == 2
    assert capsys.readouterr().err.startswith(expected)
