"""Paper's own way to train with local guesses in activity space, in plain PyTorch (A.3): two backward passes, hooks.

"A backward hook is used to first log the Gradient Target, and then to log the Gradient Guess and compute the
projection. We then let the new estimated activation gradient backpropagate through the model."
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.config import OptimConfig
from fgpipe.gradients.estimator import EPSILON


class TwoBackwardPasses:
    """Trains blocks and heads for the global target with local guesses, one coefficient for each sample.

    One forward pass. The backward pass of the net's loss tells the hooks each block's target; that of all local losses
    together brings the guesses, which the hooks replace by the estimates. No gradient of the second one leaves a block
    downwards.

    Args:
        heads: of each block, the classifier last; as `models.heads.Head`.
        optim: its learning rate is constant.
    """

    def __init__(self, blocks: Sequence[nn.Module], heads: Sequence[Any], optim: OptimConfig) -> None:
        self._blocks, self._heads = blocks, heads
        parameters = [parameter for module in (*blocks, *heads) for parameter in module.parameters()]
        self._optimizer = torch.optim.SGD(
            parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self._targets: dict[nn.Module, Tensor] = {}
        self._projecting = False
        for block in blocks[:-1]:
            block.register_forward_hook(self._watch_output)
        for block in blocks[1:]:
            block.register_forward_pre_hook(self._watch_input)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch."""
        x, outputs = images, []
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        *local, loss = (head.losses(y, labels)[0].mean() for head, y in zip(self._heads, outputs, strict=True))
        self._optimizer.zero_grad()
        self._projecting = False
        loss.backward(retain_graph=True)
        for block in self._blocks[:-1]:
            block.zero_grad()
        self._projecting = True
        torch.stack(local).sum().backward()
        self._optimizer.step()

    def _watch_output(self, block: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        def arrives(gradient: Tensor) -> Tensor | None:
            if not self._projecting:
                self._targets[block] = gradient
                return None
            target, guess = self._targets.pop(block), gradient
            coefficients = (target * guess).flatten(1).sum(dim=1) / (guess.square().flatten(1).sum(dim=1) + EPSILON)
            return coefficients.reshape(-1, *[1] * (guess.dim() - 1)) * guess

        y.register_hook(arrives)

    def _watch_input(self, block: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        alias = inputs[0].view_as(inputs[0])  # else the hook would meet the gradient of the head below, too
        alias.register_hook(lambda gradient: torch.zeros_like(gradient) if self._projecting else None)
        return alias
