"""Replay buffers between real processes, beside a block that is slow: nobody waits for it, and every epoch is whole."""

import json
from pathlib import Path

import pytest

from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from tests.integration.launching import ROOT, launch
from tests.observe.chrome import faults

pytestmark = pytest.mark.timeout(900)
PROCESSES, EPOCHS, BATCHES, BATCH, TESTS = 3, 2, 16, 32, 50
SLOW = 3
"""The first block of the second process."""
COMMON = [
    f"epochs={EPOCHS}", f"data.train_samples={BATCHES * BATCH}", f"batch_size={BATCH}", f"data.test_samples={TESTS}",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false", "head=linear", "partition=[3,1,4]",
    "target=local", "trace=true", f"slow.block={SLOW}", "slow.factor=20", "deadline=600",
]  # fmt: skip
RUNS = {
    "without": COMMON,
    "newest": [*COMMON, "replay.size=4", "replay.reuse=1000"],
    "random": [*COMMON, "replay.size=3", "replay.reuse=2", "replay.take=random", "guess=ntk", "space=activity"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    done = launch(PROCESSES, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def events_in(folder: Path, name: str) -> list[Event]:
    return trace.events(folder / name / "trace.json")


def updates(folder: Path, name: str, block: int, epoch: int) -> list[Event]:
    ids = range(epoch * BATCHES, (epoch + 1) * BATCHES)
    found = [each for each in events_in(folder, name) if each[:2] == ("update", block) and each.batch in ids]
    return sorted(found, key=lambda each: each.began)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_block_makes_all_updates(folder: Path, name: str) -> None:
    """In order, in both epochs; each sample is counted in training, and each test image once. The trace is a whole one."""
    assert not list(faults(json.loads((folder / name / "trace.json").read_text())))
    for block in range(8):
        for epoch in range(EPOCHS):
            ids = [each.batch for each in updates(folder, name, block, epoch)]
            assert ids == list(range(epoch * BATCHES, (epoch + 1) * BATCHES))
    summary = json.loads((folder / name / "summary.json").read_text())
    for epoch in summary["epochs"]:
        assert {scores["samples"] for scores in epoch["test"].values()} == {TESTS}
        assert {scores["samples"] for scores in epoch["train"].values()} == {BATCHES * BATCH}
    for block, counts in summary["replay"].items():
        assert counts["reused"] == counts["unseen"], "each step is made on a new batch or a used one"
        assert block in ("3", "4") or not any(counts.values()), "buffers stand between processes"


@pytest.mark.slow
def test_nobody_waits(folder: Path) -> None:
    """The blocks below and above have made all updates of an epoch before the slow one has made half of its own."""
    for epoch in range(EPOCHS):
        half = updates(folder, "newest", SLOW, epoch)[BATCHES // 2].began
        for block in (2, 4, 7):
            assert updates(folder, "newest", block, epoch)[-1].ended < half
    counts = json.loads((folder / "newest" / "summary.json").read_text())["replay"]
    assert counts["3"]["unseen"] > 0 and counts["4"]["reused"] > BATCHES // 2


@pytest.mark.slow
def test_without_buffers_everybody_waits(folder: Path) -> None:
    """The control: above, the last update comes after all but one of the slow block's; below, all but what the links hold."""
    for epoch in range(EPOCHS):
        slow = updates(folder, "without", SLOW, epoch)
        assert updates(folder, "without", 7, epoch)[-1].began > slow[-2].ended
        assert updates(folder, "without", 2, epoch)[-1].ended > slow[BATCHES // 2].began
    counts = json.loads((folder / "without" / "summary.json").read_text())["replay"]
    assert not any(number for each in counts.values() for number in each.values())


def test_one_process(tmp_path: Path) -> None:
    done = launch(1, "-m", "fgpipe.train", "target=local", "replay.size=4", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "fgpipe: replay.size=4: allowed: null in one process" in done.stderr
