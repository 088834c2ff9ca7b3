"""`run` in a user's program: what it leaves as it was, whom it gives figures, and what a finished run does to a net."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgpipe.config import Config, compose_config
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.saving.checkpoint import Checkpoints
from fgpipe.trainers.session import run
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch
from tests.integration.launching import environment

SMALL = [
    "epochs=2", "data.train_samples=64", "batch_size=16", "data.test_samples=16", "device=cpu", "threads=1",
    "observe.tensorboard=false", "scope=block", "optim=constant", "optim.lr=0.01",
]  # fmt: skip
SAVING = [*SMALL, "resume=auto", "checkpoint.every_steps=4"]


def net(channels: int = 4) -> Net:
    """Other numbers each time."""
    blocks = [
        nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()),
        nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU()),
    ]
    heads = [Head(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * each, 10)) for each in (channels, 8)]
    return Net(blocks, heads)


def weights(own: Net) -> dict[str, torch.Tensor]:
    parts = {"block": own.blocks, "head": own.heads}
    return {
        f"{part} {j} {name}": tensor
        for part, modules in parts.items()
        for j, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def into(folder: Path, *overrides: str) -> Config:
    return compose_config([f"run_dir={folder}", *overrides])


def test_finished_run_gives_a_net_its_weights(tmp_path: Path) -> None:
    """All of them, heads and statistics too, bit for bit as the run left them in the net that it trained."""
    trained, other = net(), net()
    figures = run(into(tmp_path / "run", *SAVING), trained)
    assert figures["parameters"] == [9 * 4 + 4 + 2 * 4, 9 * 4 * 8 + 8]
    assert run(into(tmp_path / "run", *SAVING), other)["test_accuracy"] == figures["test_accuracy"]
    wanted, found = weights(trained), weights(other)
    assert wanted.keys() == found.keys() and len(wanted) == 13
    assert not [name for name, tensor in wanted.items() if not torch.equal(tensor, found[name])]


def lose_last(run: Path) -> None:
    (Checkpoints(run).folder(8) / "manifest.json").unlink()


def damage_all(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*/block-0.safetensors"):
        path.write_bytes(b"")


LOST: dict[str, tuple[Any, list[str], Net, str]] = {
    "nothing saved": (
        None,
        [*SMALL, "resume=auto"],
        net(),
        "and has no checkpoint of its end for the net that is given",
    ),
    "the last one lost": (lose_last, SAVING, net(), "and has no checkpoint of its end for the net that is given"),
    "damaged": (damage_all, SAVING, net(), "block-0.safetensors is damaged: 0 bytes"),
    "another net": (None, SAVING, net(channels=6), "block-0.safetensors does not fit block 0"),
}


@pytest.mark.parametrize("case", LOST.values(), ids=LOST.keys())
def test_finished_run_without_its_weights(case, tmp_path: Path) -> None:
    """Refused in one line: a net is never left untrained."""
    spoil, overrides, given, expected = case
    run(into(tmp_path / "run", *overrides), net())
    if spoil is not None:
        spoil(tmp_path / "run")
    with pytest.raises(UserError, match=expected) as error:
        run(into(tmp_path / "run", *overrides), given)
    assert str(error.value).startswith(
        f"run_dir={tmp_path / 'run'}: allowed: another folder, as the run in it is finish"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ranks", [[0, 1], [1, 0]])
def test_who_reports_a_finished_run(
    ranks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process of the last block, wherever it stands: the one that reports a run which is not finished yet."""
    (tmp_path / "placement.yaml").write_text(f"ranks: {ranks}")
    overrides = [*SAVING, "model.width=0.07", f"placement={tmp_path / 'placement.yaml'}"]
    run(into(tmp_path / "run", *SAVING, "model.width=0.07"))
    capsys.readouterr()
    of_torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        figures = run(into(tmp_path / "run", *overrides))
        if rank == ranks[-1]:
            assert figures == json.loads((tmp_path / "run" / "summary.json").read_text())
            assert "is finished: test accuracy" in capsys.readouterr().out
        else:
            assert figures == {} and capsys.readouterr().out == ""


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_else_is_changed(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, and who shows warnings."""
    seen: dict[str, Any] = {}
    forward = nn.AdaptiveAvgPool2d.forward

    def look(self: nn.AdaptiveAvgPool2d, x: torch.Tensor) -> torch.Tensor:
        seen["threads"], seen["shows"] = torch.get_num_threads(), warnings.showwarning
        return forward(self, x)

    def fail(self: Stage, given: Any) -> Iterator[Message]:
        if isinstance(given, Batch) and not given.training:
            raise KeyError("a mistake")
        return work(self, given)

    def show(*arguments: object) -> None:
        pass

    monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", look)
    monkeypatch.setattr(warnings, "showwarning", show)
    work, threads = Stage.run, torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        if ends == "well":
            run(into(tmp_path / "run", *SMALL), net())
        else:
            monkeypatch.setattr(Stage, "run", fail)
            with pytest.raises(KeyError):
                run(into(tmp_path / "run", *SMALL), net())
        assert torch.get_num_threads() == 3 and seen["threads"] == 1
        assert warnings.showwarning is show and seen["shows"] is not show
    finally:
        torch.set_num_threads(threads)


FAULTS = """
import resource, sys, torch
import fgpipe.trainers.session, fgpipe.train
from fgpipe.config import compose_config
overrides = sys.argv[2:]
fgpipe.train.main(overrides) if sys.argv[1] == "command" else fgpipe.trainers.session.run(compose_config(overrides))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    before = faults()
    torch.ones(100 << 18)
print(faults() - before)
"""
"""Prints the page faults of a large buffer, after a run."""


@pytest.mark.parametrize("how, kept", [("command", True), ("library", False)])
def test_allocator(how: str, kept: bool, tmp_path: Path) -> None:
    """The command keeps freed memory; a program that calls `run` keeps the C library as it is."""
    arguments = [how, f"run_dir={tmp_path / 'run'}", *SMALL, "model.width=0.07"]
    variables = {name: value for name, value in environment().items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    faults = int(done.stdout.splitlines()[-1])
    assert faults < 10 if kept else faults > 40, faults
