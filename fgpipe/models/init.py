"""The initialisation of every net and head: Kaiming uniform weights, biases 0.01, BatchNorm 1 and 0."""

import torch
from torch import nn


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters of `module` anew, in place, in the order of its layers, and reset its BatchNorms."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.01)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_parameters()
