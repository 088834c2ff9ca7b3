"""The end-to-end baseline against a plain PyTorch loop that accumulates microbatches."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fgpipe.config import check_world, compose_config
from fgpipe.data import Batches
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.observe.timeline import Timeline
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import Precision
from fgpipe.trainers.backpropagation import Part
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.session import run
from fgpipe.wire.links.header import wire
from tests.integration.launching import fork

OVERRIDES = [
    "guess=end_to_end", "epochs=2", "data.train_samples=320", "data.test_samples=70", "batch_size=32", "dtype=float64",
    "threads=1", "device=cpu", "observe.tensorboard=false", "optim=constant", "optim.lr=0.02",
]  # fmt: skip


def small_net() -> Net:
    torch.manual_seed(3)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(392, 12), nn.ReLU()),
    ]
    return Net(
        blocks, [Head(nn.Flatten(), nn.LazyLinear(10)), Head(nn.Flatten(), nn.LazyLinear(10)), Head(nn.Linear(12, 10))]
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero_bubble"])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_equals_a_plain_loop(schedule: str, microbatches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Final weights and running statistics, to float64 rounding of a few additions."""
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw = Batches.train

    def recorded(self, epoch, index):
        batches.append(draw(self, epoch, index))
        return batches[-1]

    monkeypatch.setattr("fgpipe.data.Batches.train", recorded)
    net = small_net()
    overrides = [*OVERRIDES, f"schedule={schedule}", f"microbatches={microbatches}", f"run_dir={tmp_path / 'run'}"]
    run(compose_config(overrides), net)

    reference = small_net()
    whole = nn.Sequential(*reference.blocks, reference.heads[-1]).double()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    assert len(batches) == 20
    for images, labels in batches:
        optimizer.zero_grad()
        for x, y in zip(images.chunk(microbatches), labels.chunk(microbatches), strict=True):
            (nn.functional.cross_entropy(whole(x), y) / microbatches).backward()
        optimizer.step()
    for got, want in zip((*net.blocks, net.heads[-1]), (*reference.blocks, reference.heads[-1]), strict=True):
        for name, tensor in want.state_dict().items():
            torch.testing.assert_close(got.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("last", [True, False])
def test_rounds_between_blocks(last: bool) -> None:
    """`wire=bfloat16`, in float64: activations and gradients as in a loop that rounds, and what leaves the process too."""
    net, reference, cpu = small_net(), small_net(), torch.device("cpu")
    blocks = [block.double() for block in net.blocks]
    phases = [Phases(j, Timeline(), None) for j in range(3)]
    precision = Precision(torch.float64, torch.bfloat16)
    part = Part(blocks, net.heads[-1] if last else None, cpu, cpu, False, False, phases, precision)
    images = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    x, gradient = images.clone(), torch.randn(8, 12, dtype=torch.float64)
    for block in reference.blocks:
        y = block.double()(x)
        x = y.bfloat16().double()
    end = y if last else y.bfloat16()
    got = part(wire(images))
    assert torch.equal(got, end) and got.dtype == end.dtype
    for each in (got, end):
        each.backward(gradient.to(each.dtype))
    for one, other in zip(blocks, reference.blocks, strict=True):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)


def in_eight_bits(x: torch.Tensor) -> torch.Tensor:
    dims = (0, 2, 3) if x.dim() == 4 else 0
    step = x.abs().amax(dims, keepdim=True).clamp(min=1e-30) / 127
    return (x / step).round() * step


def trained_in_eight_bits(batches: list[tuple[torch.Tensor, torch.Tensor]], feedback: bool) -> torch.Tensor:
    """All parameters after a plain loop that rounds activations upwards, and gradients downwards."""
    net = small_net()
    parts = [*net.blocks[:-1], nn.Sequential(net.blocks[-1], net.heads[-1])]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4) for part in parts]
    errors = {j: torch.zeros(()) for j in (0, 1)}
    for x, labels in batches:
        inputs, outputs = [x], []
        for part in parts:
            outputs.append(part(inputs[-1]))
            inputs.append(in_eight_bits(outputs[-1].detach()).requires_grad_())
        nn.functional.cross_entropy(outputs[-1], labels).backward()
        for j in (1, 0):
            gradient = inputs[j + 1].grad
            assert gradient is not None
            whole = gradient + errors[j] * feedback
            errors[j] = whole - in_eight_bits(whole)
            outputs[j].backward(in_eight_bits(whole))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for part in parts for parameter in part.parameters()])


@pytest.mark.parametrize(
    "schedule", [["schedule=gpipe", "microbatches=1"], ["schedule=async_1f1b", "window=1"]], ids=str
)
def test_eight_bits(schedule: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wire=int8` in lock-step is a plain loop that rounds and adds to a gradient what was taken from those before; but for
    numbers in the middle between two steps, which float32 rounds to either side; after three batches that hides the rest."""
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw = Batches.train

    def recorded(self: Batches, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(draw(self, epoch, index))
        return batches[-1]

    monkeypatch.setattr("fgpipe.data.Batches.train", recorded)
    net, start = small_net(), small_net()
    few = ["dtype=float32", "wire=int8", "epochs=1", "data.train_samples=64", f"run_dir={tmp_path / 'run'}"]
    run(compose_config([*OVERRIDES, *schedule, *few]), net)
    assert len(batches) == 2
    want, without = (trained_in_eight_bits(batches, feedback) for feedback in (True, False))
    before, got = (
        torch.cat([p.detach().flatten() for part in (*each.blocks, each.heads[-1]) for p in part.parameters()])
        for each in (start, net)
    )
    off, apart = ((got - each).norm() / (want - before).norm() for each in (want, without))
    assert off < 0.5 * apart


def test_too_few_microbatches(tmp_path: Path) -> None:
    done = fork(2, "-m", "fgpipe.train", *OVERRIDES, "schedule=1f1b", "microbatches=1", f"run_dir={tmp_path / 'run'}")
    assert "microbatches=1: allowed: at least the 2 processes with schedule=1f1b" in done.stderr


@pytest.mark.parametrize("microbatches", [2, 6, 9])
def test_zero_bubble_wants_whole_rounds(microbatches: int) -> None:
    config = compose_config(
        ["guess=end_to_end", "schedule=zero_bubble", "batch_size=36", f"microbatches={microbatches}"]
    )
    with pytest.raises(UserError, match=f"microbatches={microbatches}: allowed: a multiple of the 4 processes"):
        check_world(config, 4)


class Frozen(nn.BatchNorm2d):
    """Batch norm that keeps to its running statistics."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def ends_with(*layers: nn.Module, before: nn.Module | None = None) -> Net:
    """A net of two blocks whose last has maps of one pixel, and `layers` before the classifier."""
    last = [nn.Conv2d(4, 4, 3), *([before] if before is not None else []), nn.AdaptiveAvgPool2d(1)]
    head = Head(nn.Flatten(), *layers, nn.Linear(4, 10))
    return Net([nn.Conv2d(1, 4, 3), nn.Sequential(*last)], [head, head])


ALONE = {
    "small images": (None, 8, r"block 6: body.1 \(BatchNorm2d\): ValueError: Expected more than 1 value per channel"),
    "larger images": (None, 16, None),
    "no batch norm": (ends_with(), 8, None),
    "batch norm in a block": (
        ends_with(before=nn.BatchNorm2d(4)),
        5,
        r"block 1: 1 \(BatchNorm2d\): ValueError: Expected more than 1 value",
    ),
    "group norm": (
        ends_with(before=nn.GroupNorm(4, 4)),
        5,
        r"block 1: 1 \(GroupNorm\): ValueError: Expected more than 1 value",
    ),
    "with more than one value": (ends_with(before=nn.BatchNorm2d(4)), 8, None),
    "frozen": (ends_with(before=Frozen(4)), 5, None),
    "batch norm in the classifier": (
        ends_with(nn.BatchNorm1d(4)),
        8,
        r"the classifier: 1 \(BatchNorm1d\): ValueError: Expected more than",
    ),
}


@pytest.mark.parametrize("own, size, refused", ALONE.values(), ids=ALONE.keys())
def test_microbatches_of_one_sample(own: Net | None, size: int, refused: str | None) -> None:
    """Layers that have nothing to normalise in a sample by itself are named before training."""
    facts = DataFacts(train_batches=1, test_batches=1, classes=10, channels=1, height=size, width=size)
    for microbatches in (4, 8):
        overrides = ["guess=end_to_end", "batch_size=8", f"microbatches={microbatches}", "model.width=0.07"]
        config = compose_config(overrides)
        config.model.blocks = 8 if own is None else len(own.blocks)
        if refused and microbatches == 8:
            with pytest.raises(
                UserError, match=f"^microbatches=8: allowed: at most 4 here, as of one sample {refused}"
            ):
                Plan.make(config, facts, own)
        else:
            Plan.make(config, facts, own)
