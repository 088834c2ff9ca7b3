"""The examples of docs: nets and guesses under torchrun on the embedded digits, one of cells; each in less than 80 lines."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.models import resnet50

import fgpipe
from fgpipe import export
from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.models.net import sequential
from tests.integration.launching import ROOT, fork, launch

EXAMPLES = ROOT / "docs" / "examples"
QUIET = ["observe.tensorboard=false", "threads=1", "device=cpu"]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_all_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path


def test_first_look() -> None:
    """Cells of a few lines, each of which says something, and numbers that agree as far as they must."""
    file = EXAMPLES / "first_look.py"
    head, *cells = [cell.splitlines() for cell in re.split("^# %%", file.read_text(), flags=re.MULTILINE)[1:]]
    assert head[0] == " [markdown]" and all(line.startswith("#") for line in filter(None, head[1:]))
    assert len(cells) >= 6 and all(len(cell) <= 25 and "print(" in "\n".join(cell) for cell in cells)
    done = launch(1, str(file))
    assert done.returncode == 0, done.stderr
    number = r"(-?[\d.]+(?:e-?\d+)?)"
    errors = [float(each) for each in re.findall(f"relative error {number}", done.stdout)]
    assert len(errors) == 2 and errors[0] < 1e-5 and errors[1] < 1e-12, (
        "by finite differences, and by two backward passes"
    )
    for pattern, tolerance in (
        (f"scalar {number}, true directional derivative {number}", 1e-9),
        (f"falls by {number}; to first order {number}", 0.02),
    ):
        (pair,) = re.findall(pattern, done.stdout)
        assert float(pair[0]) == pytest.approx(float(pair[1]), rel=tolerance) and float(pair[0]) != 0, pattern


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, processes, least", [("vit", 3, 0.9), pytest.param("mixer", 2, 0.9, marks=pytest.mark.long)]
)
def test_tokens(name: str, processes: int, least: float, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(processes, str(EXAMPLES / f"{name}.py"), *QUIET, f"run_dir={run}", timeout=280)
    assert done.returncode == 0, done.stderr
    assert summary(run)["world_size"] == processes and summary(run)["test_accuracy"] >= least


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.long)])
def test_no_thread_is_left(optimizer: str, tmp_path: Path) -> None:
    """The program ends by itself after its run; threads of gloo, if they outlive Python, end it with SIGABRT."""
    keys = [
        *QUIET,
        f"run_dir={tmp_path / 'run'}",
        "epochs=1",
        "data.train_samples=64",
        "data.test_samples=32",
        "batch_size=32",
    ]
    done = launch(2, "-m", "tests.integration.ending", *keys, f"optim.name={optimizer}", "model.width=0.0625", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith("rank") and "gloo" in line]
    assert done.stdout.count("rank ") == 2


@pytest.mark.slow
def test_tangents_pass_tokens(tmp_path: Path) -> None:
    """With a global target: what comes back is one number a probe, and the net learns."""
    run = tmp_path / "run"
    keys = [*QUIET, f"run_dir={run}", "target=global", "scope=block", "epochs=3"]
    done = fork(3, str(EXAMPLES / "vit.py"), *keys, timeout=280)
    assert done.returncode == 0, done.stderr
    found = summary(run)
    assert found["test_accuracy"] > 0.3 and found["bytes"]["0->1"]["tangents"]["bytes"] > 0
    assert 0 < max(found["bytes_back_per_batch"]) <= 64 + 14


@pytest.mark.long
@pytest.mark.slow
def test_resnet50(tmp_path: Path) -> None:
    """torchvision's own, trained in four processes; exported, it is torchvision's again, with the same accuracy."""
    run, file = tmp_path / "run", tmp_path / "net.safetensors"
    keys = [*QUIET, "epochs=1", "data.train_samples=128", "batch_size=32", "checkpoint.every_steps=1"]
    done = fork(4, str(EXAMPLES / "resnet50.py"), *keys, f"run_dir={run}", timeout=280)
    assert done.returncode == 0, done.stderr
    assert export.main([str(run), str(file)]) == 0
    model = resnet50(num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    sequential(fgpipe.cut(model, modules=4, image=(1, 16, 16))).load_state_dict(safetensors.torch.load_file(file))
    config = compose_config(["batch_size=32"])
    batches = Batches(load(config.data), config.data, 32, 0, torch.float32)
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float() for x, y in map(batches.test, range(batches.test_batches))]
    assert torch.cat(hits).mean().item() == pytest.approx(summary(run)["test_accuracy"], abs=0.003)
