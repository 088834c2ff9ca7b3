"""Replicas of the pipeline in real processes, against one process that takes the shares of a batch one by one."""

import copy
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.gradients.guesses import redraw
from fgpipe.gradients.oracle import estimate
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.saving.checkpoint import Checkpoints
from fgpipe.trainers.learner import Learner
from tests.integration.launching import ROOT, Job, fork, wait_until
from tests.integration.rewinding import rewind
from tests.integration.test_resume import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS, BATCH, REPLICAS = 6, 32, 2
COMMON = [
    "epochs=2", f"data.train_samples={STEPS * BATCH // 2}", f"batch_size={BATCH}", "data.test_samples=50", "optim=constant",
    "model.width=0.07", "head.hidden=64", "threads=1", "device=cpu", "observe.tensorboard=false",
]  # fmt: skip
EXACT = {
    "local": [],
    "gaussian": ["guess=gaussian", "scope=block", "optim.lr=0.01"],
    "ntk": ["guess=ntk", "head=linear", "scope=block", "target=intermediate"],
    "activity": ["space=activity", "scope=batch"],
    "gaussian-activity": ["guess=gaussian", "space=activity", "scope=batch", "optim.lr=0.01"],
    "greedy": ["target=local"],
    "backpropagation": ["guess=end_to_end", "microbatches=1"],
}
"""In lock-step, and where forward mode is exact."""
PIPELINED = {
    "auto": ["window=auto", "scope=block"],
    "three": ["window=3", "scope=block", "target=intermediate"],
    "samples": ["window=auto", "space=activity", "guess=gaussian", "optim.lr=0.01"],
    "coded": ["window=auto", "space=activity", "lanes=2"],
    "greedy-auto": ["window=auto", "target=local"],
    "1f1b": ["guess=end_to_end", "schedule=1f1b", "microbatches=4", "observe.heads=true"],
}
Arrays = dict[str, np.ndarray]


def recorded(folder: Path, processes: int, runs: dict[str, list[str]]) -> dict[str, list[Arrays]]:
    """Arrays that each replica of each run recorded; runs may go on in their folders."""
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps({name: [*COMMON, *more] for name, more in runs.items()}))
    done = fork(processes, str(ROOT / "tests/integration/recording.py"), str(folder), timeout=500)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Arrays]] = {}
    for name in runs:
        found[name] = []
        for ranks in np.split(np.arange(processes), min(REPLICAS, processes)):
            found[name].append({})
            for rank in ranks:
                with np.load(folder / f"{name}-{rank}.npz") as file:
                    found[name][-1].update(file)
    return found


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Arrays]]]:
    """Two replicas of two processes."""
    folder = tmp_path_factory.mktemp("four")
    exact = {name: [*more, "window=1", "dtype=float64", "replicas=2"] for name, more in EXACT.items()}
    return folder, recorded(folder, 4, exact | {name: [*more, "replicas=2"] for name, more in PIPELINED.items()})


class Reference:
    """One process and plain loops: each share of a batch through a copy of the net, the mean of the oracle's estimates."""

    def __init__(self, overrides: list[str], shares: int) -> None:
        config = compose_config([*COMMON, *overrides, "window=1", "dtype=float64"])
        dataset = load(config.data)
        self.batches = Batches(dataset, config.data, config.batch_size, config.seed, torch.float64)
        plan = Plan.make(config, DataFacts.of(dataset, self.batches, config.data.size))
        modules = [Learner.make(plan, j, torch.device("cpu")) for j in range(8)]
        nets = ([getattr(each, kind) for each in modules] for kind in ("block", "head", "guess_head"))
        self.copies = [copy.deepcopy(net) for net in [tuple(nets)] * shares]
        self.config, self.method, self.shares = config, plan.method, shares
        optim = config.optim
        trained = [parameter for module in self.modules(0) for parameter in module.parameters()]
        self.sgd = torch.optim.SGD(trained, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)

    def modules(self, share: int) -> list[torch.nn.Module]:
        """Modules that are trained."""
        blocks, heads, _ = self.copies[share]
        return [*blocks, *(head for head in heads if head is not None)]

    def train(self) -> None:
        per_epoch = self.batches.train_batches
        for step in range(2 * per_epoch):
            images, labels = self.batches.train(step // per_epoch, step % per_epoch)
            pairs = zip(images.chunk(self.shares), labels.chunk(self.shares), strict=True)
            found = [self._estimates(share, step, *pair) for share, pair in enumerate(pairs)]
            for tensors in zip(self._trained(), *found, strict=True):
                tensors[0].grad = sum(tensors[1:]) / self.shares
            self.sgd.step()
            for share in range(1, self.shares):
                for own, first in zip(self._trained(share), self._trained(), strict=True):
                    own.data.copy_(first.data)
            if (step + 1) % per_epoch == 0:
                self._average_statistics()

    def _trained(self, share: int = 0) -> list[torch.nn.Parameter]:
        return [parameter for module in self.modules(share) for parameter in module.parameters()]

    def _estimates(self, share: int, step: int, images: Tensor, labels: Tensor) -> list[Tensor]:
        blocks, heads, guess_heads = self.copies[share]
        for j, head in enumerate(guess_heads):
            if head is not None:
                redraw(head, self.method.guess, self.config.seed, j, step)
        key = step * self.shares + share if self.method.space == "activity" else step
        found = estimate(self.method, blocks, heads, guess_heads, images, labels, seed=self.config.seed, batch=key)
        return [tensor for group in (*found.blocks, *found.heads) for tensor in group.values()]

    def _average_statistics(self) -> None:
        for buffers in zip(
            *([b for m in self.modules(share) for b in m.buffers()] for share in range(self.shares)), strict=True
        ):
            if buffers[0].is_floating_point():
                mean = sum(buffers) / self.shares
                for buffer in buffers:
                    buffer.copy_(mean)

    def arrays(self) -> Arrays:
        blocks, heads, _ = self.copies[0]
        found = {}
        for kind, modules in (("block", blocks), ("head", heads)):
            for j, module in enumerate(modules):
                for key, tensor in (module.state_dict() if module is not None else {}).items():
                    found[f"{kind}/{j}/{key}"] = tensor.double().numpy()
        return found

    @torch.no_grad()
    def test_loss(self) -> float:
        """The net's own, over the whole test part at once."""
        blocks, heads, _ = self.copies[0]
        images, labels = (
            torch.cat(parts) for parts in zip(*map(self.batches.test, range(self.batches.test_batches)), strict=True)
        )
        for module in self.modules(0):
            module.eval()
        for block in blocks:
            images = block(images)
        return heads[-1].losses(images, labels)[0].mean().item()


def error(got: Arrays, want: Arrays) -> float:
    """The largest relative error of any tensor."""
    assert {key for key in got if not key.startswith("loss")} == want.keys()
    sizes = {
        key: (float(np.linalg.norm(got[key] - value)), float(np.linalg.norm(value))) for key, value in want.items()
    }
    return max(off / max(size, 1e-12) for off, size in sizes.values())


@pytest.mark.parametrize("name", EXACT)
def test_mean_of_the_shares(name: str, four) -> None:
    """Every parameter and running statistic after 6 steps, and the test loss; in float64, to 1e-9."""
    folder, runs = four
    reference = Reference(EXACT[name], REPLICAS)
    reference.train()
    for arrays in runs[name]:
        assert error(arrays, reference.arrays()) < 1e-9
    epochs = json.loads((folder / name / "summary.json").read_text())["epochs"]
    assert epochs[-1]["test"]["7"]["loss"] == pytest.approx(reference.test_loss(), rel=1e-9)
    assert epochs[-1]["test"]["7"]["samples"] == 50 and epochs[-1]["train"]["7"]["samples"] == STEPS // 2 * BATCH


@pytest.mark.parametrize("name", ["local", "backpropagation"])
def test_the_whole_batch_is_another_matter(name: str, four) -> None:
    """Batch norm's statistics are a share's, and so is the guess: the comparison above can fail."""
    reference = Reference(EXACT[name], 1)
    reference.train()
    assert error(four[1][name][0], reference.arrays()) > 1e-3


@pytest.mark.parametrize("name", [*EXACT, *PIPELINED])
def test_replicas_stay_equal(name: str, four) -> None:
    """Bit for bit, in parameters and statistics; but they saw different samples."""
    first, second = four[1][name]
    assert first.keys() == second.keys()
    differing = {key for key, value in first.items() if not np.array_equal(value, second[key])}
    assert differing and all(key.startswith("loss") for key in differing), sorted(differing)[:5]
    assert len(first["loss/True/7"]) == STEPS
    assert {len(each["loss/False/7"]) for each in (first, second)} == {4}, "of 4 test batches of 16, two each, twice"


@pytest.mark.long
def test_processes_change_nothing(four, tmp_path: Path) -> None:
    """Two replicas of one process and of two: the same bits, whatever the timing."""
    two = recorded(tmp_path / "two", 2, {name: [*more, "replicas=2"] for name, more in PIPELINED.items()})
    for name, replicas in two.items():
        for one_process, two_processes in zip(replicas, four[1][name], strict=True):
            differing = [key for key, value in one_process.items() if not np.array_equal(value, two_processes[key])]
            assert one_process.keys() == two_processes.keys() and not differing, f"{name}: {differing[:5]}"


def test_averages_are_a_plane_of_their_own(four) -> None:
    """One message per update of a block or head, and one for the statistics of each drain; no scalar goes astray."""
    summary = json.loads((four[0] / "auto" / "summary.json").read_text())
    config = compose_config([*COMMON, *PIPELINED["auto"]])
    plan = Plan.make(config, DataFacts(3, 4, 10, 1, config.data.size, config.data.size))
    for j, (block, head) in enumerate(zip(plan.net.blocks, plan.net.heads, strict=True)):
        parameters, statistics = (
            sum(tensor.numel() for module in (block, head) for tensor in tensors(module) if tensor.is_floating_point())
            for tensors in (torch.nn.Module.parameters, torch.nn.Module.buffers)
        )
        sent = summary["bytes"][f"{j}->{j}"]["averages"]
        assert sent == {
            "bytes": REPLICAS * 4 * (STEPS * parameters + 2 * statistics),
            "messages": REPLICAS * (2 * STEPS + 2),
        }
    downward = {link: kinds for link, kinds in summary["bytes"].items() if int(link[0]) > int(link[-1])}
    assert downward and all(kinds.keys() == {"feedback"} for kinds in downward.values())
    assert all(kinds["feedback"]["messages"] == REPLICAS * STEPS for kinds in downward.values())
    assert summary["replicas"] == 2 and summary["ranks"] == [[0, 1], [2, 3]] and summary["world_size"] == 4


def test_resumed(tmp_path: Path) -> None:
    """Saved in mid-epoch by replica 0 alone; two replicas go on bit for bit, and one process goes on with it."""
    runs = {"pipelined": ["window=auto", "scope=block", "checkpoint.every_steps=2", "checkpoint.keep=100"]}
    twice = {name: [*more, "replicas=2"] for name, more in runs.items()}
    whole = recorded(tmp_path / "whole", 2, twice)["pipelined"]
    for name in ("again", "alone"):
        (tmp_path / name).mkdir()
        rewind(tmp_path / "whole" / "pipelined", tmp_path / name / "pipelined", 2)
    for more in (runs, twice):
        more["pipelined"].append("resume=auto")
    again = recorded(tmp_path / "again", 2, twice)["pipelined"]
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert len(resumed["loss/True/7"]) == STEPS - 2
        for key, value in resumed.items():
            assert np.array_equal(
                value, uninterrupted[key][-len(value) :] if key.startswith("loss") else uninterrupted[key]
            ), key
    lines = [
        [
            {**json.loads(line), "train_seconds": None}
            for line in (tmp_path / name / "pipelined/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "again")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    traffic = [
        json.loads((tmp_path / name / "pipelined/summary.json").read_text())["bytes"] for name in ("whole", "again")
    ]
    assert traffic[0] == traffic[1]
    alone = recorded(tmp_path / "alone", 1, runs)["pipelined"][0]
    assert len(alone["loss/True/7"]) == STEPS - 2 and alone.keys() == whole[0].keys()
    summary = json.loads((tmp_path / "alone/pipelined/summary.json").read_text())
    assert (summary["resumed_at_step"], summary["replicas"], summary["ranks"]) == (2, 1, [0])


@pytest.mark.long
def test_sigterm(tmp_path: Path) -> None:
    """The signal reaches the replicas at different moments, here one of them only: all drain at the same batch."""
    overrides = [*COMMON, "replicas=2", "epochs=500", "window=auto", "checkpoint.every_steps=3"]
    with Run(tmp_path / "run", 2, *overrides, "resume=auto") as job:
        job.wait_for_step(3)
        os.kill(job.workers()[1], signal.SIGTERM)
        assert job.process.wait(timeout=60) != 0
        assert set(re.findall(r"exitcode\s*: (-?\d+)", job.text)) == {"75"}, job.text
        newest = job.newest
        assert newest is not None and f"step-{newest.step} on SIGTERM" in job.text
    with Run(tmp_path / "run", 2, *overrides, "resume=auto") as again:
        again.wait_for_step(newest.step + 3)


@pytest.mark.parametrize("signum", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_lost_replica(signum: signal.Signals, tmp_path: Path) -> None:
    """A mean that waits for a stopped or dead process ends by the deadline, and names the block and the replica."""
    deadline = 6
    overrides = [*COMMON, "replicas=2", "epochs=500", f"deadline={deadline}", "target=local"]
    with Job(tmp_path / "run", 2, *overrides) as job:
        assert wait_until(lambda: "epoch 2/500:" in job.text, 200), job.text
        workers = job.workers()
        os.kill(workers[1], signum)
        began = time.monotonic()
        assert wait_until((job.run / "verdict.json").exists, 3 * deadline), job.text
        verdict = json.loads((job.run / "verdict.json").read_text())
        state = "stopped" if signum == signal.SIGSTOP else "gone"
        assert verdict["cause"] == f"[blocks 0-7, replica 1] rank 1 (pid {workers[1]}) is {state}", verdict
        if signum == signal.SIGSTOP:  # torchrun's SIGTERM may come before a dead process's connection breaks
            assert time.monotonic() - began > deadline - 2
            said = r"\[blocks 0-7, replica 0\] error: (replica 0 lost replica 1 \(rank 1\) of block \d in their mean|a sum over)"
            assert re.search(said, job.text), job.text
        assert job.process.wait(timeout=60) != 0


def test_replica_that_does_not_come() -> None:
    """The start waits for its process group by the deadline, not for the half hour that is gloo's own."""
    done = fork(2, str(ROOT / "tests/integration/peerless.py"), "4", timeout=120)
    seconds, said = done.stdout.split(maxsplit=1)
    assert 4 <= float(seconds) < 60 and "start: no process group of ranks 0, 1, which have the same blocks: " in said, (
        done.stdout
    )


def test_placed(four, tmp_path: Path) -> None:
    """Replicas whose ranks are listed in a file, across one another: the same bits."""
    (tmp_path / "placement.yaml").write_text("ranks: [[3, 0], [1, 2]]")
    folder = tmp_path / "placed"
    folder.mkdir()
    overrides = [*COMMON, *PIPELINED["auto"], "replicas=2", f"placement={tmp_path / 'placement.yaml'}"]
    (folder / "runs.json").write_text(json.dumps({"auto": overrides}))
    done = fork(4, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    for replica, ranks in enumerate(((3, 0), (1, 2))):
        placed: Arrays = {}
        for rank in ranks:
            with np.load(folder / f"auto-{rank}.npz") as file:
                placed.update(file)
        wanted = four[1]["auto"][replica]
        assert placed.keys() == wanted.keys() and all(np.array_equal(placed[key], wanted[key]) for key in wanted)
    assert Checkpoints(folder / "auto").steps() == []
