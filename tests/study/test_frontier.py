"""The study of feedback that pays: which runs it makes, and its table by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies.frontier import (
    GRADIENTS,
    METHODS,
    NOTHING,
    ORACLE,
    FrontierOptions,
    FrontierRow,
    Speed,
    contestants,
    leading,
    speed_table,
    table,
)
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.contests.contest import Spread


@pytest.mark.parametrize("modules", [2, 4, 8, 16])
def test_methods_can_be_run(modules: int) -> None:
    options = FrontierOptions(modules=modules)
    half = modules // 2
    for name, method in METHODS.items():
        config = compose_config([*SETTING, *options.keys(name)])
        assert config.blocks == modules
        if method.back not in (NOTHING, ORACLE, GRADIENTS) and name != "mixture lock-step":
            assert config.window == [2] * half + [1] * half, "as one process runs a batch while the other runs the next"
    timed = contestants(options)
    assert [each.name for each in timed[:2]] == ["1F1B", "local"] and len(timed) == len(METHODS) - 1
    for each in timed:
        check_world(compose_config(["batch_size=64", *each.overrides]), 2)


def test_table() -> None:
    """Differences are paired by seed."""
    rows = [
        FrontierRow("end to end", [0.60, 0.64]),
        FrontierRow("local", [0.50, 0.50]),
        FrontierRow("mixture", [0.55, None], rate=0.05),
    ]
    first, second, third = table(rows[:2] + [replace(rows[2], rate=None)]).splitlines()[2:5]
    assert first == "| gradients | end to end | 62.0% | 60.0% to 64.0% | +12.0 (+10.0 to +14.0) |  |"
    assert second == "| nothing | local | 50.0% | 50.0% to 50.0% |  | -12.0 (-14.0 to -10.0) |"
    assert third == (
        "| C floats per sample | mixture | 55.0% and 1 diverged | 55.0% to 55.0% | +5.0 (+5.0 to +5.0) "
        "| -5.0 (-5.0 to -5.0) |"
    )
    rated = table(rows).splitlines()
    assert rated[0].endswith("| learning rate |") and rated[3].endswith("|  |") and rated[4].endswith("| 0.05 |")


def test_speed_table() -> None:
    """Methods that were not timed are left out; weights are told apart."""
    local = Speed(Spread(1.25, 1.2, 1.3), Spread(1.0, 1.0, 1.0), 0, 0.0, 0.0, 0.0)
    twins = Speed(Spread(0.9, 0.8, 1.0), None, 2.0, 5120.4, 1234.6, 7.0)
    rows = [FrontierRow("end to end", [0.6]), FrontierRow("local", [0.5], speed=local)]
    assert speed_table([*rows, FrontierRow("twins", [0.5], speed=twins)]).splitlines()[2:] == [
        "| local | 1.25 | 1.20 to 1.30 | 1.00 | 1.00 to 1.00 | 0 | 0 | 0.0 |",
        "| twins | 0.90 | 0.80 to 1.00 |  |  | 2 | 5,120 and 1,235 of weights | 7.0 |",
    ]


def test_few_names_in_the_figure() -> None:
    """A diverged method is the best of its class if nothing else is."""
    values = {
        "local": 0.4,
        "two heads": 0.5,
        "own private twins": 0.6,
        "twins": 0.7,
        "mixed twins": 0.65,
        "mixture": None,
    }
    rows = [FrontierRow(name, [value]) for name, value in values.items()]
    assert leading(rows) == {"local", "own private twins", "twins", "mixture"}


@pytest.mark.parametrize("argument, expected", [
    ("methods=[]", "fgpipe: methods=[]: allowed: a list of end to end,"),
    ("methods=[local,local]", "fgpipe: methods=['local', 'local']: allowed: a list of end to end,"),
    ("methods=[magic]", "fgpipe: methods=['magic']: allowed: a list of end to end,"),
    ("modules=3", "fgpipe: modules=3: allowed: 2 | 4 | 8 | 16"),
    ("rates=[0]", "fgpipe: rates=[0.0]: allowed: a list of numbers above 0"),
    ("rounds=-1", "fgpipe: rounds=-1: allowed: a whole"),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frontier", str(tmp_path / "folder"), argument]) == 2
    assert capsys.readouterr().err.startswith(expected)
