"""The study of modules: which runs it makes, its table by hand, and its picture."""

from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies.modules import (
    COUNTS,
    SETTING,
    ModulesWay,
    contestants,
    plot,
    speed_tables,
    table,
    ways,
)
from fgpipe.study.contests.contest import Contest, ContestOptions


def test_ways_can_be_run() -> None:
    """Every count with both targets, end to end of either net first; modules of one size, which make up the net."""
    found = ways(COUNTS)
    assert len({way.name for way in found}) == len(found) == 1 + 2 * 3 + 1 + 2
    for way in found:
        model = compose_config([*SETTING, *way.overrides]).model
        assert sum(model.modules) == model.blocks == way.net and len(model.modules) == way.modules
    assert [(way.net, way.modules) for way in found if way.method == "end to end"] == [(8, 1), (16, 1)]


def test_contestants_can_be_run() -> None:
    """In as many processes as there are modules, 1F1B first; nobody else of the net of 16 layers."""
    found = contestants(ways(COUNTS))
    assert {count: [each.name for each in of_count] for count, of_count in found.items()} == {
        n: [f"1F1B {n}", f"local target {n}", f"global target {n}"] for n in (2, 4, 8)
    }
    for count, of_count in found.items():
        assert {each.processes for each in of_count} == {count}
        for each in of_count:
            check_world(compose_config(["batch_size=64", *each.overrides, "partition=counted"]), count)


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    """Real runs of two modules: images per second over 1F1B's, and what comes back, nothing for a local target."""
    wanted = contestants(ways([2]))
    options = ContestOptions(split=[4, 4], repeats=1, batches=2)
    contest = Contest(tmp_path / "speed", options, ["model.width=0.0625", "batch_size=8"], wanted[2])
    contest.run()
    piped, local, through = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in speed_tables(contest, wanted).splitlines()[2:]
    ]
    assert piped[0] == "1F1B" and piped[3] == "1.00" and int(piped[-1].replace(",", "")) > 1000
    assert local[0] == "local target" and local[-1] == "0" and float(local[1]) > 0
    assert through[0] == "global target" and 0 < int(through[-1]) < 100


def results() -> dict[ModulesWay, list[float | None]]:
    return {
        ModulesWay(8, 1, "end to end"): [0.60, 0.64],
        ModulesWay(8, 2, "local target"): [0.61, 0.63],
        ModulesWay(8, 2, "global target"): [0.50, None],
    }


def test_table() -> None:
    """Differences are paired by seed, and those of seeds that diverged are left out."""
    lines = table(results()).splitlines()
    assert lines[2] == "| 8 residual blocks | 1 | end to end | 62.0% | 60.0% to 64.0% |  |"
    assert lines[3] == "| 8 residual blocks | 2 | local target | 62.0% | 61.0% to 63.0% | +0.0 (-1.0 to +1.0) |"
    assert lines[4].endswith("| 50.0% and 1 diverged | 50.0% to 50.0% | -10.0 (-10.0 to -10.0) |")


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(results(), tmp_path / "modules.png")
    assert (tmp_path / "modules.png").stat().st_size > 5000


@pytest.mark.parametrize("argument, expected", [
    ("counts=[3]", "fgpipe: counts=[3]: allowed: a list of 1, 2, 4, 8, 16"), ("rounds=-1", "fgpipe: rounds=-1: allowed: a whole"), ("methods=[none]", "fgpipe: methods=['none']: allowed: a list of local"),
    ("seeds=0", "fgpipe: seeds=0: allowed: a whole"), ("processes=2", "fgpipe: processes=2: allowed: at most 1"),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modules", str(tmp_path / "folder"), argument]) == 2
    assert capsys.readouterr().err.startswith(expected)
