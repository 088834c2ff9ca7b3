"""Local learning that the true gradient corrects, rarely (`correct.every`), against a simulation of its delays in one
process, written from the definition.

On batch t a block descends the gradient of its head's loss at once, unless K divides t. Then the gradient of the last
loss, by plain autograd through the net whose blocks have the weights that each had at its forward pass of t, takes its
place, before the forward pass of t + W or at the next drain, scaled to the running mean of the local gradients' norms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fgpipe.config import compose_config
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.build import local_trainer
from fgpipe.trainers.corrected import CorrectedStage
from fgpipe.trainers.session import run
from tests.integration.test_asynchronous import recorded, small_net

EPOCHS, BATCHES, LR, MOMENTUM, DECAY = 2, 7, 0.02, 0.9, 5e-4
OVERRIDES = [
    "target=local", f"epochs={EPOCHS}", f"data.train_samples={BATCHES * 32}", "batch_size=32", "data.test_samples=70",
    "dtype=float64", "threads=1", "device=cpu", "observe.tensorboard=false", "optim=constant", f"optim.lr={LR}",
]  # fmt: skip
CASES = {
    "auto": (3, (4, 3, 2, 1)),
    "every other": (2, (4, 3, 2, 1)),
    "lock-step": (2, (1, 1, 1, 1)),
    "wider": (4, (6, 5, 2, 1)),
}
"""K, and the windows."""
LATEST = {"auto": [3, 2, 1, 0], "every other": [3, 2, 1, 0], "lock-step": [0] * 4, "wider": [4, 3, 1, 0]}
"""Updates that a block makes between the forward pass of a K-th batch and its gradient, at most: W - 1 in full flow, which
an epoch of 7 batches does not reach with K = 4."""


def net_with_heads() -> Net:
    net = small_net()
    sizes = (6 * 16 * 16, 392, 392)
    return Net(net.blocks, [*(Head(nn.Flatten(), nn.Linear(size, 10)) for size in sizes), net.heads[-1]])


@dataclass(eq=False)
class Descent:
    """SGD with momentum and weight decay on copies of a module's parameters."""

    module: nn.Module
    weights: dict[str, Tensor] = field(init=False)
    velocity: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = {name: each.detach().clone() for name, each in self.module.double().named_parameters()}
        self.velocity = {name: torch.zeros_like(each) for name, each in self.weights.items()}

    def leaves(self) -> dict[str, Tensor]:
        return {name: each.clone().requires_grad_() for name, each in self.weights.items()}

    def update(self, gradient: Sequence[Tensor]) -> None:
        for name, each in zip(self.weights, gradient, strict=True):
            self.velocity[name] = MOMENTUM * self.velocity[name] + each + DECAY * self.weights[name]
            self.weights[name] = self.weights[name] - LR * self.velocity[name]


class Norms:
    """Weighted mean of norms: 0.95 to the power of their age."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def mean(self) -> float:
        weights = [0.95**age for age in reversed(range(len(self.seen)))]
        return sum(w * norm for w, norm in zip(weights, self.seen, strict=True)) / sum(weights) if weights else 0.0


def norm(gradient: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(each.square().sum()) for each in gradient))


def simulated(batches: Sequence[tuple[Tensor, Tensor]], every: int, windows: Sequence[int]) -> list[list[Descent]]:
    """Blocks and heads after the last batch."""
    net = net_with_heads()
    blocks, heads = ([Descent(module) for module in modules] for modules in (net.blocks, net.heads))
    norms = [Norms() for _ in blocks]
    pending: list[dict[int, Sequence[Tensor]]] = [{} for _ in blocks]

    def correct(j: int, gradient: Sequence[Tensor]) -> None:
        size = norm(gradient)
        blocks[j].update([each * (norms[j].mean() / size) for each in gradient] if size else gradient)

    for t, (images, labels) in enumerate(batches):
        for j, window in enumerate(windows):
            if gradient := pending[j].pop(t - window, None):
                correct(j, gradient)
        x, values = images, list[Tensor]()
        weights = list[dict[str, Tensor]]()
        for block in blocks:
            weights.append(block.leaves())
            values.append(x := functional_call(block.module, weights[-1], (x.clone(),)))
            if t % every:
                x = x.detach()
        for j, (block, head) in enumerate(zip(blocks, heads, strict=True)):
            of_head, last = head.leaves(), j == len(blocks) - 1
            own = list(weights[j].values())
            loss = nn.functional.cross_entropy(functional_call(head.module, of_head, (values[j],)), labels)
            if last and t % every == 0:
                below = [each for ws in weights[:-1] for each in ws.values()]
                down = iter(torch.autograd.grad(loss, below, retain_graph=True))
                for k in range(j):
                    pending[k][t] = [next(down) for _ in weights[k]]
            if t % every or last:
                found = torch.autograd.grad(loss, [*own, *of_head.values()], retain_graph=True)
                norms[j].seen += [norm(found[: len(own)])]
                block.update(found[: len(own)])
                head.update(found[len(own) :])
            else:
                head.update(torch.autograd.grad(loss, list(of_head.values()), retain_graph=True))
        if (t + 1) % BATCHES == 0:
            for j, waiting in enumerate(pending):
                for gradient in waiting.values():
                    correct(j, gradient)
                waiting.clear()
    return [blocks, heads]


@pytest.mark.parametrize("case", CASES)
def test_equals_a_simulation_of_the_delays(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Final weights and running statistics of blocks and heads, to the rounding of float64; and how late gradients are."""
    every, windows = CASES[case]
    batches, _ = recorded(monkeypatch)
    net, window = net_with_heads(), f"window=[{','.join(map(str, windows))}]"
    own = [*OVERRIDES, f"correct.every={every}", window, f"run_dir={tmp_path / 'run'}"]
    summary = run(compose_config(own), net)
    assert len(batches) == EPOCHS * BATCHES
    for mine, wanted in zip((net.blocks, net.heads), simulated(batches, every, windows), strict=True):
        for module, descent in zip(mine, wanted, strict=True):
            want = {**descent.module.state_dict(), **descent.weights}
            for name, tensor in module.state_dict().items():
                torch.testing.assert_close(tensor, want[name], rtol=1e-9, atol=1e-11)
    assert [summary["staleness"][j]["max"] for j in range(4)] == LATEST[case]


def test_corrections_change_something() -> None:
    """Were gradients or their delays ignored, the equality above would say nothing."""
    torch.manual_seed(0)
    batches = [(torch.randn(32, 1, 16, 16).double(), torch.randint(10, (32,))) for _ in range(2 * BATCHES)]
    cases = [*CASES.values(), (100, (4, 3, 2, 1))]
    ends = [simulated(batches, *case)[0][0].weights["0.weight"] for case in cases]
    assert all(not torch.allclose(a, b, rtol=1e-6) for a in ends for b in ends if a is not b)


def test_keeps_weights_of_the_batches_whose_gradients_come() -> None:
    """W batches in flight, of which every third is answered: two copies of the weights of a block with W = 4, not four."""
    keys = ["target=local", "correct.every=3", "model.width=0.07", "window=[8,7,6,5,4,3,2,1]", "device=cpu"]
    stages = local_trainer(compose_config(keys), DataFacts(4, 1, 10, 1, 16, 16)).steps
    assert all(isinstance(stage, CorrectedStage) for stage in stages.values())
    plan = Plan.make(
        compose_config(["target=local", "correct.every=3", "model.width=0.07"]), DataFacts(7, 1, 10, 1, 16, 16)
    )
    assert plan.windows == (8, 7, 6, 5, 4, 3, 2, 1) and not plan.has_readings
    assert list(plan.gradients) == [b for b in range(plan.config.epochs * 7) if b % 3 == 0]
