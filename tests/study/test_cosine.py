"""`observe.cosine`: the numbers are those of plain backward passes, and looking changes nothing."""

import json
from pathlib import Path

import pytest
import torch

from fgpipe.config import compose_config
from fgpipe.config.rng import generator
from fgpipe.errors import UserError
from fgpipe.gradients.method import Method
from fgpipe.gradients.oracle import alignment, estimate
from fgpipe.models.init import materialize
from fgpipe.models.net import resnet
from fgpipe.observe.record import RunFolder
from fgpipe.train import main

SMALL = [
    "data.train_samples=64", "data.test_samples=16", "epochs=1", "batch_size=16", "model.width=0.0625", "threads=1",
    "device=cpu", "tangents=oracle", "window=1", "observe.tensorboard=false",
]  # fmt: skip


def nets(config):
    net = resnet(config.model, config.head, in_channels=1, classes=10)
    double, cpu = torch.float64, torch.device("cpu")
    blocks = [
        materialize(block, generator(3, "block", j), dtype=double, device=cpu) for j, block in enumerate(net.blocks)
    ]
    return blocks, [
        materialize(head, generator(3, "head", j), dtype=double, device=cpu) for j, head in enumerate(net.heads)
    ]


@pytest.mark.parametrize("target", ["global", "intermediate", "local"])
@pytest.mark.parametrize("space", ["weight", "activity"])
def test_cosines_are_those_of_plain_backward_passes(space: str, target: str) -> None:
    config = compose_config(["guess=local", f"space={space}", f"target={target}", "head=cnn", *SMALL])
    x, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6)
    blocks, heads = nets(config)
    method = Method.of(config)
    found = estimate(method, blocks, heads, [None] * 8, x, labels, seed=0, batch=0, cosine=True)
    assert found.cosines is not None and len(found.cosines) == 7
    in_weights = (
        space == "weight" or target == "local"
    )  # a block that learns from its own loss alone has no activity guess
    for j in range(7):
        gradients = []
        for loss_at in (7, j):
            y, outputs = x, []
            for block in blocks:
                y = block(y)
                outputs.append(y)
                y.retain_grad()
                for parameter in block.parameters():
                    parameter.grad = None
            heads[loss_at].losses(outputs[loss_at], labels)[0].mean().backward()
            gradients.append(
                torch.cat([parameter.grad.flatten() for parameter in blocks[j].parameters()])[None]
                if in_weights
                else outputs[j].grad.flatten(1)
            )
        true, guess = gradients
        rows = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(true, guess, strict=True)]
        assert float(found.cosines[j]) == pytest.approx(sum(rows) / len(rows), rel=1e-9)


def test_alignment_of_known_vectors() -> None:
    a = (torch.tensor([[3.0, 4.0], [1.0, 0.0]]),)
    b = (torch.tensor([[6.0, 8.0], [0.0, 2.0]]),)
    assert float(alignment(a, b, True)) == pytest.approx(0.5)  # cosines 1 and 0
    assert float(alignment(a, b, False)) == pytest.approx(50 / (26**0.5 * 104**0.5))


def test_looking_changes_nothing(tmp_path: Path) -> None:
    for name, extra in (("with", ["observe.cosine=3"]), ("without", [])):
        assert main(["guess=local", "space=activity", *SMALL, f"run_dir={tmp_path / name}", "epochs=2", *extra]) == 0
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("with", "without")]
    for epoch, other in zip(*(summary["epochs"] for summary in summaries), strict=True):
        assert epoch["train"] == other["train"] and epoch["test"] == other["test"]
    lines = [json.loads(line) for line in (tmp_path / "with" / "cosine.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert all(list(line["cosine"]) == [str(block) for block in range(7)] for line in lines)
    assert all(-1 <= value <= 1 and value != 0 for line in lines for value in line["cosine"].values())
    assert not (tmp_path / "without" / "cosine.jsonl").exists()
    assert "cores" in summaries[0]["machine"]


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    """Lines of steps that will be made again are dropped, and so is one that a crash cut."""
    config = compose_config(["guess=local", *SMALL])
    before = RunFolder(config, tmp_path)
    for step in (0, 3, 6, 9):
        before.cosines(step, [step / 10, 0.5])
    kept = (tmp_path / "cosine.jsonl").read_text().splitlines(keepends=True)[:2]
    with (tmp_path / "cosine.jsonl").open("a") as file:
        file.write('{"step": 1')
    RunFolder(config, tmp_path, step=6)
    assert (tmp_path / "cosine.jsonl").read_text() == "".join(kept)
    RunFolder(config, tmp_path)
    assert (tmp_path / "cosine.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "overrides", [["observe.cosine=0", *SMALL], ["observe.cosine=5"], ["observe.cosine=5", "guess=end_to_end", *SMALL]]
)
def test_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"observe.cosine=\d: allowed: "):
        compose_config(overrides)
