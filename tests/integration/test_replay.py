"""Replay buffers between real processes, beside a block that is slow: nobody waits for it, and every epoch is whole."""

import json
from pathlib import Path

import pytest

from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from tests.integration.launching import ROOT, fork
from tests.observe.chrome import faults

pytestmark = pytest.mark.timeout(900)
PROCESSES, EPOCHS, BATCHES, BATCH, TESTS = 3, 2, 16, 32, 50
SLOW = 3
"""The first block of the second process."""
COMMON = [
    f"epochs={EPOCHS}", f"data.train_samples={BATCHES * BATCH}", f"batch_size={BATCH}", f"data.test_samples={TESTS}",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false", "head=linear", "partition=[3,1,4]",
    "target=local", "trace=true", f"slow.block={SLOW}", "deadline=600",
]  # fmt: skip
RUNS = {
    "without": [*COMMON, "slow.factor=50"],
    "newest": [*COMMON, "slow.factor=50", "replay.size=4", "replay.reuse=1000"],
    "random": [
        *COMMON, "slow.factor=10", "replay.size=3", "replay.reuse=2", "replay.take=random", "guess=ntk", "space=activity"
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    done = fork(PROCESSES, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def events_in(folder: Path, name: str) -> list[Event]:
    return trace.events(folder / name / "trace.json")


def events_of(folder: Path, name: str, kind: str, block: int, epoch: int) -> list[Event]:
    """In the order in which they began."""
    ids = range(epoch * BATCHES, (epoch + 1) * BATCHES)
    found = [each for each in events_in(folder, name) if each[:2] == (kind, block) and each.batch in ids]
    return sorted(found, key=lambda each: each.began)


def updates(folder: Path, name: str, block: int, epoch: int) -> list[Event]:
    """Updates in order, of extra steps too."""
    return events_of(folder, name, "update", block, epoch)


def replays(folder: Path, name: str) -> dict[int, dict[str, int]]:
    summary = json.loads((folder / name / "summary.json").read_text())
    return {int(block): counts for block, counts in summary["replay"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_block_makes_all_updates(folder: Path, name: str) -> None:
    """In order, in both epochs, with the extra ones before the step whose number they have; each sample is counted in
    training once, and so is each test image. The trace is a whole one."""
    assert not list(faults(json.loads((folder / name / "trace.json").read_text())))
    counts = replays(folder, name)
    for block in range(8):
        made = [[each.batch for each in updates(folder, name, block, epoch)] for epoch in range(EPOCHS)]
        for epoch, ids in enumerate(made):
            assert ids == sorted(ids) and set(ids) == set(range(epoch * BATCHES, (epoch + 1) * BATCHES))
        buffer = block if block <= SLOW else SLOW + 1
        assert sum(map(len, made)) == EPOCHS * BATCHES + counts[buffer]["extra"], "all blocks of a process make them"
    summary = json.loads((folder / name / "summary.json").read_text())
    for epoch in summary["epochs"]:
        assert {scores["samples"] for scores in epoch["test"].values()} == {TESTS}
        assert {scores["samples"] for scores in epoch["train"].values()} == {BATCHES * BATCH}
    for block, of in counts.items():
        assert of["reused"] == of["unseen"], "each step is made on a new batch or a used one"
        assert block in (SLOW, SLOW + 1) or not any(of.values()), "buffers stand between processes"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["newest", "random"])
def test_extra_steps_stay_in_their_process(folder: Path, name: str) -> None:
    """Above the slow block every batch is used, and there are extra steps; what crosses from process to process is what
    crosses without buffers, in the same order and to the byte."""
    above = replays(folder, name)[SLOW + 1]
    assert above["extra"] > 0 and above["unseen"] == above["reused"] == above["past_limit"] == 0
    for block in (SLOW, SLOW + 1):
        for epoch in range(EPOCHS):
            ids = list(range(epoch * BATCHES, (epoch + 1) * BATCHES))
            assert [each.batch for each in events_of(folder, name, "send", block - 1, epoch)] == ids
            assert [each.batch for each in events_of(folder, name, "receive", block, epoch)] == ids
    with_buffers, without = (
        json.loads((folder / each / "summary.json").read_text())["bytes"] for each in (name, "without")
    )
    assert with_buffers == without


@pytest.mark.slow
def test_nobody_waits(folder: Path) -> None:
    """The block below has made all updates of an epoch before the slow one has made half of its own. Those above go on to
    its last one: they make most of their updates while it works, and not in the first half of that time alone."""
    for epoch in range(EPOCHS):
        slow = updates(folder, "newest", SLOW, epoch)
        half = slow[BATCHES // 2].began
        assert updates(folder, "newest", 2, epoch)[-1].ended < half
        for block in (4, 7):
            made = [each.began for each in updates(folder, "newest", block, epoch)]
            assert len(made) > 3 * BATCHES / 2
            while_slow = [each for each in made if slow[1].began < each < slow[-1].began]
            late = sum(each > (slow[1].began + slow[-1].began) / 2 for each in while_slow)
            assert len(while_slow) > len(made) / 2 and late > len(while_slow) / 5
    assert replays(folder, "newest")[SLOW]["unseen"] > 0


@pytest.mark.slow
def test_without_buffers_everybody_waits(folder: Path) -> None:
    """The control: above, there is an update for each of the slow block's, and the last comes after all but one of them;
    below, it comes after all but what the links hold."""
    for epoch in range(EPOCHS):
        slow = updates(folder, "without", SLOW, epoch)
        assert updates(folder, "without", 7, epoch)[-1].began > slow[-2].ended
        assert updates(folder, "without", 2, epoch)[-1].ended > slow[BATCHES // 2].began
        assert {len(updates(folder, "without", block, epoch)) for block in range(8)} == {BATCHES}
    assert not any(number for each in replays(folder, "without").values() for number in each.values())


def test_one_process(tmp_path: Path) -> None:
    done = fork(1, "-m", "fgpipe.train", "target=local", "replay.size=4", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "fgpipe: replay.size=4: allowed: null in one process" in done.stderr
