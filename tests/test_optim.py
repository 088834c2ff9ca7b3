"""The optimizer, against `torch.optim.SGD` going tensor by tensor, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.gradients.optim import Optimizer, learning_rate


def test_schedules() -> None:
    """A step as torch's own; one cycle up a line to the rate at the end of its warm-up, down half a cosine to 0."""
    config = compose_config(["optim=step", "optim.lr=0.1", "optim.gamma=0.2", "optim.step_epochs=2"]).optim
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(reference, step_size=2, gamma=0.2)
    rate = learning_rate(config, batches=3, epochs=5)
    for epoch in range(5):
        for batch in range(3 * epoch, 3 * epoch + 3):
            assert rate(batch) == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)
        reference.step()
        schedule.step()
    cycle = learning_rate(
        compose_config(["optim=one_cycle", "optim.lr=0.1", "optim.warmup=0.2"]).optim, batches=20, epochs=5
    )
    found = [cycle(batch) for batch in (0, 9, 19, 39, 59, 99)]
    assert found == pytest.approx([0.005, 0.05, 0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.0], abs=1e-12)
    assert learning_rate(compose_config(["optim=constant", "optim.lr=0.3"]).optim, batches=2, epochs=2)(3) == 0.3


LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(45, 2)
    return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)


def estimates(module: nn.Module, step: int, layout: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in module.parameters()]
    return [each.contiguous(memory_format=layout) if each.dim() == 4 else each for each in found]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_sgd(momentum: float, layout: torch.memory_format) -> None:
    """Whatever the layout of the estimates, and on from restored momentum, which a checkpoint holds contiguous."""
    config = compose_config(
        [f"optim.momentum={momentum}", "optim.weight_decay=0.01", "optim.lr=0.1", "optim.gamma=0.5"]
    )
    ours, theirs = net(), net()
    rate = learning_rate(config.optim, batches=1, epochs=6)
    reference = torch.optim.SGD(theirs.parameters(), momentum=momentum, weight_decay=0.01, foreach=False)
    optimizer = Optimizer([ours], config.optim, rate)
    for step in range(6):
        if step == 3:
            kept = [each if each is None else each.contiguous() for each in optimizer.state()["momentum"]]
            ours = copy.deepcopy(ours)
            optimizer = Optimizer([ours], config.optim, rate)
            optimizer.restore({"momentum": kept})
        found = estimates(ours, step, layout)
        optimizer.step(found, step)
        reference.param_groups[0]["lr"] = rate(step)
        for parameter, estimate in zip(theirs.parameters(), found, strict=True):
            parameter.grad = estimate.clone()
        reference.step()
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-12, atol=1e-12)


NAMES = [
    ("adamw", ["optim.options.betas=[0.8,0.95]"], {"betas": (0.8, 0.95)}),
    ("adam", [], {}),
    ("rmsprop", ["optim.options.momentum=0.5"], {"momentum": 0.5}),
    ("adagrad", [], {}),
    ("sgd", [], {"momentum": 0.9}),
]


@pytest.mark.parametrize("name, keys, options", NAMES)
@pytest.mark.parametrize("decay_norms", [True, False])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_any_optimizer(name: str, keys: list[str], options: dict, decay_norms: bool, clip: float | None) -> None:
    """As torch's own class by hand with groups and `clip_grad_norm_`, and on from a state that a checkpoint held."""
    keys = [
        *keys,
        f"optim.name={name}",
        f"optim.decay_norms={decay_norms}",
        f"optim.clip={'null' if clip is None else clip}",
    ]
    config = compose_config([*keys, "optim=constant", "optim.lr=0.01", "optim.weight_decay=0.1"])
    ours, theirs = net(), net()
    rate = learning_rate(config.optim, batches=1, epochs=6)
    decayed = [parameter for parameter in theirs.parameters() if decay_norms or parameter.dim() > 1]
    spared = [parameter for parameter in theirs.parameters() if not decay_norms and parameter.dim() < 2]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop,
            "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}[name]  # fmt: skip
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    reference = kind([group for group in groups if group["params"]], lr=0.01, **options)
    optimizer = Optimizer([ours], config.optim, rate)
    for step in range(6):
        if step == 3:
            kept = {
                slot: [None if each is None else each.clone() for each in of] for slot, of in optimizer.state().items()
            }
            ours = copy.deepcopy(ours)
            optimizer = Optimizer([ours], config.optim, rate)
            optimizer.restore(kept)
        found = estimates(ours, step, torch.contiguous_format)
        optimizer.step(found, step)
        for parameter, estimate in zip(theirs.parameters(), found, strict=True):
            parameter.grad = estimate.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        reference.step()
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-9, atol=1e-12)


def test_nothing_to_train() -> None:
    """A block without parameters has an optimizer that does nothing, and one that wants closures is refused."""
    config = compose_config(["optim.name=adamw"])
    optimizer = Optimizer([nn.MaxPool2d(2)], config.optim, learning_rate(config.optim, batches=1, epochs=1))
    optimizer.step([], 0)
    assert optimizer.parameters == [] and not any(optimizer.state().values())
    with pytest.raises(UserError, match="optim.name=lbfgs: allowed: "):
        compose_config(["optim.name=lbfgs"])


def test_options_that_it_does_not_take() -> None:
    config = compose_config(["optim.name=adamw", "optim.options.speed=1"])
    with pytest.raises(UserError, match="optim.options=.*: allowed: what torch.optim.AdamW takes .*speed"):
        Optimizer([net()], config.optim, learning_rate(config.optim, batches=1, epochs=1))
