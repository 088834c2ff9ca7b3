"""What only a GPU can show: equality with the oracle, bits that repeat, resuming, autocast, NaN, NCCL. `bash launch/gpu_check`."""

import json
from pathlib import Path

import pytest
import torch

from fgpipe.config import compose_config
from fgpipe.errors import NotFiniteError
from fgpipe.plan.plan import DataFacts
from fgpipe.trainers.build import local_trainer
from fgpipe.trainers.session import run
from tests.integration.launching import launch
from tests.runtime.poison import poison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
RUN = ["epochs=1", "batch_size=32", "data.train_samples=256", "model.width=0.125", "observe.tensorboard=false"]
FACTS = DataFacts(train_batches=4, test_batches=1, classes=10, channels=3, height=16, width=16)
WAYS = [
    ("scope=block",),
    ("target=local",),
    ("space=activity", "scope=batch"),
    ("guess=gaussian",),
    ("target=intermediate", "lanes=1"),
]


def weights(device: str, *overrides: str) -> list[torch.Tensor]:
    """Weights after four batches of noise, from the same first ones."""
    config = compose_config(["batch_size=16", "model.width=0.125", "window=1", "optim.lr=0.01", *overrides])
    trainer = local_trainer(config, FACTS, device=torch.device(device))
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(16, 3, 16, 16, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(4)
    ]
    trainer.train(0, 4, lambda epoch, index: data[index])
    return [p.detach().cpu() for parts in trainer.trained().values() for p in parts["block"].module.parameters()]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_equal_to_the_oracle(way: tuple[str, ...]) -> None:
    """Two backward passes on the same device, which draws the same random guesses; to the precision of float32."""
    for one, other in zip(weights("cuda", *way), weights("cuda", *way, "tangents=oracle"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", [("scope=block",), ("target=local",)], ids=" ".join)
def test_equal_to_the_cpu(way: tuple[str, ...]) -> None:
    for one, other in zip(weights("cuda", *way), weights("cpu", *way), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_bits_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """With deterministic kernels."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        for way in WAYS:
            assert all(torch.equal(*pair) for pair in zip(weights("cuda", *way), weights("cuda", *way), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_against_the_oracle() -> None:
    """In bfloat16, after four batches, weights are closer to the oracle's in float32 than to those of the beginning."""
    ours, oracle = weights("cuda", "scope=block", "autocast=true"), weights("cuda", "scope=block", "tangents=oracle")
    first = weights("cuda", "scope=block", "optim.lr=1e-30")

    def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        return sum(float((a - b).norm() ** 2) for a, b in zip(one, other, strict=True)) ** 0.5

    assert distance(ours, oracle) < 0.3 * distance(first, oracle)


def test_nan_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison("activation", 3, batch=2, value=float("nan"), replace=monkeypatch.setattr)
    with pytest.raises(NotFiniteError, match="activation of batch 2"):
        run(compose_config([*RUN, "device=cuda", f"run_dir={tmp_path / 'run'}"]))


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_and_resumes(processes: int, tmp_path: Path) -> None:
    """Processes that share a GPU, or have one each and NCCL between them: the end is that of a run in one go."""
    common, found = [*RUN, "optim=constant", "optim.lr=0.01", "checkpoint.every_steps=4", "device=cuda"], []
    half, whole, resumed = (f"run_dir={tmp_path / name}" for name in ("half", "whole", "resumed"))
    for part in ([half], ["epochs=2", whole], ["epochs=2", f"resume={tmp_path / 'half'}", resumed]):
        done = launch(processes, "-m", "fgpipe.train", *common, *part, timeout=200)
        assert done.returncode == 0, done.stderr
    for name in ("whole", "resumed"):
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["test_accuracy"])
    assert found[0] == pytest.approx(found[1], abs=0.02)
