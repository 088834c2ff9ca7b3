"""Optimizers, and their learning rate as a pure function of the batch, so that the order of updates never changes it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fgpipe.config import OptimConfig
from fgpipe.config.rules import optimizers
from fgpipe.errors import bad_value, one_line

CLIP_EPSILON = 1e-6
"""Added to the norm that estimates are divided by, as in `torch.nn.utils.clip_grad_norm_`."""

LearningRate = Callable[[int], float]
"""Id of the batch whose estimate is applied -> learning rate."""


def learning_rate(config: OptimConfig, *, batches: int, epochs: int) -> LearningRate:
    """The schedule of a run of `epochs` epochs of `batches` batches."""
    total = batches * epochs

    def step(batch: int) -> float:
        return config.lr * config.gamma ** (batch // batches // config.step_epochs)

    def one_cycle(batch: int) -> float:
        done, warmup = (batch + 1) / total, config.warmup
        if done <= warmup:
            return config.lr * done / warmup
        return config.lr * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2

    return {"step": step, "one_cycle": one_cycle, "constant": lambda batch: config.lr}[config.schedule]


Average = Callable[[Iterable[Tensor]], Iterable[Tensor]]
"""Estimates of one replica -> their mean over all."""
State = dict[str, list[Tensor | None]]
"""Tensors of an optimizer by their name there, one for each parameter; None before its first step."""


class Optimizer:
    """An optimizer of `torch.optim`, stepped with gradient estimates in place of gradients.

    SGD goes by PyTorch's functional form: the classes import PyTorch's compiler, which takes each process more than a
    second. Its fused kernel makes one pass over a parameter, its estimate and its momentum, where others make four.
    """

    def __init__(
        self, modules: Iterable[nn.Module], config: OptimConfig, rate: LearningRate, average: Average | None = None
    ) -> None:
        """Args: average: None where there is one replica.

        Raises:
            UserError: `torch.optim` does not take the options.
        """
        self.parameters = [parameter for module in modules for parameter in trainable(module).values()]
        self._config, self._rate, self._average = config, rate, average
        kind = _SGD if config.name == "sgd" or not self.parameters else _OfClass  # torch's classes refuse to have none
        self._rule: _Rule = kind(self.parameters, config)

    @torch.no_grad()
    def step(self, estimates: Iterable[Tensor], batch: int) -> None:
        """Update with one estimate per parameter, in the order of `parameters`, at the learning rate of `batch`."""
        if not self.parameters:
            return
        mean = list(estimates if self._average is None else self._average(estimates))
        if (most := self._config.clip) is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(mean)))
            mean = list(torch._foreach_mul(mean, (most / (norm + CLIP_EPSILON)).clamp(max=1.0)))
        pairs = zip(self.parameters, mean, strict=True)
        self._rule.step([_laid_out_as(parameter, estimate) for parameter, estimate in pairs], self._rate(batch))

    def state(self) -> State:
        """Everything that is remembered from step to step, for a checkpoint."""
        return self._rule.state()

    def restore(self, state: State) -> None:
        """Take what `state` gave before; tensors are moved to their parameter's device."""
        self._rule.restore(state)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that are not frozen (`requires_grad=False`), by name; one with two names once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """An estimate or momentum with the strides of its parameter: the fused kernel goes through memory, whatever they are."""
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter).copy_(value)


class Trained(NamedTuple):
    """A module and the optimizer of its parameters, if it has any."""

    module: nn.Module
    optimizer: Optimizer | None


class _Rule(Protocol):
    """The update of one kind of optimizer."""

    def step(self, estimates: list[Tensor], lr: float) -> None: ...

    def state(self) -> State: ...

    def restore(self, state: State) -> None: ...


class _SGD:
    """SGD with momentum, by groups of parameters with the same weight decay.

    `look_ahead` is the variant of Nesterov's method for delayed gradients (Ajanthan et al. 2025): with w the weights,
    d = momentum (w - w_before) the look-ahead and g the gradient that w' + d' had some updates ago,
    w_after = w + d - lr (1 - momentum) g. The parameters are w + d, which forward passes are made with, so that it is
    Nesterov's momentum with the learning rate times 1 - momentum. Deviations from the paper: the momentum is constant,
    as in its experiments, and the learning rate stays out of the velocity, as in PyTorch.
    """

    def __init__(self, parameters: list[nn.Parameter], config: OptimConfig) -> None:
        self._parameters, self._config = parameters, config
        self._groups = _groups(parameters, config)
        self._momentum: list[Tensor | None] = [None] * len(parameters)

    def step(self, estimates: list[Tensor], lr: float) -> None:
        for decay, group in self._groups:
            momentum = [self._momentum[at] for at in group]
            sgd(
                [self._parameters[at] for at in group],
                [estimates[at] for at in group],
                momentum,
                fused=True,
                weight_decay=decay,
                momentum=self._config.momentum,
                lr=lr * (1 - self._config.momentum) if self._config.look_ahead else lr,
                dampening=0,
                nesterov=self._config.look_ahead,
                maximize=False,
            )
            for at, value in zip(group, momentum, strict=True):
                self._momentum[at] = value

    def state(self) -> State:
        return {"momentum": list(self._momentum)}

    def restore(self, state: State) -> None:
        pairs = zip(self._parameters, state.get("momentum", self._momentum), strict=True)
        self._momentum = [
            None if value is None else _laid_out_as(parameter, value.to(parameter.device)) for parameter, value in pairs
        ]


class _OfClass:
    """Any class of `torch.optim`."""

    def __init__(self, parameters: list[nn.Parameter], config: OptimConfig) -> None:
        kind: Any = optimizers()[config.name]
        groups = [
            {"params": [parameters[at] for at in group], "weight_decay": decay}
            for decay, group in _groups(parameters, config)
        ]
        try:
            self._optimizer = kind(groups, lr=config.lr, **config.options)
        except (TypeError, ValueError, KeyError) as error:
            raise bad_value(
                "optim.options", config.options, f"what torch.optim.{kind.__name__} takes ({one_line(error)})"
            ) from error
        self._parameters = parameters

    def step(self, estimates: list[Tensor], lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for parameter, estimate in zip(self._parameters, estimates, strict=True):
            parameter.grad = estimate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> State:
        known = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]
        names = dict.fromkeys(name for each in known for name, value in each.items() if isinstance(value, Tensor))
        return {name: [each.get(name) for each in known] for name in names}

    def restore(self, state: State) -> None:
        packed = self._optimizer.state_dict()
        of_parameter = {id(parameter): at for at, parameter in enumerate(self._parameters)}
        order = [of_parameter[id(each)] for group in self._optimizer.param_groups for each in group["params"]]
        packed["state"] = {
            number: found
            for number, at in enumerate(order)
            if (found := {name: values[at] for name, values in state.items() if values[at] is not None})
        }
        self._optimizer.load_state_dict(packed)


def _groups(parameters: Sequence[nn.Parameter], config: OptimConfig) -> list[tuple[float, list[int]]]:
    """Weight decay, and the places of the parameters that have it: norms and biases may go without."""
    spared = [at for at, parameter in enumerate(parameters) if not config.decay_norms and parameter.dim() < 2]
    others = [at for at in range(len(parameters)) if at not in set(spared)]
    return [(decay, group) for decay, group in ((config.weight_decay, others), (0.0, spared)) if group]


def in_order(module: nn.Module, estimates: Mapping[str, Tensor]) -> list[Tensor]:
    """Estimates by parameter name, in the order of the module's trainable parameters."""
    return [estimates[name] for name in trainable(module)]
