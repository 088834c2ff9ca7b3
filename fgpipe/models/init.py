"""The initialisation of every net and head: Kaiming uniform weights, biases 0.01, BatchNorm 1 and 0."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

UNWRITTEN = 113
"""Value that fills new memory of whole numbers, as NaN fills that of others; no layer starts with it."""


class NotInitialized(ValueError):
    """A tensor without numbers that its layer does not draw."""


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters of `module` anew, in place, in the order of its layers, and reset its buffers.

    Convolutions and linear layers get the paper's initialisation, other layers that of their `reset_parameters`.
    Tensors of a layer without one stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.01)
        elif isinstance(layer, _BatchNorm):
            layer.reset_parameters()
        elif reset := getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None):
            seed = torch.randint(1 << 62, (), generator=generator, device=generator.device).item()
            with torch.random.fork_rng([]), torch.no_grad():
                torch.default_generator.manual_seed(int(seed))
                reset()


def materialize(
    module: nn.Module, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The module on `device`, channels last, its tensors on the meta device drawn from `generator`.

    Raises:
        NotInitialized: `initialize` does not draw one of them.
    """
    if any(tensor.is_meta for _, tensor in _tensors(module)):
        _fill(module, generator)
    return module.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    kept = {name: tensor.detach().clone() for name, tensor in _tensors(module) if not tensor.is_meta}
    allocate(module)
    initialize(module, generator)
    for name, tensor in _tensors(module):
        if name in kept:
            tensor.detach().copy_(kept[name])
        elif _is_unwritten(tensor):
            layer = module.get_submodule(name.rpartition(".")[0])
            raise NotInitialized(f"{name}: {type(layer).__name__} has no reset_parameters that draws it")


def allocate(module: nn.Module) -> None:
    """Move tensors from the meta device to the CPU, unwritten; one with two names stays one.

    Not by `nn.Module.to_empty`, whose `empty_like` from meta to CPU imports a symbolic algebra.
    """
    moved: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None and tensor.is_meta:
                if tensor not in moved:
                    nothing = torch.nan if tensor.dtype.is_floating_point else UNWRITTEN
                    memory = torch.full(tensor.shape, nothing, dtype=tensor.dtype)
                    own = nn.Parameter(memory, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else memory
                    moved[tensor] = own
                setattr(layer, name, moved[tensor])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_unwritten(tensor: Tensor) -> bool:
    """Some of `tensor` is unwritten; of truth values nobody can tell."""
    if tensor.dtype == torch.bool:
        return True
    return bool((tensor.isnan() if tensor.dtype.is_floating_point else tensor == UNWRITTEN).any())
