"""The loop of one block while the block below is away, in this process."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fgpipe.config import compose_config
from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.member import Ending, Member
from fgpipe.elastic.places import Places
from fgpipe.elastic.saver import BlockSaver
from fgpipe.elastic.tally import Tally
from fgpipe.elastic.target import Target, own_plan
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch, canonical

BLOCK, BATCH, CAME = 2, 4, 6
CPU = torch.device("cpu")
FACTS = DataFacts(train_batches=100, test_batches=1, classes=10, channels=1, height=16, width=16)


class Around:
    """What a member sees of the others: those below are away, those above are there, and nobody answers."""

    superseded, stop = None, False

    def generation(self, block: int) -> int:
        return 1

    def alive(self, block: int) -> bool:
        return block > BLOCK

    def figures(self, block: int) -> dict[str, Any]:
        return {}

    def up(self, batch: Batch, step: float) -> None:
        """Nobody takes it."""

    def take(self, patience: float) -> None:
        """No reading comes."""
        time.sleep(patience)


def trained(tmp_path: Path, *keys: str) -> tuple[Stage, Tally]:
    """A block that got six batches, and then none for a second; its stage, and its counts."""
    needed = [
        "elastic.block=2",
        f"run_dir={tmp_path / 'run'}",
        "replay.size=8",
        "replay.reuse=4",
        "checkpoint.every_steps=50",
    ]
    config = compose_config([*needed, "target=global", "scope=block", "model.width=0.07", f"batch_size={BATCH}", *keys])
    plan, around = Plan.make(config, FACTS, rank=BLOCK, world_size=config.blocks), Around()
    anything: Any = around
    learner, places = Learner.make(plan, BLOCK, CPU), Places(tmp_path / "run")
    places.begin()
    folder = places.generation(BLOCK, 1)
    folder.mkdir(parents=True)
    stage, tally, source = Stage(plan, learner, CPU), Tally(folder / "tally", {}), Buffer(BLOCK, config.replay, 0)
    own = Stage(own_plan(config, FACTS, BLOCK), learner, CPU) if config.elastic.fallback == "local" else None
    target = Target(plan, stage, own, anything, anything, tally)
    saver = BlockSaver(places, BLOCK, 1, config, FACTS.train_batches)
    member = Member(plan, stage, target, tally, source, anything, saver, Observers.of(config.blocks))
    for number in range(CAME):
        images = canonical(torch.randn(BATCH, *plan.forward.shapes[BLOCK]))
        source.put(Batch(number, 0, True, images, torch.arange(BATCH)), lambda: False)

    def stop() -> None:
        around.stop = True

    timer = threading.Timer(1.0, stop)
    timer.start()
    assert member.run(places, anything) is Ending.STOPPED
    timer.join()
    return stage, tally


@pytest.mark.parametrize("guess", ["gaussian", "local"])
def test_a_block_that_can_only_wait_repeats_nothing(guess: str, tmp_path: Path) -> None:
    """An extra step is on the block's own loss: one that waits for its target has none to make it on."""
    stage, tally = trained(tmp_path, f"guess={guess}", "elastic.fallback=wait", "window=8")
    assert [each.batch for each in stage.in_flight] == list(range(CAME)) and tally["extra"] == 0


def test_a_block_with_a_loss_of_its_own_does(tmp_path: Path) -> None:
    _, tally = trained(tmp_path, "guess=local", "elastic.fallback=local")
    assert tally["extra"] > 0 and tally["updates"] == tally["extra"] + CAME
