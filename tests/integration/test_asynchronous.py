"""Asynchronous backpropagation against a simulation of its delays in one process, written from the definition.

The gradient of batch t is plain autograd through the net whose blocks have the weights that each had at its forward
pass of t; a block applies gradients in the order of the batches. Which weights these were, windows say: those with the
updates of all batches up to t - W, counted from the last drain; with two versions, those of one update ago.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgpipe.config import compose_config
from fgpipe.data import Batches
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.observe.events import Learnt, StepEvent
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.session import run

EPOCHS, BATCHES, LR, MOMENTUM, DECAY = 2, 7, 0.02, 0.9, 5e-4
OVERRIDES = [
    "guess=end_to_end", "schedule=async_1f1b", f"epochs={EPOCHS}", f"data.train_samples={BATCHES * 32}", "batch_size=32",
    "data.test_samples=70", "dtype=float64", "threads=1", "device=cpu", "observe.tensorboard=false", "optim=constant",
    f"optim.lr={LR}",
]  # fmt: skip
CASES = {
    "auto": ["window=auto"],
    "lock-step": ["window=1"],
    "wider": ["window=[6,4,2,1]"],
    "look-ahead": ["optim.look_ahead=true"],
    "two versions": ["stash=two", "microbatches=4"],
    "two versions, look-ahead": ["stash=two", "microbatches=8", "optim.look_ahead=true"],
}
WINDOWS = {"auto": (4, 3, 2, 1), "lock-step": (1, 1, 1, 1), "wider": (6, 4, 2, 1), "look-ahead": (4, 3, 2, 1)}


def small_net() -> Net:
    torch.manual_seed(3)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Tanh()),
        nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()),  # nothing to train, and writes over its input
        nn.Sequential(nn.Linear(392, 12), nn.ReLU()),
    ]
    return Net(blocks, [Head(nn.Flatten(), nn.LazyLinear(10)) for _ in range(3)] + [Head(nn.Linear(12, 10))])


class Simulated:
    """One block, or the last one with its classifier, with all versions of its weights."""

    def __init__(self, module: nn.Module, look_ahead: bool) -> None:
        self.module, self.look_ahead = module.double(), look_ahead
        self.versions = [{name: each.detach().clone() for name, each in module.named_parameters()}]
        self.velocity = {name: torch.zeros_like(each) for name, each in self.versions[0].items()}

    def weights(self, version: int) -> dict[str, Tensor]:
        return {name: each.clone().requires_grad_() for name, each in self.versions[version].items()}

    def update(self, gradient: dict[str, Tensor]) -> None:
        after = {}
        for name, w in self.versions[-1].items():
            g = gradient[name] + DECAY * w
            if self.look_ahead:  # w here is w + d: the paper's weights and look-ahead together
                d = MOMENTUM * self.velocity[name]
                step = d - LR * (1 - MOMENTUM) * g
                after[name] = (w - d + step) + MOMENTUM * step
                self.velocity[name] = step
            else:
                self.velocity[name] = MOMENTUM * self.velocity[name] + g
                after[name] = w - LR * self.velocity[name]
        self.versions.append(after)


def simulated(batches: Sequence[tuple[Tensor, Tensor]], case: str) -> list[Simulated]:
    net, look_ahead = small_net(), "look-ahead" in case
    whole = [*net.blocks[:-1], nn.Sequential(net.blocks[-1], net.heads[-1])]
    blocks = [Simulated(module, look_ahead) for module in whole]
    for t, (images, labels) in enumerate(batches):
        in_epoch, before = t % BATCHES, t - t % BATCHES
        if case in WINDOWS:
            versions, parts = [before + max(0, in_epoch - window + 1) for window in WINDOWS[case]], 1
        else:
            versions, parts = [max(0, t - 1)] * len(blocks), 8 if look_ahead else 4
        weights = [block.weights(version) for block, version in zip(blocks, versions, strict=True)]
        sums = [{name: torch.zeros_like(w) for name, w in each.items()} for each in weights]
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            for block, each in zip(blocks, weights, strict=True):
                x = functional_call(block.module, each, (x.clone(),))
            loss = nn.functional.cross_entropy(x, y) / parts
            flat = [w for each in weights for w in each.values()]
            found = iter(torch.autograd.grad(loss, flat))
            for each in sums:
                for name in each:
                    each[name] = each[name] + next(found)
        for block, gradient in zip(blocks, sums, strict=True):
            block.update(gradient)
    return blocks


def recorded(monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[Tensor, Tensor]], list[list[Tensor]]]:
    """Batches as they are drawn, and estimates of block 0 as they are applied."""
    batches: list[tuple[Tensor, Tensor]] = []
    estimates: list[list[Tensor]] = []
    draw, observe = Batches.train, Metrics.observe

    def drawn(self: Batches, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        batches.append(draw(self, epoch, index))
        return batches[-1]

    def observed(self: Metrics, event: StepEvent) -> None:
        observe(self, event)
        if isinstance(event, Learnt) and event.block == 0:
            estimates.append([each.clone() for each in event.estimates])

    monkeypatch.setattr(Batches, "train", drawn)
    monkeypatch.setattr(Metrics, "observe", observed)
    return batches, estimates


@pytest.mark.parametrize("case", CASES)
def test_equals_a_simulation_of_the_delays(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Final weights and running statistics, to the rounding of float64."""
    batches, estimates = recorded(monkeypatch)
    net = small_net()
    summary = run(compose_config([*OVERRIDES, *CASES[case], f"run_dir={tmp_path / 'run'}"]), net)
    assert len(batches) == len(estimates) == EPOCHS * BATCHES
    blocks = simulated(batches, case)
    for j, block in enumerate(blocks):
        mine = net.blocks[j] if j < 3 else nn.Sequential(net.blocks[j], net.heads[j])
        want = {**block.module.state_dict(), **block.versions[-1]}
        for name, tensor in mine.state_dict().items():
            torch.testing.assert_close(tensor, want[name], rtol=1e-9, atol=1e-11)
    late = [window - 1 for window in WINDOWS[case]] if case in WINDOWS else [1, 1, 1, 1]
    assert [summary["staleness"][j]["max"] for j in range(4)] == late


def test_staleness_changes_something() -> None:
    """Were the delays ignored, the equality above would say nothing."""
    torch.manual_seed(0)
    batches = [(torch.randn(32, 1, 16, 16).double(), torch.randint(10, (32,))) for _ in range(2 * BATCHES)]
    ends = [simulated(batches, case)[0].versions[-1]["0.weight"] for case in CASES]
    assert all(not torch.allclose(a, b, rtol=1e-6) for a in ends for b in ends if a is not b)


def test_two_versions_want_as_many_microbatches_as_batches_in_flight() -> None:
    config = compose_config(["guess=end_to_end", "schedule=async_1f1b", "stash=two", "model.width=0.07"])
    with pytest.raises(UserError, match=r"^microbatches=4: allowed: at least the largest window \(8\) with stash=two$"):
        Plan.make(config, DataFacts(4, 1, 10, 1, 16, 16))
