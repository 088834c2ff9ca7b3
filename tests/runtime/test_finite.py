"""NaN and infinity: the run ends at the block where they first show, and its line names block, number and batch."""

from pathlib import Path

import pytest
import torch

from fgpipe.config import compose_config
from fgpipe.errors import LinkError, NotFiniteError
from fgpipe.trainers.findings import Findings
from fgpipe.trainers.session import run
from fgpipe.wire.batch import Batch
from tests.runtime.poison import KINDS, poison

VALUES = [float("nan"), float("inf"), float("-inf")]


def check(tensor: torch.Tensor, block: int, what: str) -> None:
    """What a step's findings say of a tensor, and nothing else."""
    findings = Findings()
    findings.finite(tensor, block, what)
    assert not list(findings.send().read())


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", [0, 1234, 8 * 3 * 8 * 8 - 1])
def test_one_is_enough(value: float, place: int) -> None:
    tensor = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    check(tensor, 3, "activation of batch 17")
    torch.as_strided(tensor, (tensor.numel(),), (1,))[place] = value
    with pytest.raises(NotFiniteError, match="^activation of batch 17 is not finite$") as caught:
        check(tensor, 3, "activation of batch 17")
    assert caught.value.block == 3


def test_opposite_infinities_do_not_cancel() -> None:
    with pytest.raises(NotFiniteError):
        check(torch.tensor([float("inf"), float("-inf"), 1.0]), 0, "x")


def test_large_is_not_infinite() -> None:
    """The sum overflows, no term does."""
    check(torch.full((10,), 3e38), 0, "x")


RUN = [
    "epochs=1", "batch_size=32", "data.train_samples=128", "data.test_samples=32", "model.width=0.125", "threads=1",
    "device=cpu", "observe.tensorboard=false",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES[:2])
@pytest.mark.parametrize("kind, block, named", KINDS)
def test_stopped_where_it_first_shows(
    kind: str, block: int, named: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    poison(kind, block, batch=2, value=value, replace=monkeypatch.setattr)
    with pytest.raises(NotFiniteError):
        run(compose_config([*RUN, f"run_dir={tmp_path / 'run'}"]))
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [f"[block {block}] error: {named} is not finite"]


@pytest.mark.parametrize("tangents", ["forward", "oracle"])
def test_without_poison_the_run_ends_well(tangents: str, tmp_path: Path) -> None:
    overrides = [*RUN, f"tangents={tangents}", "window=1", f"run_dir={tmp_path / 'run'}"]
    assert "test_accuracy" in run(compose_config(overrides))


def test_the_oracle_stops_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle stops by a learning rate that no net survives."""
    with pytest.raises(NotFiniteError):
        run(compose_config([*RUN, "optim.lr=1e30", "tangents=oracle", "window=1", f"run_dir={tmp_path / 'run'}"]))
    assert "] error: loss of batch " in capsys.readouterr().err


def test_a_program_may_go_on(tmp_path: Path) -> None:
    """The failed run of a pipeline leaves no process group, which another could not have."""
    pipeline = ["guess=end_to_end", "microbatches=2", "optim.lr=1e30"]
    for number in range(2):
        with pytest.raises(NotFiniteError):
            run(compose_config([*RUN, *pipeline, f"run_dir={tmp_path / str(number)}"]))


def test_the_block_below_is_to_blame() -> None:
    """A block that was given a NaN does not say that it made one."""
    x = torch.randn(4, 3)
    for given, error in ((x, NotFiniteError), (x / 0, LinkError)):
        findings = Findings(Batch(2, 0, True, given, torch.zeros(4, dtype=torch.int64)))
        findings.finite(torch.full((4, 3), float("nan")), 3, "activation of batch 2")
        with pytest.raises(error) as caught:
            list(findings.send().read())
    assert str(caught.value) == "block 2 sent batch 2 with NaN or infinity" and caught.value.block is None
