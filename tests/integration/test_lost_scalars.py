"""Scalars that are lost, doubled, swapped or late on their way, between real processes.

TCP does none of that of itself; `faulty.py` does, to 5 % of the messages each. Blocks 0 to 3 are in one process, their
target in another, so all scalars take the way through the sockets.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launching import fork

STEPS, BATCH, RATE = 30, 16, 0.05
COMMON = [
    "epochs=2", f"data.train_samples={STEPS * BATCH // 2}", f"batch_size={BATCH}", "data.test_samples=32",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false", "target=global", "deadline=16",
]  # fmt: skip
RUNS = {
    "auto": [*COMMON, "window=auto", "scope=block"],
    "lock-step": [*COMMON, "window=1", "scope=block"],
    "activity": [*COMMON, "window=3", "space=activity", "guess=rademacher", "optim.lr=0.01"],
}
Arrays = dict[str, np.ndarray]


def run(folder: Path, processes: int, runs: dict[str, list[str]], faults: dict) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    split = [f"partition={[4, 4] if processes == 2 else [8]}"]
    (folder / "runs.json").write_text(json.dumps({name: overrides + split for name, overrides in runs.items()}))
    (folder / "faults.json").write_text(json.dumps(faults))
    return fork(processes, "-m", "tests.integration.faulty", str(folder), timeout=550)


def arrays(folder: Path, name: str) -> Arrays:
    return {key: value for file in folder.glob(f"{name}-*.npz") for key, value in np.load(file).items()}


def differing(one: Arrays, other: Arrays) -> list[str]:
    assert one.keys() == other.keys() and len(one["loss/True/7"]) == STEPS
    return [key for key, value in one.items() if not np.array_equal(value, other[key])]


def counted(folder: Path, name: str, incident: str) -> int:
    blocks = json.loads((folder / name / "summary.json").read_text())["scalars"]
    return sum(block[incident] for block in blocks.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_retry_changes_nothing(tmp_path: Path) -> None:
    """Every loss, weight and statistic is that of a run without faults, bit for bit, at every window."""
    clean, faulty = tmp_path / "clean", tmp_path / "faulty"
    done = run(clean, 1, RUNS, {})
    assert done.returncode == 0, done.stderr
    done = run(faulty, 2, RUNS, dict.fromkeys(("drop", "duplicate", "reorder", "delay"), RATE))
    assert done.returncode == 0, done.stderr
    happened = json.loads((faulty / "faults-1.json").read_text())
    assert all(happened[fault] for fault in ("drop", "duplicate", "reorder", "delay")), happened
    for name in RUNS:
        assert not differing(arrays(clean, name), arrays(faulty, name)), name
        assert counted(faulty, name, "skipped") == 0
    assert sum(counted(faulty, name, "asked") for name in RUNS) >= len(happened["dropped"]) > 0
    assert sum(counted(faulty, name, "duplicates") for name in RUNS) > 0
    links = json.loads((faulty / "auto" / "summary.json").read_text())["bytes"]
    asked = {link: kinds["control"] for link, kinds in links.items() if link.endswith("->7") and link != "6->7"}
    assert sum(kind["messages"] for kind in asked.values()) == counted(faulty, "auto", "asked"), "in the ledger too"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_skip_drops_that_update_alone(tmp_path: Path) -> None:
    """The run is, bit for bit, one in one process that knew beforehand which scalars never come."""
    runs = {name: [*RUNS[name], "feedback.lost=skip"] for name in ("auto",)}
    done = run(tmp_path / "faulty", 2, runs, {"drop": RATE})
    assert done.returncode == 0, done.stderr
    dropped = json.loads((tmp_path / "faulty" / "faults-1.json").read_text())["dropped"]
    assert dropped and len({tuple(each) for each in dropped}) == len(dropped), "each was sent once"
    assert counted(tmp_path / "faulty", "auto", "skipped") == len(dropped)
    for name, lost in (("knowing", dropped), ("clean", [])):
        done = run(tmp_path / name, 1, runs, {"lost": lost})
        assert done.returncode == 0, done.stderr
    faulty = arrays(tmp_path / "faulty", "auto")
    assert not differing(arrays(tmp_path / "knowing", "auto"), faulty)
    assert differing(arrays(tmp_path / "clean", "auto"), faulty), "the skipped updates would have changed the net"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fail_names_the_batch(tmp_path: Path) -> None:
    done = run(tmp_path / "faulty", 2, {"auto": [*RUNS["auto"], "feedback.lost=fail"]}, {"drop": RATE})
    assert done.returncode != 0
    assert "[blocks 0-3] error: feedback for batches [" in done.stderr and "did not" in done.stderr, done.stderr
