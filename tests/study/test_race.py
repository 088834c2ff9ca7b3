"""The race: which runs it makes, its arithmetic and tables by hand, a process that stalls, and a small race."""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies.modules import SETTING
from fgpipe.study.common.synthetic import write_images
from fgpipe.study.contests import link
from fgpipe.study.race.clusters import CLUSTERS, Stall
from fgpipe.study.race.figures import (
    Curve,
    RacePoint,
    RaceResults,
    Rate,
    accuracy_table,
    cluster_table,
    epochs_to,
    overview,
    points_table,
    seconds_to,
    time_cell,
)
from fgpipe.study.race.methods import methods, split
from fgpipe.study.race.stalls import stalling
from tests.integration.launching import wait_until

SLOPE = [0.30, 0.46, 0.44, 0.56]


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_methods_can_be_run(cluster: str, processes: int) -> None:
    """In the processes that each can use, and in one with the same windows."""
    where = CLUSTERS[cluster]
    for name, method in methods(processes).items():
        count = method.processes(processes)
        assert count == {"end to end": 1, "local target 2": 2, "local target 4": min(4, processes)}.get(name, processes)
        keys = [*SETTING, "batch_size=64", *method.overrides(split(processes), where.ahead)]
        alone, there = compose_config(keys), compose_config([*keys, *where.overrides(count)])
        check_world(alone, 1)
        check_world(there, count)
        assert alone.window == there.window and there.blocks == method.modules


def test_windows_are_those_of_the_processes() -> None:
    """Where gradients or scalars come back: a batch for the process itself, and as many as fill the way."""
    for name in ("async 1F1B", "local guess", "local guess every 8", "random guess"):
        late = methods(2)[name]
        windows = [compose_config(late.overrides(split(2), ahead)).window for ahead in (1, 3)]
        assert windows == [[2] * 4 + [1] * 4, [4] * 4 + [1] * 4], name
        assert [late.variant(ahead) for ahead in (1, 3)] == [1, 3]
    assert methods(2)["local target 8"].variant(3) == 0
    assert [split(processes) for processes in (2, 4, 8)] == [[4, 4], [2] * 4, [1] * 8]
    assert methods(2)["async 1F1B look-ahead"].learning_rate(0.05) == 0.5


def test_arithmetic() -> None:
    """The first epoch that is there counts, though a later one is not."""
    assert [epochs_to(goal, SLOPE) for goal in (0.3, 0.45, 0.5, 0.57)] == [1, 2, 4, None]
    assert seconds_to(0.45, SLOPE, 1000, 50.0) == 40.0 and seconds_to(0.6, SLOPE, 1000, 50.0) is None
    assert seconds_to(0.45, [], 1000, 50.0) is None, "it diverged"
    cells = [time_cell(each) for each in ([40.0, 2042.0], [40.0, None], [None], [1.25])]
    assert cells == ["1,041 s", "40 s, never in 1 of 2", "never", "1.2 s"]


def test_tables() -> None:
    curves: dict[str, list[Curve]] = {"fast": [SLOPE, [0.5, 0.5, 0.5, 0.6]], "far": [SLOPE, [0.2] * 4]}
    rates = {"fast": Rate(10.0, 2048.0, 1e6), "far": Rate(100.0, 0.0, 1e6, computed=True)}
    lines = cluster_table([0.45, 0.55, 0.7], rates, curves, 1000).splitlines()
    assert lines[2] == "| fast | 10.0 | 2,048 | **150 s** | **400 s** | never |"
    assert lines[3] == "| far | 100.0 (computed) | 0 | 20 s, never in 1 of 2 | 40 s, never in 1 of 2 | never |"
    results = RaceResults(1000, 10, 2, [0.45, 0.7], {"fast": {3: curves["fast"]}}, {"there": rates})
    results = replace(results, points=[RacePoint("fast", "there", 0, SLOPE, [110.0, 140.0, 1.0, 1.0])])
    first, second = points_table(results, {("fast", "there"): 3}).splitlines()[2:]
    assert first == "| fast | there | 45 % | 200 s | 250 s | -20% |"
    assert second == "| fast | there | 70 % | never | never |  |"
    three = replace(results, curves={"a": {0: [[0.1, 0.5], [0.2, 0.7]], 3: [[0.4], []]}}, learning_rates={"a": 0.05})
    lines = accuracy_table(three).splitlines()
    assert lines[2:] == [
        "| a |  | 0.05 | 60.0 % | 50.0 to 70.0 % |",
        "| a | 3 | 0.05 | 40.0 %, 1 diverged | 40.0 to 40.0 % |",
    ]


def test_overview() -> None:
    """The highest goal counts; the first of a cluster is one whose seeds all get there."""
    curves: dict[str, dict[int, list[Curve]]] = {
        "end": {0: [SLOPE, SLOPE]}, "late": {1: [SLOPE, [0.6]], 3: [SLOPE, []]}, "never": {0: [[0.1], [0.1]]}
    }  # fmt: skip
    fast = {name: Rate(speed, 0.0, None) for name, speed in {"end": 10.0, "late": 20.0, "never": 90.0}.items()}
    results = RaceResults(1000, 10, 2, [0.45, 0.55], curves, {"fast": fast, "far": fast})
    variants = {("late", "fast"): 1, ("late", "far"): 3} | {
        (name, at): 0 for name in ("end", "never") for at in results.rates
    }
    assert overview(results, variants).splitlines()[2:] == [
        "| end | 400 s | **400 s** |",
        "| late | **125 s** | 200 s, never in 1 of 2 |",
        "| never | never | never |",
    ]


def test_a_process_stalls(tmp_path: Path) -> None:
    """A real process of rank 0 that is given the file stands still for as long as said; another one does not."""
    file, script = (
        tmp_path / "runs.json",
        "import sys, time\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.02)",
    )
    running = []
    try:
        for rank in ("0", "1"):
            with (tmp_path / rank).open("w") as out:
                command = [sys.executable, "-c", script, str(file)]
                running.append(subprocess.Popen(command, stdout=out, env={**os.environ, "RANK": rank}))
        assert wait_until(lambda: all((tmp_path / rank).read_text().count("\n") > 1 for rank in ("0", "1")), 20)
        with stalling(Stall(1.5, 2.0), file):
            time.sleep(3.0)
        ended = {rank: (tmp_path / rank).read_text().count("\n") for rank in ("0", "1")}
        assert wait_until(lambda: (tmp_path / "0").read_text().count("\n") > ended["0"], 5), "it goes on"
    finally:
        for each in running:
            each.kill()
            each.wait()
    gaps = {}
    for rank in ("0", "1"):
        times = [float(line) for line in (tmp_path / rank).read_text().splitlines()[:-1]]
        gaps[rank] = max(later - earlier for earlier, later in pairwise(times))
    assert gaps["0"] > 1.3 > gaps["1"], gaps


@pytest.mark.parametrize("argument, expected", [
    ("methods=[magic]", "fgpipe: methods=['magic']: allowed: a list of end to end, 1F1B,"),
    ("clusters=[moon]", "fgpipe: clusters=['moon']: allowed: a list of fast, far, uneven, slow, stalls"),
    ("goals=[55]", "fgpipe: goals=[55.0]: allowed: a list of accuracies between 0 and 1"),
    ("rates=[0]", "fgpipe: rates=[0.0]: allowed: a list of numbers above 0"),
    ("rate_epochs=0", "fgpipe: rate_epochs=0: allowed: a whole number of at least 1"),
    ("points=[1F1B]", "fgpipe: points=['1F1B']: allowed: a list of METHOD@CLUSTER"),
    ("processes=3", "fgpipe: processes=3: allowed: 2 | 4 | 8"),
    ("rounds=-1", "fgpipe: rounds=-1: allowed: a whole number of at least 0"),
    ("model.blocks=16", "fgpipe: model.blocks=16: allowed: 8"),
])  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [] if argument.startswith("clusters") else ["clusters=[fast]"]
    assert main(["race", str(tmp_path / "folder"), *wanted, argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith(expected) and message.count("\n") == 1
    assert not (tmp_path / "folder").exists()


def test_no_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is missing and what takes no link, and no folder."""
    refusing = tmp_path / "two_hosts"
    refusing.write_text("import sys\nprint('two_hosts: needs the right', file=sys.stderr)\nsys.exit(77)\n")
    monkeypatch.setattr(link, "TWO_HOSTS", refusing)
    assert main(["race", str(tmp_path / "race"), "clusters=[far]"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("fgpipe: study race: two_hosts: needs the right; or clusters=[fast,slow,stalls]")
    assert message.count("\n") == 1 and not (tmp_path / "race").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_race(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Real runs, first those that are not timed: the table is the arithmetic of their summaries, a point has the bits of the
    run in one process, and what is there is not run again."""
    write_images(tmp_path / "images", 64, 32)
    arguments = [
        "race", str(tmp_path / "race"), f"data.root={tmp_path / 'images'}", "model.width=0.0625", "batch_size=16",
        "data.train_samples=64", "data.test_samples=32", "epochs=2", "seeds=1", "rounds=1", "batches=4", "goals=[0.01]",
        "methods=[end to end,async 1F1B]", "clusters=[slow,stalls]", "points=[async 1F1B@slow]",
    ]  # fmt: skip
    assert main([*arguments, "rounds=0"]) == 0
    assert sorted(path.name for path in (tmp_path / "race").iterdir()) == ["accuracy", "arguments.json"]
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "race").rglob("summary.json")}
    assert len(trained) == 2 and main(arguments) == 0
    out, found = capfd.readouterr().out, json.loads((tmp_path / "race" / "race.json").read_text())
    assert (tmp_path / "race" / "race.md").read_text().endswith(out)
    summaries = {
        cluster: json.loads((tmp_path / "race/speed" / cluster / "0/async-1F1B/summary.json").read_text())
        for cluster in ("fast", "slow")
    }
    speeds = {cluster: 64 / each["epochs"][1]["train_seconds"] for cluster, each in summaries.items()}
    rates = {cluster: of["async 1F1B"]["images_per_second"] for cluster, of in found["rates"].items()}
    assert rates == pytest.approx({"slow": speeds["slow"], "stalls": speeds["fast"] * 50 / 60})
    assert summaries["slow"]["config"]["slow"]["process"] == 0
    (point,), curves = found["points"], found["curves"]
    assert point["accuracies"] == curves["async 1F1B"]["1"][0] and len(point["accuracies"]) == 2
    assert found["rates"]["slow"]["end to end"] == found["rates"]["stalls"]["end to end"]
    computed, measured = 64 / rates["slow"], point["seconds"][0]
    line = next(line for line in out.splitlines() if line.startswith("| async 1F1B | slow | 1 % |"))
    assert line.endswith(f"| {computed / measured - 1:+.0%} |") and statistics.mean(point["accuracies"]) > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "race").rglob("summary.json")}
    assert trained.items() < before.items()
    assert main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "race").rglob("summary.json")}
