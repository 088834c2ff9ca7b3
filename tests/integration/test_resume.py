"""Resuming over real processes and after real signals: other numbers of processes, SIGKILL, SIGTERM."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from fgpipe.saving.checkpoint import Checkpoints, Manifest
from tests.integration.launching import ROOT, Job, fork, processes_with, wait_until
from tests.integration.rewinding import rewind

BATCHES, BATCH = 5, 16
COMMON = [
    "epochs=3", f"data.train_samples={BATCHES * BATCH}", f"batch_size={BATCH}", "data.test_samples=50", "model.width=0.07",
    "scope=null", "threads=1", "device=cpu", "observe.tensorboard=false", "checkpoint.every_steps=4", "checkpoint.keep=100",
]  # fmt: skip
METHODS = {
    "lock-step": ["window=1", "scope=block"],
    "pipelined": ["window=auto", "scope=block"],
    "ntk": ["window=auto", "guess=ntk", "space=activity", "head=linear"],
    "local": ["target=local"],
    "async": ["guess=end_to_end", "schedule=async_1f1b", "wire=int8"],
    "2bw": ["guess=end_to_end", "schedule=async_1f1b", "stash=two", "microbatches=8"],
    "twins": ["window=auto", "guess=twins", "guess.ahead=2", "guess.every=3", "space=activity"],
}


def recorded(folder: Path, processes: int, *more: str) -> dict[str, dict[str, np.ndarray]]:
    """Every method in one set of processes, in folders that may be there already."""
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps({name: [*COMMON, *method, *more] for name, method in METHODS.items()}))
    done = fork(processes, str(ROOT / "tests/integration/recording.py"), str(folder), timeout=290)
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, np.ndarray]] = {name: {} for name in METHODS}
    for name, arrays in results.items():
        for file in folder.glob(f"{name}-*.npz"):
            arrays.update(np.load(file))
    return results


def check_equal(whole: dict[str, dict[str, np.ndarray]], resumed: dict[str, dict[str, np.ndarray]], step: int) -> None:
    for name, arrays in resumed.items():
        assert arrays.keys() == whole[name].keys()
        assert len(arrays["loss/True/7"]) == 3 * BATCHES - step, "it was resumed, and at the right batch"
        for key, value in arrays.items():
            wanted = whole[name][key][-len(value) :] if key.startswith("loss") else whole[name][key]
            assert np.array_equal(value, wanted), f"{name} {key}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, recorded(folder, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes, ranks", [(8, None), pytest.param(4, [2, 0, 3, 1], marks=pytest.mark.long)])
def test_one_many_one(processes: int, ranks: list[int] | None, whole, tmp_path: Path) -> None:
    """Begun in one process, resumed at batch 4 in several, in order or placed, at batch 12 in one: no bit differs."""
    folder, arrays = whole
    many, one = tmp_path / "many", tmp_path / "one"
    for name in METHODS:
        rewind(folder / name, many / name, 4)
    (tmp_path / "placement.yaml").write_text(f"ranks: {ranks}")
    placed = [f"placement={tmp_path / 'placement.yaml'}"] if ranks else []
    check_equal(arrays, recorded(many, processes, "resume=auto", *placed), 4)
    for name in METHODS:
        rewind(many / name, one / name, 12)
    check_equal(arrays, recorded(one, 1, "resume=auto"), 12)
    for name in METHODS:
        staleness = [
            json.loads((each / name / "summary.json").read_text())["staleness"] for each in (folder, many, one)
        ]
        assert staleness[0] == staleness[1] == staleness[2]


@pytest.mark.slow
def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL at 50 random moments of a process that does nothing but save: always one complete checkpoint."""
    done = fork(1, str(ROOT / "tests/integration/killing.py"), str(tmp_path), "50")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["found"]) == 51 and result["found"][-1] > 10
    assert result["half"] >= 5, "or the kills came at moments that prove nothing"


class Run(Job):
    """A run that goes on where its folder's last one ended."""

    @property
    def newest(self) -> Manifest | None:
        return Checkpoints(self.run).newest(pytest.fail)

    def wait_for_step(self, step: int) -> None:
        assert wait_until(
            lambda: (Checkpoints(self.run).steps() or [0])[-1] >= step or self.process.poll() is not None, 200
        )
        assert self.process.poll() is None, self.text


@pytest.fixture
def start(tmp_path: Path):
    jobs: list[Run] = []

    def begin(processes: int, name: str, *overrides: str, options: tuple[str, ...] = ()) -> Run:
        jobs.append(Run(tmp_path / name, processes, "resume=auto", *COMMON, *overrides, options=options))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


def weights(run: Path, step: int) -> list[bytes]:
    """Parameters, statistics and momentum of all blocks, as they were written."""
    return [(Checkpoints(run).folder(step) / f"block-{block}.safetensors").read_bytes() for block in range(8)]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_run(whole, start) -> None:
    """SIGKILL at 4 random moments of a run that saves after every step; then it ends as if nothing had happened."""
    settings = ["epochs=8", "window=auto", "scope=block", "checkpoint.every_steps=1", "checkpoint.keep=2"]
    moments, step = random.Random(1), 0
    for _ in range(4):
        job = start(1, "killed", *settings)
        job.wait_for_step(step + 2)
        time.sleep(moments.uniform(0, 0.1))
        job.end()
        newest = job.newest
        assert newest is not None and newest.step >= step + 2
        step = newest.step
    last = start(1, "killed", *settings)
    assert last.process.wait(timeout=200) == 0, last.text
    other = start(1, "other", *settings)
    assert other.process.wait(timeout=200) == 0, other.text
    assert weights(last.run, 8 * BATCHES) == weights(other.run, 8 * BATCHES)
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (last.run, other.run)]
    first, second = ([{**json.loads(line), "train_seconds": None} for line in each] for each in lines)
    assert first == second and len(first) == 8


@pytest.mark.slow
def test_sigterm(whole, start) -> None:
    """One process: saved at the next batch, exit code 75; lock-step goes on as if nothing had happened."""
    folder, _ = whole
    settings = ["window=1", "scope=block", "checkpoint.every_steps=4"]
    job = start(1, "lock-step", *settings)
    job.wait_for_step(4)
    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(timeout=60) == 75, job.text
    assert (newest := job.newest) is not None and 4 <= newest.step < 3 * BATCHES
    said = [line for line in job.text.splitlines() if line.startswith("fgpipe: ")]
    assert (
        len(said) == 1 and f"step-{newest.step} on SIGTERM" in said[0] and f"run_dir={job.run} resume=auto" in said[0]
    )
    assert newest.extra_drains == (newest.step % BATCHES != 0 and newest.step % 4 != 0)
    job = start(1, "lock-step", *settings)
    assert job.process.wait(timeout=200) == 0, job.text
    assert weights(job.run, 3 * BATCHES) == weights(folder / "lock-step", 3 * BATCHES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "receiver", ["torchrun", *(pytest.param(f"rank {rank}", marks=pytest.mark.long) for rank in range(2))]
)
def test_sigterm_under_torchrun(receiver: str, start) -> None:
    """The launcher's or one worker's: all agree on one batch, save and end, and say so once."""
    job = start(2, "run", "epochs=300", "window=auto", "scope=block", "checkpoint.keep=2")
    job.wait_for_step(4)
    pid = job.process.pid if receiver == "torchrun" else job.workers()[int(receiver[-1])]
    os.kill(pid, signal.SIGTERM)
    assert job.process.wait(timeout=60) != 0
    assert wait_until(lambda: not processes_with(str(job.run)), 5)
    said = [line for line in job.text.splitlines() if line.startswith("fgpipe: ")]
    assert len(said) == 1 and "on SIGTERM" in said[0], job.text
    newest = job.newest
    assert newest is not None and f"step-{newest.step} on SIGTERM" in said[0]
    assert "is gone" not in job.text
    if receiver != "torchrun":
        assert set(re.findall(r"exitcode\s*: (-?\d+)", job.text)) == {"75"}, job.text
    again = start(1, "run", "epochs=300", "window=auto", "scope=block", "checkpoint.keep=2")
    again.wait_for_step(newest.step + 4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_killed_rank_is_still_blamed(victim: int, start) -> None:
    """torchrun's SIGTERM to the survivor of a dead process is no request to save: it ends the job at once."""
    job = start(2, "run", "epochs=300", "window=auto", "scope=block", "checkpoint.keep=2")
    job.wait_for_step(4)
    os.kill(job.workers()[victim], signal.SIGKILL)
    assert job.process.wait(timeout=45) != 0
    assert wait_until(lambda: not processes_with(str(job.run)), 5)
    text = job.text
    assert f"rank {victim} (pid" in text or re.search(rf"lost block \d \(rank {victim}\)", text), text
    assert "on SIGTERM" not in text
    assert job.newest is not None


@pytest.mark.long
@pytest.mark.slow
def test_torchrun_restarts(whole, start) -> None:
    """With --max-restarts a job whose worker was killed goes on by itself, and ends as if nothing had happened."""
    folder, _ = whole
    job = start(2, "pipelined", "window=auto", "scope=block", options=("--max-restarts=1",))
    job.wait_for_step(4)
    os.kill(job.workers()[0], signal.SIGKILL)
    assert job.process.wait(timeout=250) == 0, job.text
    assert json.loads((job.run / "summary.json").read_text())["resumed_at_step"] >= 4
    assert weights(job.run, 3 * BATCHES) == weights(folder / "pipelined", 3 * BATCHES)


@pytest.mark.long
@pytest.mark.slow
def test_minutes(start) -> None:
    """A clock's checkpoint is an extra drain in mid-epoch, counted, and the run goes on after it."""
    settings = ["checkpoint.every_steps=null", "checkpoint.every_minutes=1e-7", "window=auto", "scope=block"]
    job = start(2, "run", *settings)
    assert job.process.wait(timeout=200) == 0, job.text
    summary = json.loads((job.run / "summary.json").read_text())
    assert Checkpoints(job.run).steps() == list(range(1, 3 * BATCHES + 1))
    assert summary["extra_drains"] == 3 * (BATCHES - 1)
    assert all(each["max"] == 0 for each in summary["staleness"].values()), "drained after every batch is lock-step"
