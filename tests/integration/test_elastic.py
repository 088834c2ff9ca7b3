"""Blocks that are jobs of their own: real processes under torchrun, and real signals."""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from fgpipe import export
from fgpipe.config import compose_config
from fgpipe.elastic.presence import SILENCE
from fgpipe.elastic.run import run_member
from fgpipe.saving.checkpoint import Checkpoints, read_tensors
from fgpipe.trainers.session import run
from tests.integration.elastic import Elastic
from tests.integration.launching import Job, launch, living, processes_with, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
THREE = ["model.modules=[3,3,2]", "model.width=0.125"]
COMMON = [
    "target=local", "replay.size=8", "checkpoint.every_steps=10", "threads=1", "observe.tensorboard=false",
]  # fmt: skip
ORDINARY = [*THREE, "target=local", "checkpoint.every_steps=10", "threads=1", "observe.tensorboard=false"]
ENDLESS = [*COMMON, "epochs=100000"]
START, BACK = 200, 60
"""Seconds until all blocks train, and until one trains again, on a machine with other work."""


def left(job: Elastic) -> list[int]:
    return living({*processes_with(str(job.run)), *processes_with(f"127.0.0.1:{job.port}")})


def accounted_for(job: Elastic) -> None:
    """Every update that was ever made is in the last saved state, or is counted as lost."""
    for block in range(job.blocks):
        found = job.places.newest(block, print)
        assert found is not None
        counters = json.loads((found[0] / f"block-{block}.json").read_text())
        kept = job.count(block) - job.count(block, "lost")
        assert counters["elastic"]["kept"] == kept, block
        steps = {int(each) for name, each in read_tensors(found[0], block).items() if name.startswith("block.step.")}
        assert steps <= {kept}, "the optimizer of torch.optim counts the updates that its weights have, too"


def test_a_lost_block_comes_back_and_the_others_train_on(tmp_path: Path) -> None:
    """Three blocks; the one in the middle dies; the run is stopped, assembled, and gone on with by an ordinary run.

    AdamW counts its own steps: the block's weights are those of its last save, and no fresh ones. Buffers outlast the gap.
    """
    adam = ["optim.name=adamw", "optim.lr=0.001"]
    settings = [*THREE, *ENDLESS, "replay.reuse=100", *adam]
    with Elastic(tmp_path / "run", 3, *settings) as job:
        job.wait(lambda: min(job.counts()) > 25, START)
        before, kept = job.counts(), job.count(1)
        job.back([1], partial(job.kill, 1), BACK)
        after = job.counts()
        assert after[0] - before[0] >= 20 and after[2] - before[2] >= 20, "the others have gone on"
        assert 0 <= job.count(1, "lost") <= 10 + (job.count(1) - kept), "no more than since its last save"
        assert job.count(0, "dropped") > 0 and job.count(0, "restarts") == job.count(2, "restarts") == 0
        shown = job.status()
        assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [[str(j), "lives"] for j in range(3)]
        refused = launch(1, "-m", "fgpipe.train", f"run_dir={job.run}", "elastic.block=1", *settings,
                         f"elastic.store=127.0.0.1:{job.port}", timeout=100)  # fmt: skip
        assert refused.returncode == 2 and "elastic.block=1: its place is taken by generation 2" in refused.stderr
        assert job.status("--stop").returncode == 0
        assert job.process.wait(60) == 0
        assert wait_until(lambda: not left(job), 10)
        accounted_for(job)
        newest = job.places.newest(1, print)
        assert newest is not None and any(name.startswith("block.step.") for name in read_tensors(newest[0], 1))
        assert job.status("--assemble").returncode == 0
    (step,) = Checkpoints(job.run).steps()
    assert step == min(job.counts("position"))
    with Job(tmp_path / "next", 1, f"resume={job.run}", *ORDINARY, *adam, "epochs=100000") as ordinary:
        saved = Checkpoints(ordinary.run)
        assert wait_until(lambda: saved.steps() or ordinary.process.poll() is not None, 60)
        assert saved.steps()[0] > step, ordinary.text


@pytest.mark.long
def test_ends_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The end is agreed upon; what is left is an ordinary run's folder, whose net has the accuracy that it says."""
    few = ["epochs=4", "data.test_samples=100"]
    settings = [*THREE, *COMMON, *few]
    with Elastic(tmp_path / "run", 3, *settings) as job:
        assert job.process.wait(START) == 0, job.text
        assert wait_until(lambda: not left(job), 10)
        accounted_for(job)
        assert job.counts("position") == [4 * (1437 // 64)] * 3, "1437 training samples in batches of 64"
    summary = json.loads((job.run / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.5 and set(summary["elastic"]) == {"0", "1", "2"}
    shown = f"test accuracy {summary['test_accuracy']:.2%}"
    assert run(compose_config([f"run_dir={job.run}", "resume=auto", *ORDINARY, *few])) == summary
    run_member(compose_config([f"run_dir={job.run}", "elastic.block=1", *settings]))
    assert export.main([str(job.run), str(tmp_path / "net.safetensors")]) == 0
    said = capsys.readouterr().out
    assert said.count(shown) == 2 and "is finished" in said


def test_nothing_lost_is_the_ordinary_run(tmp_path: Path) -> None:
    """In lock-step, and with nobody lost, a global target gives the bits of one process: each batch met its own scalars."""
    few = [*THREE, "scope=block", "window=1", "epochs=2", "threads=1", "observe.tensorboard=false"]
    wanted = run(compose_config([*few, f"run_dir={tmp_path / 'one'}", "checkpoint.every_steps=1000"]))
    elastic = ["elastic.fallback=wait", "replay.size=2", "checkpoint.every_steps=10"]
    with Elastic(tmp_path / "run", 3, *few, *elastic) as job:
        assert job.process.wait(START) == 0, job.text
        steps = 2 * (1437 // 64)
        assert job.counts() == [steps] * 3 and job.counts("skipped") == job.counts("late") == [0] * 3
        accounted_for(job)
        assert wait_until(lambda: not left(job), 10)
    found = json.loads((job.run / "summary.json").read_text())
    assert found["test_accuracy"] == wanted["test_accuracy"] and (job.run / "report.html").exists()
    assert found["bytes_back_per_batch"][2] == 0 < min(found["bytes_back_per_batch"][:2]), "to each block from above"
    for block in range(3):
        one, three = (read_tensors(Checkpoints(path).folder(steps), block) for path in (tmp_path / "one", job.run))
        assert one.keys() == three.keys()
        assert not [name for name, tensor in one.items() if not torch.equal(tensor, three[name])]


@pytest.mark.long
@pytest.mark.parametrize("fallback", ["local", "wait"])
@pytest.mark.parametrize("target", [["target=global"], ["target=intermediate", "target.depth=1"]])
def test_a_target_out_of_reach(target: list[str], fallback: str, tmp_path: Path) -> None:
    """Blocks whose target, or the way to it, is lost follow their own loss meanwhile, or wait; afterwards as before."""
    settings = [*THREE, *ENDLESS[1:], *target, "scope=block", f"elastic.fallback={fallback}"]
    with Elastic(tmp_path / "run", 3, *settings) as job:
        job.wait(lambda: min(job.counts()) > 25, START)
        before, followed = job.counts(), job.counts("fallback")
        job.back([2], partial(job.kill, 2), BACK)
        made = [now - then for then, now in zip(before, job.counts(), strict=True)]
        own = [now - then for then, now in zip(followed, job.counts("fallback"), strict=True)]
        if fallback == "wait":
            assert own == [0, 0, 0] and made[1] <= 25
        else:
            assert made[0] >= 10 and made[1] >= 10 and own[1] >= 10
            assert own[0] >= 10 or target[0] == "target=intermediate", "its target, block 1, is there"
        job.wait(lambda: sum(job.rates(3, "fallback")) == 0 < min(job.rates(1)), BACK)
        assert job.status("--stop").returncode == 0 and job.process.wait(60) == 0
        accounted_for(job)


@pytest.mark.long
def test_each_of_eight_in_turn(tmp_path: Path) -> None:
    """Each comes back, and the others train on over the whole gap, as buffers last that long here; prints what they keep."""
    with Elastic(tmp_path / "run", 8, *ENDLESS, "replay.reuse=100") as job:
        job.wait(lambda: min(job.counts()) > 50, START)
        for victim in range(8):
            usual, before = job.rates(6), job.counts()
            took = job.back([victim], partial(job.kill, victim), BACK)
            found = [(now - then) / took for then, now in zip(before, job.counts(), strict=True)]
            kept = [each / rate for j, (each, rate) in enumerate(zip(found, usual, strict=True)) if j != victim]
            print(f"block {victim}: back after {took:.1f} s, others keep", *(f"{each:.2f}" for each in kept))
            assert min(kept) > 0, (victim, kept)
        assert job.counts("restarts") == [1] * 8
        assert job.status("--stop").returncode == 0 and job.process.wait(60) == 0
        accounted_for(job)


@pytest.mark.long
def test_twenty_seconds_above_a_gap(tmp_path: Path) -> None:
    """Prints what the others keep of their rates at full width, where eight batches, four times each, last two thirds of it."""
    with Elastic(tmp_path / "run", 8, *ENDLESS, "replay.reuse=4", "model.width=1") as job:
        job.wait(lambda: min(job.counts()) > 10, START)
        usual = job.rates(20)
        job.kill(3, signum=signal.SIGSTOP)
        kept = [each / rate for each, rate in zip(job.rates(20), usual, strict=True)]
        print(f"updates per second {min(usual):.2f} to {max(usual):.2f}; kept", *(f"{each:.2f}" for each in kept))
        assert kept[3] == 0 and min(kept[:3] + kept[4:]) > 0
        job.kill(3, signum=signal.SIGCONT)
        assert job.status("--stop").returncode == 0 and job.process.wait(60) == 0
        accounted_for(job)


@pytest.mark.long
def test_neighbours_the_store_and_a_stopped_process(tmp_path: Path) -> None:
    with Elastic(tmp_path / "run", 8, *ENDLESS) as job:
        job.wait(lambda: min(job.counts()) > 30, START)
        job.back([3, 4], partial(job.kill, 3, 4), BACK)
        for _ in range(3):
            job.back([5], partial(job.kill, 5), BACK)
        store = job.store()
        assert store is not None
        os.kill(store, signal.SIGKILL)
        assert min(job.rates(5)) > 0, "nobody waits for the store"
        job.wait(lambda: job.store() not in (None, store), BACK)
        job.back([2], partial(job.kill, 2), BACK)
        job.kill(4, signum=signal.SIGSTOP)
        usual = job.rates(20)
        assert min(usual[:4]) > 0 and usual[4] == 0
        job.kill(4, signum=signal.SIGCONT)
        job.wait(lambda: min(job.rates(2)) > 0, BACK)
        assert job.counts("restarts") == [0, 0, 1, 1, 1, 3, 0, 0]
        assert job.status("--stop").returncode == 0 and job.process.wait(60) == 0
        accounted_for(job)
        assert wait_until(lambda: not left(job), 10)


@pytest.mark.long
def test_a_zombie_is_told_to_end(tmp_path: Path) -> None:
    """The process is stopped, another takes its place from elsewhere, and then the first one goes on."""
    with Elastic(tmp_path / "run", 3, *THREE, *ENDLESS) as job:
        job.wait(lambda: min(job.counts()) > 25, START)
        zombie, arguments = job.workers()[1], job.arguments(1)
        os.kill(zombie, signal.SIGSTOP)
        second = job.back([1], partial(job.start, arguments), BACK)
        assert second > SILENCE
        os.kill(zombie, signal.SIGCONT)
        assert wait_until(lambda: not living([zombie]), 10)
        job.wait(lambda: "block 1 leaves: another process has its place" in job.text, 5)
        assert min(job.rates(3)) > 0
        assert job.status("--stop").returncode == 0 and job.process.wait(60) == 0
        accounted_for(job)


@pytest.mark.long
def test_sigterm_to_one_block(tmp_path: Path) -> None:
    """It saves and leaves, and its launcher with it; the others go on; the same command brings it back."""
    with Elastic(tmp_path / "run", 3, *THREE, *ENDLESS) as job:
        job.wait(lambda: min(job.counts()) > 25, START)
        pid, arguments = job.workers()[1], job.arguments(1)
        os.kill(job.launcher(1), signal.SIGTERM)
        assert wait_until(lambda: not living([pid]), 30)
        assert job.rates(3)[0] > 0
        job.back([1], partial(job.start, arguments), BACK)
        assert job.count(1, "lost") == 0, "it had saved"
        assert job.status("--stop").returncode == 0


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "1"))))
def test_twenty_random_kills(seed: int, tmp_path: Path) -> None:
    """A run of eight ends by itself, as accurate as the ones without faults (docs/reference/elastic.md has their figures)."""
    chance = random.Random(f"elastic {seed}")
    with Elastic(tmp_path / "run", 8, *COMMON, "model.width=0.125", "epochs=120", f"seed={seed}") as job:
        job.wait(lambda: min(job.counts()) > 30, START)
        for _ in range(int(os.environ.get("KILLS", "20"))):
            victim = chance.randrange(8)
            assert wait_until(lambda: victim in job.workers(), BACK), job.text  # noqa: B023
            assert not job.places.summary.exists(), "it was over before the last kill"
            job.kill(victim)
            time.sleep(chance.uniform(0, 8))
        assert job.process.wait(600) == 0, job.text
        assert wait_until(lambda: not left(job), 10)
        accounted_for(job)
        print(
            seed,
            json.loads(job.places.summary.read_text())["test_accuracy"],
            job.counts("restarts"),
            job.counts("lost"),
        )
        assert json.loads(job.places.summary.read_text())["test_accuracy"] > 0.97
