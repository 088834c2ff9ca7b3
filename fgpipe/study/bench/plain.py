"""Plain PyTorch training loop: backpropagation through the whole net, `torch.optim.SGD`."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fgpipe.config import OptimConfig


class PlainLoop:
    """Trains a net from images to logits on its cross-entropy, at a constant learning rate."""

    def __init__(self, net: nn.Module, optim: OptimConfig) -> None:
        self._net = net
        self._optimizer = torch.optim.SGD(
            net.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch."""
        self._optimizer.zero_grad()
        cross_entropy(self._net(images), labels).backward()
        self._optimizer.step()
