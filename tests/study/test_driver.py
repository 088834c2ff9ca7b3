"""The driver: what is done stays done, a failure stops nothing else, and no death of the driver loses a run."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgpipe.study.driver import Driver
from fgpipe.study.paper import published
from fgpipe.study.runs import Run, read_summary
from tests.integration.launching import environment, processes_with, wait_until

FAKE = """
import json, os, sys, time
values = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder, seed = json.loads(values["run_dir"]), int(values["seed"])
with open(STARTS, "a") as file:
    file.write(f"{seed}\\n")
os.makedirs(folder, exist_ok=True)
if seed == 1:
    sys.exit("fgpipe: seed=1: allowed: luck")
while os.path.exists(HOLD):
    time.sleep(0.05)
if seed == 2:
    open(os.path.join(folder, "summary.json"), "w").write('{"test_accuracy": 0.')  # cut short
    sys.exit(0)
json.dump({"test_accuracy": 0.5}, open(os.path.join(folder, "summary.json"), "w"))
"""
"""Stands for `fgpipe.train`: seed 1 fails, seed 2 succeeds with half a summary; they wait while HOLD exists."""


class Bench:
    """A driver over the fake, and what it left."""

    def __init__(self, folder: Path, jobs: int = 2) -> None:
        self.out, self.hold, self._starts = folder / "out", folder / "hold", folder / "starts"
        script = folder / "fake.py"
        script.write_text(FAKE.replace("STARTS", repr(str(self._starts))).replace("HOLD", repr(str(self.hold))))
        self.lines: list[str] = []
        self.driver = Driver(self.out, {"cifar10": "DATA"}, [sys.executable, str(script)], jobs, self.lines.append)

    def starts(self) -> list[int]:
        """The seeds in the order in which their processes started."""
        return [int(line) for line in self._starts.read_text().split()] if self._starts.exists() else []


def runs(*seeds: int) -> list[Run]:
    return [Run({"guess": "local"}, seed, [published()[0]]) for seed in seeds]


def test_failures_are_reported_and_stop_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, jobs=1)
    assert [run.seed for run in bench.driver.run(runs(0, 1, 2, 3))] == [1, 2]
    assert bench.starts() == [0, 1, 2, 3]
    states = [line.split("] ")[1].split(":")[0] for line in bench.lines]
    assert states == ["done", "FAILED", "FAILED", "done"] and "[4/4]" in bench.lines[-1]
    log = runs(1)[0].log(bench.out)
    assert "exit code 1" in bench.lines[1] and str(log) in bench.lines[1] and "luck" in log.read_text()


def test_done_is_not_run_again_and_broken_is(tmp_path: Path) -> None:
    Bench(tmp_path).driver.run(runs(0, 2, 3))
    bench = Bench(tmp_path)
    assert [run.seed for run in bench.driver.run(runs(0, 2, 3))] == [2]
    assert sorted(bench.starts()) == [0, 2, 2, 3]
    assert sum("done before" in line for line in bench.lines) == 2


def test_two_drivers_never_run_the_same(tmp_path: Path) -> None:
    first, second = Bench(tmp_path), Bench(tmp_path)
    first.hold.touch()
    threads = [threading.Thread(target=bench.driver.work, args=(runs(0, 3, 4),)) for bench in (first, second)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(first.starts()) == 3, 60)
    first.hold.unlink()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(first.starts()) == [0, 3, 4]
    assert {line.split("] ")[1].split(":")[0] for line in first.lines + second.lines} == {"done", "done before"}


@contextmanager
def grid(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Two short trainings on digits, several seconds each, by a driver in a process of its own."""
    overrides = "data=digits,data.train_samples=640,data.test_samples=64,epochs=6,batch_size=32,model.width=0.07"
    command = [
        sys.executable,
        "-m",
        "fgpipe.grid",
        "table=3",
        "profile=scaled",
        "dataset=cifar10",
        "guess=local",
        "aux=linear",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(
        [*command, f"out={out}", f"overrides=[{overrides}]", "jobs=2"], env=environment(), **pipes
    ) as process:
        yield process


def begun(out: Path) -> bool:
    """Both runs have an epoch behind them, and at least four before them."""
    lengths = [len(path.read_text().splitlines()) for path in out.glob("*/metrics.jsonl")]
    return len(lengths) == 2 and min(lengths) >= 1


def curves(out: Path) -> dict[str, list[float]]:
    """Run name to the test loss of each epoch, of all runs that are done."""
    found = {}
    for folder in out.iterdir():
        if (summary := read_summary(folder)) is not None:
            found[folder.name] = [epoch["test"]["7"]["loss"] for epoch in summary["epochs"]]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_driver_loses_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with grid(whole) as driver:
        output, _ = driver.communicate(timeout=300)
    expected = curves(whole)
    assert len(expected) == 2 and {len(losses) for losses in expected.values()} == {6}, output

    with grid(killed) as driver:
        assert wait_until(lambda: begun(killed), 240)
        driver.kill()
    orphans = processes_with(f'run_dir="{killed}')
    assert len(orphans) == 2, "the runs outlive a driver that could not end them"
    os.kill(orphans[0], signal.SIGKILL)  # one of the two dies too, as in a crash of the machine
    with grid(killed) as driver:
        output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0 and "2 of 2 runs are done" in output, output
    assert curves(killed) == expected, "the same numbers as without the kill"
    starts = [path.read_text().count("epoch 1/6:") for path in (killed / "logs").glob("*.log")]
    assert sorted(starts) in ([1, 2], [1, 1]), "the living run was waited for, the dead one made again or resumed"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_children(tmp_path: Path, number: signal.Signals) -> None:
    with grid(tmp_path) as driver:
        assert wait_until(lambda: begun(tmp_path), 240)
        driver.send_signal(number)
        output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "the same command goes on from here" in output and "Traceback" not in output, (
        output
    )
    assert not processes_with(f'run_dir="{tmp_path}')
