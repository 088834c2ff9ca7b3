"""Checkpoints: resuming changes no bit, a torn file is never taken for a whole one, and what is kept.

Runs here take place in this process, on the embedded digits. A run that keeps all its checkpoints is its own
reference: `rewind` copies its folder as a crash after a given step would have left it, and what the resumed run then
computes is compared with what the uninterrupted one did: every loss, every final weight and statistic, as recorded
by `tests.integration.recording` from the modules and not from the checkpoints.
"""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import fgpipe.export
import fgpipe.train
import fgpipe.trainers.session
from fgpipe.config import OptimConfig, compose_config
from fgpipe.data import Batches, load
from fgpipe.gradients.optim import Optimizer, Trained
from fgpipe.models.net import resnet, sequential
from fgpipe.plan.schedule import Apply, Forward, actions, drain
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest, config_hash, read_block, write_block
from fgpipe.trainers.oracle import OracleStep
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch
from tests.integration.recording import Recorded, record
from tests.integration.rewinding import rewind

BATCHES, SIZE = 6, 24
COMMON = [
    "epochs=4", f"data.train_samples={BATCHES * SIZE}", f"batch_size={SIZE}", "data.test_samples=50", "model.width=0.07",
    "threads=1", "device=cpu", "observe.tensorboard=false", "checkpoint.every_steps=4", "checkpoint.keep=100",
]  # fmt: skip
PLAIN = OptimConfig(momentum=0.9, weight_decay=0.0, lr=0.0)
METHODS = {
    "oracle": ["tangents=oracle", "window=1"],
    "oracle-ntk": ["tangents=oracle", "window=1", "guess=ntk", "space=activity", "optim.lr=0.02"],
    "lock-step": ["window=1", "scope=block"],
    "pipelined": ["window=auto", "scope=block"],
    "activity": ["window=auto", "space=activity", "guess=rademacher", "optim.lr=0.01"],
    "ntk": ["window=2", "guess=ntk", "space=activity", "head=linear", "target=intermediate", "target.depth=1"],
    "local": ["target=local"],
    "adamw": [
        "window=2",
        "scope=block",
        "optim.name=adamw",
        "optim.lr=0.003",
        "optim.decay_norms=false",
        "optim.clip=1",
    ],
    "asynchronous": ["guess=end_to_end", "schedule=async_1f1b", "optim.look_ahead=true"],
    "two versions": ["guess=end_to_end", "schedule=async_1f1b", "stash=two", "microbatches=8", "wire=int8"],
    "microbatches": ["guess=end_to_end", "microbatches=2", "wire=int8"],
    "coded": ["window=2", "lanes=1", "decode=predicted", "step=normalised"],
    "oracle-smoothed": ["tangents=oracle", "window=1", "lanes=1", "decode=smoothed", "step=normalised"],
}


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fgpipe.trainers.session, "Metrics", Recorded)


def recorded(folder: Path, name: str, overrides: list[str]) -> dict[str, np.ndarray]:
    record(folder, name, overrides)
    return dict(np.load(folder / f"{name}-0.npz"))


class Reference:
    """One uninterrupted run for each method, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, dict[str, np.ndarray]] = {}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._arrays:
            self._arrays[name] = recorded(self.folder, name, [*COMMON, *METHODS[name]])
        return self._arrays[name]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("uninterrupted"))


def differing(whole: dict[str, np.ndarray], resumed: dict[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not, bit for bit, the last part (losses) or all (weights) of the whole run's."""
    assert whole.keys() == resumed.keys()
    ends = {key: whole[key][-len(value) :] if key.startswith("loss") else whole[key] for key, value in resumed.items()}
    return [key for key, value in resumed.items() if not np.array_equal(ends[key], value)]


def lines(run: Path) -> list[dict]:
    """`metrics.jsonl` without what depends on the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "train_seconds"} for line in found]


@pytest.mark.parametrize("step", [2 * BATCHES, 8], ids=["2+2 epochs", "mid-epoch"])
@pytest.mark.parametrize("name", METHODS)
def test_resume_changes_nothing(name: str, step: int, reference: Reference, tmp_path: Path) -> None:
    whole = reference.arrays(name)
    rewind(reference.folder / name, tmp_path / name, step)
    resumed = recorded(tmp_path, name, [*COMMON, *METHODS[name], "resume=auto"])
    assert len(resumed["loss/True/7"]) == 4 * BATCHES - step, "it was resumed, and at the right batch"
    assert not differing(whole, resumed)
    assert lines(tmp_path / name) == lines(reference.folder / name)
    summaries = [json.loads((folder / name / "summary.json").read_text()) for folder in (tmp_path, reference.folder)]
    for key in ("epochs", "staleness", "test_accuracy", "bytes"):
        first, second = (summary[key] for summary in summaries)
        if key == "epochs":
            first, second = ([{**line, "train_seconds": None} for line in each] for each in (first, second))
        assert first == second, key
    assert summaries[0]["train_seconds"] == pytest.approx(sum(line["train_seconds"] for line in summaries[0]["epochs"]))
    assert (summaries[0]["resumed_at_step"], summaries[1]["resumed_at_step"]) == (step, 0)


def without_momentum(patch: pytest.MonkeyPatch, run: Path) -> None:
    """Left out of the files that are resumed from."""
    for file in (run / "checkpoints" / "step-8").glob("*.safetensors"):
        tensors = {key: value for key, value in safetensors.torch.load_file(file).items() if "momentum" not in key}
        safetensors.torch.save_file(tensors, file)
    patch.setattr(Checkpoints, "verified", Checkpoints.manifest)


def without_head(patch: pytest.MonkeyPatch, run: Path) -> None:
    read = fgpipe.trainers.saver.read_block
    last = 7
    patch.setattr(
        fgpipe.trainers.saver,
        "read_block",
        lambda folder, block, parts: read(folder, block, parts if block == last else {"block": parts["block"]}),
    )


def without_statistics(patch: pytest.MonkeyPatch, run: Path) -> None:
    load = nn.Module.load_state_dict

    def load_parameters(self, state, **options):
        return load(self, {**state, **{name: buffer.clone() for name, buffer in self.named_buffers()}}, **options)

    patch.setattr(nn.Module, "load_state_dict", load_parameters)


def without_step(patch: pytest.MonkeyPatch, run: Path) -> None:
    """The next batch gets the id, and so the draws, of the one after it."""
    train = OracleStep.run

    def late(self: OracleStep, batch: Batch) -> Iterator[Message]:
        return train(self, replace(batch, id=batch.id + 1) if batch.training else batch)

    patch.setattr(OracleStep, "run", late)


@pytest.mark.parametrize("forget", [without_momentum, without_head, without_statistics, without_step])
def test_what_is_saved_is_needed(forget, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: leave one thing out, and the equality above does not hold."""
    name = "oracle-ntk" if forget is without_step else "oracle"
    whole = reference.arrays(name)
    rewind(reference.folder / name, tmp_path / name, 8)
    forget(monkeypatch, tmp_path / name)
    assert differing(whole, recorded(tmp_path, name, [*COMMON, *METHODS[name], "resume=auto"]))


def test_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 epochs, then the same run's checkpoint taken to 4 in a folder of its own, against 4 at once."""
    settings = [*COMMON, *METHODS["oracle"], "optim=constant", "optim.lr=0.02"]
    whole = recorded(tmp_path, "whole", settings)
    recorded(tmp_path, "half", [*settings, "epochs=2"])
    longer = recorded(tmp_path, "longer", [*settings, f"resume={tmp_path / 'half'}"])
    assert len(longer["loss/True/7"]) == 2 * BATCHES and not differing(whole, longer)
    assert lines(tmp_path / "longer") == lines(tmp_path / "whole")
    capsys.readouterr()
    assert fgpipe.train.main([*settings, f"resume={tmp_path / 'half'}", "epochs=1"]) == 2
    assert "epochs=1: allowed: at least 2, which 12 steps of" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["pipelined", "coded"])
def test_export(method: str, reference: Reference, tmp_path: Path) -> None:
    """The exported net, in an ordinary module, tested by a loop of its own."""
    reference.arrays(method)
    run, file = reference.folder / method, tmp_path / "net.safetensors"
    assert fgpipe.export.main([str(run), str(file)]) == 0
    config = compose_config([*COMMON, *METHODS[method]])
    net = sequential(resnet(config.model, config.head, in_channels=1, classes=10)).to_empty(device="cpu").eval()
    tensors = safetensors.torch.load_file(file)
    assert tensors.keys() == net.state_dict().keys(), "all blocks and the classifier, and no head"
    net.load_state_dict(tensors)
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed)
    with torch.no_grad():
        right = sum(
            (net(images).argmax(1) == labels).sum().item()
            for images, labels in map(batches.test, range(batches.test_batches))
        )
    assert right / len(dataset.test_labels) == json.loads((run / "summary.json").read_text())["test_accuracy"]


def nothing(run: Path) -> None:
    pass


def damage_all(run: Path) -> None:
    for folder in (run / "checkpoints").glob("step-*"):
        (folder / "block-3.json").unlink()


def not_ours(run: Path) -> None:
    (run / "config.yaml").unlink()


def untested(run: Path) -> None:
    """As elastic blocks leave it, which have made all their steps."""
    checkpoints = Checkpoints(run)
    checkpoints.publish(replace(checkpoints.manifest(4 * BATCHES), epochs=[], test_accuracy=None))


BAD = {
    "no such run": (nothing, ["resume=nowhere"], "resume=nowhere: allowed: auto, or a run's folder"),
    "auto without a folder": (nothing, ["resume=auto", "run_dir=null"], "resume=auto: allowed: with run_dir=FOLDER"),
    "another learning rate": (
        nothing,
        ["resume=RUN", "optim.lr=0.5"],
        "its run has optim.lr=0.05 (here 0.5); allowed to differ",
    ),
    "another length of one cycle": (nothing, ["resume=RUN", "epochs=5"], "its run has epochs=4 (here 5)"),
    "other data": (nothing, ["resume=RUN", "data.train_samples=96"], "data.train_samples=144 (here 96)"),
    "finished, and another": (
        nothing,
        ["resume=auto", "run_dir=RUN", "seed=3"],
        "the run in it is finished, with seed=0 (here 3)",
    ),
    "in use": (nothing, ["run_dir=RUN"], "a folder that does not exist yet or is empty; resume=auto goes on"),
    "nothing of ours": (not_ours, ["resume=auto", "run_dir=RUN"], "an unfinished run's folder"),
    "all damaged": (damage_all, ["resume=RUN"], "no complete checkpoint is left"),
    "nothing left": (untested, ["resume=RUN"], "nothing is left to train; its elastic blocks, started again, test"),
    "every 0 steps": (
        nothing,
        ["checkpoint.every_steps=0"],
        "checkpoint.every_steps=0: allowed: a whole number of at least 1",
    ),
    "keep none": (nothing, ["checkpoint.keep=0"], "checkpoint.keep=0: allowed"),
    "no minutes": (nothing, ["checkpoint.every_minutes=-1"], "checkpoint.every_minutes=-1: allowed"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input(case, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, overrides, expected = case
    reference.arrays("oracle")
    run = tmp_path / "old"
    shutil.copytree(reference.folder / "oracle", run)
    spoil(run)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    arguments = [*COMMON, *METHODS["oracle"], f"run_dir={tmp_path / 'new'}", *overrides]
    assert fgpipe.train.main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("fgpipe: passed over")]
    assert len(error) == 1 and error[0].startswith("fgpipe: ") and expected in error[0], error
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written and nothing is lost"


def test_finished_is_said(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again does nothing, and succeeds."""
    reference.arrays("oracle")
    run = reference.folder / "oracle"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert fgpipe.train.main([*COMMON, *METHODS["oracle"], f"run_dir={run}", "resume=auto"]) == 0
    assert "is finished: test accuracy" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_begun_without_a_checkpoint(reference: Reference, tmp_path: Path) -> None:
    """Killed before, or in, the first checkpoint: `auto` starts afresh, and metrics are not doubled."""
    whole = reference.arrays("oracle")
    run = rewind(reference.folder / "oracle", tmp_path / "oracle", 4)
    (run / "checkpoints" / "step-4" / "manifest.json").unlink()
    again = recorded(tmp_path, "oracle", [*COMMON, *METHODS["oracle"], "resume=auto"])
    assert len(again["loss/True/7"]) == 4 * BATCHES and not differing(whole, again)
    assert lines(run) == lines(reference.folder / "oracle")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncated, flipped, Path.unlink])
@pytest.mark.parametrize("file", ["block-2.safetensors", "block-5.json", "manifest.json"])
def test_torn_files_are_passed_over(spoil, file: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save(tmp_path, step)
    if (spoil, file) == (flipped, "manifest.json"):
        path = checkpoints.folder(2) / file
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    else:
        spoil(checkpoints.folder(2) / file)
    told: list[str] = []
    found = checkpoints.newest(told.append)
    assert found is not None and found.step == 1
    gone = file == "manifest.json" and spoil is Path.unlink
    assert gone or (len(told) == 1 and str(checkpoints.folder(2) / file) in told[0])
    truncated(checkpoints.folder(1) / file)
    with pytest.raises(CheckpointError, match="damaged|cannot be read"):
        checkpoints.newest(told.append)


def save(run: Path, step: int, accuracy: float | None = None, blocks: int = 8) -> None:
    """A checkpoint with small tensors, through the functions that runs use."""
    folder, config = Checkpoints(run).folder(step), {"seed": 0}
    files = {
        name: stored
        for block in range(blocks)
        for name, stored in write_block(folder, block, {"block": small(step)}, {"step": step}).items()
    }
    Checkpoints(run).publish(Manifest(step, step, 0, accuracy, config, config_hash(config), [], 0.0, 0, files))


def small(value: float, steps: int = 1) -> Trained:
    module = nn.Linear(2, 2).requires_grad_(True)
    optimizer = Optimizer([module], PLAIN, lambda batch: 0.0)
    for _ in range(steps):
        optimizer.step([torch.full_like(parameter, value) for parameter in module.parameters()], 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return Trained(module, optimizer)


def test_block_round_trip(tmp_path: Path) -> None:
    one, other = small(3.0), small(5.0, steps=2)
    write_block(tmp_path, 0, {"block": one}, {"anything": [1, 0.1]})
    assert read_block(tmp_path, 0, {"block": other}) == {"anything": [1, 0.1]}
    assert all((parameter == 3).all() for parameter in other.module.parameters())
    assert one.optimizer is not None and other.optimizer is not None
    for restored, saved in zip(other.optimizer.state()["momentum"], one.optimizer.state()["momentum"], strict=True):
        assert saved is not None and restored is not None and saved.abs().min() > 2 and torch.equal(restored, saved)


def test_another_grouping_is_another_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line; the exported net of two modules is the plain net of those blocks."""
    keys = [*COMMON, "model=resnet18_2", "target=local", "checkpoint.every_steps=8", f"run_dir={tmp_path / 'run'}"]
    assert fgpipe.train.main(keys) == 0
    capsys.readouterr()
    other = [*COMMON, "model=resnet18_4", "target=local", f"resume={tmp_path / 'run'}", f"run_dir={tmp_path / 'new'}"]
    assert fgpipe.train.main(other) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "model.modules=[4, 4] (here [2, 2, 2, 2])" in line
    fgpipe.export.export(tmp_path / "run", tmp_path / "net.safetensors")
    config = compose_config(keys)
    net = sequential(resnet(config.model, config.head, in_channels=1, classes=10)).to_empty(device="cpu")
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))


def test_another_net_is_refused(tmp_path: Path) -> None:
    write_block(tmp_path, 0, {"block": small(3.0)}, {})
    net = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match="does not fit block 0"):
        read_block(tmp_path, 0, {"block": Trained(net, Optimizer([net], PLAIN, lambda batch: 0.0))})


@pytest.mark.parametrize(
    "accuracies, kept",
    [
        ([0.1, 0.9, 0.5, 0.6, 0.7], [2, 4, 5]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [4, 5]),
        ([None, None, None, None, None], [4, 5]),
        ([0.5, None, 0.5, None, None], [1, 4, 5]),
        ([0.5], [1]),
    ],
)
def test_the_last_two_and_the_best_are_kept(accuracies: list[float | None], kept: list[int], tmp_path: Path) -> None:
    for step, accuracy in enumerate(accuracies, start=1):
        save(tmp_path, step, accuracy, blocks=1)
        Checkpoints(tmp_path).prune(keep=2)
    assert Checkpoints(tmp_path).steps() == kept
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == sorted(
        f"step-{step}" for step in kept
    )
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step-{kept[-1]}\n"


def test_a_damaged_old_one_is_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, blocks=1)
    truncated(Checkpoints(tmp_path).folder(2) / "manifest.json")
    Checkpoints(tmp_path).prune(keep=5)
    assert Checkpoints(tmp_path).steps() == [1, 3] and not Checkpoints(tmp_path).folder(2).exists()


def test_one_that_cannot_be_read_now_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or a network that fails for a moment costs no checkpoint."""
    for step in (1, 2, 3):
        save(tmp_path, step, blocks=1)
    read = Path.read_text

    def failing(path: Path, *rest: Any, **options: Any) -> str:
        if "step-3" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *rest, **options)

    monkeypatch.setattr(Path, "read_text", failing)
    Checkpoints(tmp_path).prune(keep=5)
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]


def test_going_back(tmp_path: Path) -> None:
    """After a damaged newest one is passed over, it is gone, and the pointer is right again."""
    for step in (1, 2, 3):
        save(tmp_path, step, blocks=1)
    (tmp_path / "checkpoints" / "step-4").mkdir()
    Checkpoints(tmp_path).discard(after=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-1", "step-2"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-2\n"


def test_a_run_keeps_the_last_two_and_the_best(tmp_path: Path) -> None:
    record(tmp_path, "run", [*COMMON, *METHODS["oracle"], "checkpoint.keep=2"])
    accuracies = [line["test"]["7"]["accuracy"] for line in lines(tmp_path / "run")]
    best = BATCHES * (1 + accuracies.index(max(accuracies)))
    assert Checkpoints(tmp_path / "run").steps() == sorted({best, 20, 24})


def test_nothing_is_saved_by_default(tmp_path: Path) -> None:
    settings = [setting for setting in COMMON if not setting.startswith("checkpoint")]
    record(tmp_path, "run", [*settings, *METHODS["oracle"], "epochs=1"])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_names_in_the_manifest(reference: Reference) -> None:
    """The files of all blocks, with the sizes that they have."""
    reference.arrays("oracle")
    folder = Checkpoints(reference.folder / "oracle").folder(24)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {*manifest["files"]} == {f"block-{j}.{kind}" for j in range(8) for kind in ("json", "safetensors")}
    assert all((folder / name).stat().st_size == stored["bytes"] for name, stored in manifest["files"].items())
    assert {field.name for field in dataclasses.fields(Manifest)} == manifest.keys()


def test_drain() -> None:
    """Window 3, batches 0 to 5; a drain after batch 2 leaves the scalars of 0, 1 and 2 to be applied."""
    pending = list(actions(range(6), 3, waits=True))
    assert pending[:4] == [Forward(0), Forward(1), Forward(2), Apply(0)]
    assert list(drain(pending[3:], 2)) == [Apply(0), Apply(1), Apply(2)]
    assert list(drain([Forward(3)], 2)) == []
