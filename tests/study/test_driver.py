"""The driver: what is done stays done, a failure stops nothing else, and no death of the driver loses a run."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from fgpipe.errors import UserError
from fgpipe.study.common.runs import Run, read_summary
from fgpipe.study.paper.driver import Driver
from fgpipe.study.paper.tables import published
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


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: IO[str], operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"out=.*: allowed: a folder to write in, with file locks \(flock\): No locks"):
        Bench(tmp_path).driver.run(runs(0))


EPOCHS, BATCHES, BATCH, EVERY = 4, 8, 8, 3
"""Sizes of the trainings below: 32 steps of 8 images, and a checkpoint after every third."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two classes, in the form of the CIFAR-10 JPEG copy."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", BATCH * BATCHES // 2), ("test", 8)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw.integers(256, size=(32, 32, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number}.jpg")
    return root


@contextmanager
def grid(out: Path, images: Path) -> Iterator[subprocess.Popen[str]]:
    """Two short trainings, several seconds each, by a driver in a process of its own."""
    overrides = f"data.train_samples={BATCH * BATCHES},data.test_samples=16,epochs={EPOCHS},batch_size={BATCH}"
    overrides += f",checkpoint.every_steps={EVERY},observe.cosine=1"
    selection = ["table=3", "profile=scaled", "guess=local", "aux=linear"]
    command = [sys.executable, "-m", "fgpipe.grid", *selection, f"data.root={images}", f"out={out}"]
    command += [f"overrides=[{overrides}]", "jobs=2"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def saved(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    manifests = run.glob("checkpoints/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in manifests), default=0)


def begun(out: Path) -> list[Path]:
    """The folders of the runs that have a checkpoint and are under way; on a busy machine one may be far ahead."""
    return [path.parent for path in out.glob("*/config.yaml") if saved(path.parent)]


def results(out: Path) -> dict[str, tuple[list[float], str]]:
    """Run name to the test loss of each epoch and the cosines of every step, of all runs that are done."""
    found = {}
    for folder in out.iterdir():
        if (summary := read_summary(folder)) is not None:
            losses = [epoch["test"]["7"]["loss"] for epoch in summary["epochs"]]
            found[folder.name] = losses, (folder / "cosine.jsonl").read_text()
    return found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_driver_loses_nothing(tmp_path: Path, images: Path) -> None:
    """The driver dies, and one of its two runs, as in a crash: that one goes on from its newest checkpoint, the other
    is never stopped, and both give the numbers of a grid that nobody killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with grid(whole, images) as driver:
        output, _ = driver.communicate(timeout=600)
    expected = results(whole)
    assert len(expected) == 2, output
    for losses, cosines in expected.values():
        steps = [json.loads(line)["step"] for line in cosines.splitlines()]
        assert len(losses) == EPOCHS and steps == list(range(EPOCHS * BATCHES))

    with grid(killed, images) as driver:
        assert wait_until(lambda: begun(killed), 240)
        driver.kill()
    victim = begun(killed)[0]
    (other,) = expected.keys() - {victim.name}
    (orphan,) = processes_with(f'run_dir="{victim}')  # the runs outlive a driver that could not end them
    os.kill(orphan, signal.SIGKILL)
    assert wait_until(lambda: not processes_with(f'run_dir="{victim}'), 60)
    step = saved(victim)
    assert 0 < step < EPOCHS * BATCHES and not (victim / "summary.json").exists()
    with (victim / "cosine.jsonl").open("a") as file:
        file.write('{"step": 31, "cosine": {"0": 0.')  # a line that the crash cut

    with grid(killed, images) as driver:
        output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0 and "2 of 2 runs are done" in output, output
    resumed = {name: (read_summary(killed / name) or {})["resumed_at_step"] for name in expected}
    assert resumed == {victim.name: step, other: 0}
    assert (killed / "logs" / f"{other}.log").read_text().count(f"epoch 1/{EPOCHS}:") == 1, "it was started once"
    assert results(killed) == expected, "the same numbers as without the kill"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_signals_end_the_children(tmp_path: Path, images: Path, number: signal.Signals) -> None:
    with grid(tmp_path, images) as driver:
        assert wait_until(lambda: begun(tmp_path), 240)
        driver.send_signal(number)
        output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "the same command goes on from here" in output and "Traceback" not in output, (
        output
    )
    assert not processes_with(f'run_dir="{tmp_path}')
