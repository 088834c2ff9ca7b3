"""SGD and its learning rate as a pure function of the batch, so that the order of updates never changes it."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fgpipe.config import OptimConfig

LearningRate = Callable[[int], float]
"""From the id of the batch whose estimate is applied to the learning rate."""


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


class Optimizer:
    """SGD with momentum as in `torch.optim.SGD`, stepped with a gradient estimate in place of the gradient.

    By PyTorch's functional form: the class imports PyTorch's compiler, which takes each process more than a second. The
    fused kernel makes one pass over a parameter, its estimate and its momentum, where the others make four.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        config: OptimConfig,
        rate: LearningRate,
        average: Callable[[Iterable[Tensor]], Iterable[Tensor]] | None = None,
    ) -> None:
        """Args: average: from the estimates of this replica to their mean over all; None where there is one."""
        self.parameters = [parameter for module in modules for parameter in trainable(module).values()]
        self._config, self._rate, self._average = config, rate, average
        self._momentum: list[Tensor | None] = [None] * len(self.parameters)

    @torch.no_grad()
    def step(self, estimates: Iterable[Tensor], batch: int) -> None:
        """Update with one estimate per parameter, in the order of `parameters`, at the learning rate of `batch`."""
        if not self.parameters:
            return
        mean = estimates if self._average is None else self._average(estimates)
        pairs = zip(self.parameters, mean, strict=True)
        sgd(
            self.parameters,
            [_laid_out_as(parameter, estimate) for parameter, estimate in pairs],
            self._momentum,
            fused=True,
            weight_decay=self._config.weight_decay,
            momentum=self._config.momentum,
            lr=self._rate(batch),
            dampening=0,
            nesterov=False,
            maximize=False,
        )

    def momentum(self) -> list[Tensor | None]:
        """The momentum of each parameter; None where there was no step yet, or no momentum is used."""
        return list(self._momentum)

    def restore(self, momentum: Iterable[Tensor | None]) -> None:
        """Take what `momentum` gave before; tensors are moved to their parameter's device."""
        pairs = zip(self.parameters, momentum, strict=True)
        self._momentum = [
            None if value is None else _laid_out_as(parameter, value.to(parameter.device)) for parameter, value in pairs
        ]


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


def in_order(module: nn.Module, estimates: Mapping[str, Tensor]) -> list[Tensor]:
    """Estimates by parameter name, in the order of the module's trainable parameters."""
    return [estimates[name] for name in trainable(module)]
