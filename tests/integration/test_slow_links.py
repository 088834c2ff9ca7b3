"""`link.*` between real processes: the figures are there in both directions, and not a bit of the results changes."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launching import ROOT, fork

pytestmark = pytest.mark.timeout(900)
BATCHES, BATCH = 12, 32
RTT = 0.6
COMMON = [
    "epochs=1", f"data.train_samples={BATCHES * BATCH}", f"batch_size={BATCH}", "data.test_samples=50",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false", "head=linear",
]  # fmt: skip
GLOBAL = [*COMMON, "scope=block", "window=1", "lanes=1"]
RUNS = {
    "global": GLOBAL,
    "global far": [*GLOBAL, f"link.rtt={RTT}s"],
    "asynchronous far": [*COMMON, "guess=end_to_end", "schedule=async_1f1b", "window=1", f"link.rtt={RTT}s"],
    "asynchronous": [*COMMON, "guess=end_to_end", "schedule=async_1f1b", "window=1"],
    "local": [*COMMON, "target=local"],
    "local far": [*COMMON, "target=local", f"link.rtt={2 * RTT}s"],
    "local narrow": [*COMMON, "target=local", "link.rate=1Mbit", "partition=[4,4]"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("links")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    done = fork(2, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def summary(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "near, far",
    [("global", "global far"), ("asynchronous", "asynchronous far"), ("local", "local far"), ("local", "local narrow")],
)
def test_not_a_bit_changes(folder: Path, near: str, far: str) -> None:
    def arrays(name: str) -> dict[str, np.ndarray]:
        return {key: array for rank in (0, 1) for key, array in np.load(folder / f"{name}-{rank}.npz").items()}

    want, got = arrays(near), arrays(far)
    assert want.keys() == got.keys() and len(want) > 50
    assert not [key for key in want if not np.array_equal(want[key], got[key])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global", "asynchronous"])
def test_round_trip(name: str, folder: Path) -> None:
    """In lock-step every batch waits for its scalars, or its gradient: half the round trip up, half of it down."""
    assert summary(folder, f"{name} far")["train_seconds"] >= BATCHES * RTT
    assert summary(folder, name)["train_seconds"] < BATCHES * RTT, "the control: the link makes the difference"


@pytest.mark.slow
def test_nobody_waits_for_a_batch_to_arrive(folder: Path) -> None:
    """A local target fills the link: the latency counts once, not for every batch."""
    assert RTT <= summary(folder, "local far")["train_seconds"] < BATCHES * RTT


@pytest.mark.slow
def test_rate(folder: Path) -> None:
    """Rate by the ledger's bytes. The last batch's labels and header leave last, so all but the last must have left."""
    sent = sum(kind["bytes"] for kind in summary(folder, "local narrow")["bytes"]["3->4"].values())
    least = 8 * sent / 1e6 * BATCHES / (BATCHES + 2)  # two test batches come after the clock has stopped
    assert least > 0.5 and least <= summary(folder, "local narrow")["train_seconds"] < 10 * least
    assert summary(folder, "local")["train_seconds"] < least, "the control"


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, overrides, line",
    [
        (1, ["link.rate=1Mbit"], "link.rate=1Mbit: allowed: null in one process"),
        (2, ["link.rtt=5ms", "link.between=[1]"], "link.between=[1]: allowed: 0 to 0 with 2 processes"),
        (2, ["link.rtt=5"], "link.rtt=5: allowed: a time above 0 in us, ms or s, such as 50ms, or null"),
    ],
)
def test_bad_values(processes: int, overrides: list[str], line: str, tmp_path: Path) -> None:
    done = fork(processes, "-m", "fgpipe.train", f"run_dir={tmp_path / 'run'}", *overrides)
    assert f"fgpipe: {line}" in done.stderr and not (tmp_path / "run").exists()
