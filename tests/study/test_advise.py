"""`python -m fgpipe.advise`: predictions against closed forms, its ranking by hand, commands that can be run, bad input."""

import subprocess
import sys
from pathlib import Path

import pytest

from fgpipe.config import LinkConfig, check_world, compose_config
from fgpipe.study.race.advise import Advice, main, ranking, start, table, winner
from fgpipe.study.race.clusters import Stall
from fgpipe.study.race.figures import Curve, RaceResults, Rate
from fgpipe.study.race.map import NOBODY, Winner, draw, grids, middles
from fgpipe.study.race.methods import methods
from fgpipe.study.race.predict import AdvisedCluster, Prediction, predictions
from fgpipe.study.simulator.calibration import METHODS, Calibration
from tests.integration.launching import environment

BATCH, BLOCKS = 16, 8
OWN = {"forward": 1.0, "update": 1.0}
"""Seconds of a block that learns by itself."""
BACK = {"forward": 1.0, "backward": 2.0, "update": 0.0}
"""Those of one that learns by backpropagation, of any piece of a batch."""
NO_LINK = LinkConfig()


@pytest.fixture
def calibration() -> Calibration:
    costs = {name: [dict(OWN) for _ in range(BLOCKS)] for name in METHODS}
    pieces = [(samples, [dict(BACK) for _ in range(BLOCKS)]) for samples in (4, 2)]
    late = [dict(BACK) for _ in range(BLOCKS)]
    arguments = ["model.width=0.0625", f"batch_size={BATCH}"]
    return Calibration(arguments, "a machine", None, 8, costs, pieces, late, late, 1.0, 0.0, 0.0, 0.0, 0.0, [-0.1, 0.2])


def seconds(calibration: Calibration, cluster: AdvisedCluster) -> dict[str, float]:
    """Time of a batch, by method."""
    return {name: BATCH / each.images_per_second for name, each in predictions(calibration, cluster).items()}


def test_predictions(calibration: Calibration) -> None:
    """The slowest process decides: a block's forward pass and update, or its passes forward and back; of groups of four
    blocks 4 forward passes, 3 backward passes and an update."""
    found = seconds(calibration, AdvisedCluster(8, NO_LINK))
    assert found["end to end"] == pytest.approx(24.0)
    assert found["local target 8"] == pytest.approx(2.0) and found["async 1F1B"] == pytest.approx(3.0)
    assert found["local target 2"] == pytest.approx(4.0 + 6.0 + 1.0)
    assert found["local target 4"] == pytest.approx(2.0 + 2.0 + 1.0)
    assert set(found) == set(methods(8))


def test_slow_and_stalled(calibration: Calibration) -> None:
    """Whoever has a pipeline is as slow as its first process; end to end is elsewhere."""
    usual = seconds(calibration, AdvisedCluster(4, NO_LINK))
    slow = seconds(calibration, AdvisedCluster(4, NO_LINK, slow=4.0))
    stalled = seconds(calibration, AdvisedCluster(4, NO_LINK, stall=Stall(10.0, 60.0)))
    for name, each in usual.items():
        alone = name == "end to end"
        assert stalled[name] == pytest.approx(each if alone else each * 6 / 5)
        assert slow[name] == pytest.approx(each) if alone else slow[name] > 1.5 * each
    assert slow["local target 8"] == pytest.approx(4 * usual["local target 8"])


def test_links(calibration: Calibration) -> None:
    """A batch takes its bytes over the rate; what comes back is gradients from process to process, or scalars, or nothing."""
    found = predictions(calibration, AdvisedCluster(2, LinkConfig("100kbit", "50ms")))
    width, side = 8, 16  # of block 3
    size = BATCH * width * side * side * 4
    assert "1F1B" not in found, "its waits for round trips are not modelled"
    up = 8 * (size + 8 * BATCH) / 100e3
    assert BATCH / found["local target 8"].images_per_second == pytest.approx(up, rel=0.01)
    back = {name: each.bytes_back for name, each in found.items()}
    assert back["async 1F1B"] == size
    assert (
        back["local target 2"] == back["end to end"] == 0 and 0 < back["local guess every 8"] == back["local guess"] / 8
    )
    late = {name: each.staleness for name, each in found.items()}
    assert (late["async 1F1B"], late["local target 8"], late["random guess"]) == (3, 0, 3)


def test_a_slow_boundary_that_few_processes_lack(calibration: Calibration) -> None:
    found = [seconds(calibration, AdvisedCluster(2, LinkConfig("100kbit", between=between))) for between in ([5], [])]
    assert found[0] == found[1] and found[0]["local target 8"] == pytest.approx(8.0), "four blocks, no link"


def test_ranking() -> None:
    """By the mean time to the goal; then those of which a seed never gets there, and the unknown, by their rates."""
    found = {
        name: Prediction(rate, 0, 0.0, (8,))
        for name, rate in {"end to end": 10.0, "1F1B": 20.0, "async 1F1B": 90.0, "local target 8": 95.0}.items()
    }
    curves: dict[str, dict[int, list[Curve]]] = {
        "end to end": {0: [[0.6, 0.6], [0.6, 0.6]]}, "1F1B": {0: [[0.4, 0.6], [0.6, 0.6]]},
        "async 1F1B": {1: [[0.6], [0.6]], 3: [[0.6], [0.1]]},
    }  # fmt: skip
    results = RaceResults(
        100, 10, 2, [0.5], curves, {"far": {"1F1B": Rate(1.0, 0.0, 3e6)}, "fast": {"1F1B": Rate(1.0, 0.0, 2e6)}}
    )
    near, far = AdvisedCluster(2, NO_LINK), AdvisedCluster(2, LinkConfig("100Mbit", "50ms"))
    order = [[row.name for row in ranking(found, results, 0.5, where, methods(2))] for where in (near, far)]
    many = ranking(found, results, 0.5, AdvisedCluster(8, NO_LINK), methods(8))
    assert [row.name for row in many] == ["1F1B", "end to end", "local target 8", "async 1F1B"]
    assert many[-1].times is None, "nobody has measured its accuracy with the delays of 8 processes"
    assert order[0] == ["async 1F1B", "1F1B", "end to end", "local target 8"]
    assert order[1] == ["1F1B", "end to end", "local target 8", "async 1F1B"]
    lines = table(ranking(found, results, 0.5, near, methods(2)), 0.5).splitlines()
    assert lines[3] == "| 2 | 1F1B | 7.5 s | 20.0 | 0 | 0 | 2 |"
    assert lines[5] == "| 4 | local target 8 | unknown | 95.0 | 0 | 0 | unknown |"
    alone = [row.name for row in ranking(found, None, 0.5, near, methods(2))]
    assert alone == ["local target 8", "async 1F1B", "1F1B", "end to end"]


def test_winner() -> None:
    """Clear if the second is more than 15 % behind, in time or, without accuracies, in images per second."""

    def of(*rows: tuple[str, float, list[float | None] | None]) -> Winner:
        return winner([Advice(name, Prediction(rate, 0, 0.0, (8,)), times, None) for name, rate, times in rows])

    assert of(("a", 1.0, [2.0, 4.0]), ("b", 9.0, [3.5, 3.5])) == Winner("a", True)
    assert of(("a", 1.0, [2.0, 4.0]), ("b", 9.0, [3.4, 3.4])) == Winner("a", False)
    assert of(("a", 1.0, [2.0]), ("b", 9.0, None)) == Winner("a", False), "who knows"
    assert of(("a", 1.0, [2.0]), ("b", 9.0, [None])) == Winner("a", True), "the second never gets there"
    assert of(("a", 1.0, [2.0, None]), ("b", 0.1, [None])) == Winner(NOBODY)
    assert of(("a", 2.0, None), ("b", 1.8, None)) == Winner("a", False)


def test_map(tmp_path: Path) -> None:
    """Each panel varies its own two; names stand on their own cells, upright where these are one column."""

    def judge(cluster: AdvisedCluster) -> Winner:
        asked.append(cluster)
        return Winner("end to end" if cluster.link.rate == "1Mbit" else "1F1B", cluster.slow < 4)

    asked: list[AdvisedCluster] = []
    links, slow = grids(AdvisedCluster(6, NO_LINK, 2.0), judge)
    assert {(each.processes, each.slow) for each in asked if each.link.slow} == {(6, 2.0)}
    assert [row[0].name for row in links] == ["end to end"] * 6 and links[0][1].name == "1F1B"
    assert [each.clear for each in slow[3]] == [True] * 4 + [False] * 4 and not asked[-1].link.slow
    grids(AdvisedCluster(8, LinkConfig("1Mbit", between=[5])), judge)
    assert asked[-1].processes == 8 and {tuple(each.link.between or ()) for each in asked[-110:]} == {(5,)}
    at = middles(links)
    assert at == {"end to end": ((0, 2), True), "1F1B": ((4.5, 2), False)}
    draw(tmp_path / "map.png", AdvisedCluster(6, NO_LINK, 2.0), "first", judge)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_commands_can_be_run(processes: int, calibration: Calibration) -> None:
    for name, each in predictions(calibration, AdvisedCluster(processes, NO_LINK)).items():
        command = start(methods(processes)[name], each, 1, 0.3).split()
        assert "optim.lr=0.3" in command and "optim.lr" not in start(methods(processes)[name], each, 1, None)
        begin, keys = command[: command.index("fgpipe.train")], command[command.index("fgpipe.train") + 1 :]
        count = int(begin[1].removeprefix("--nproc_per_node=")) if begin[0] == "torchrun" else 1
        assert count == min(processes, {"end to end": 1, "local target 2": 2, "local target 4": 4}.get(name, 8))
        check_world(compose_config([*keys, "batch_size=48"]), count)


def test_command(tmp_path: Path, calibration: Calibration) -> None:
    """A process of its own says what it knows."""
    calibration.save(tmp_path / "calibration.json")
    command = [sys.executable, "-m", "fgpipe.advise", "link.rate=100Mbit", "link.rtt=50ms", "processes=8", "slow=4x"]
    done = subprocess.run(
        [*command, f"calibration={tmp_path / 'calibration.json'}"],
        env=environment(), check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Error of 2 predictions of runs on that machine: -10% to +20%, 1 within 15%." in done.stdout
    assert "Not modelled on such links: 1F1B." in done.stdout
    assert done.stdout.splitlines()[-1].startswith("The first: ")


@pytest.mark.parametrize("argument, expected", [
    ("slow=4", "slow=4: allowed: a factor of at least 1, such as 4x"),
    ("slow=0.5x", "slow=0.5x: allowed: a factor of at least 1"),
    ("stall=10s", "stall=10s: allowed: two times such as 10s/60s"),
    ("stall=60s/10s", "stall=60s/10s: allowed: a stall that is shorter than its period"),
    ("goal=55", "goal=55: allowed: an accuracy between 0 and 1"),
    ("processes=9", "processes=9: allowed: 2 to 8"),
    ("processes=many", "processes=many: allowed: a whole number"),
    ("link.rate=fast", "link.rate=fast: allowed: a rate above 0"),
    ("model.width=1", "model.width=1: no such key; "),
    ("results=none.json", "results=none.json: allowed: a race.json of `python -m fgpipe.study race`"),
    ("calibration=none.json", "calibration=none.json: allowed: a file that `python -m fgpipe.study simulation`"),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
