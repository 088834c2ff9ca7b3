"""Distillation: heads that learn what the target's last layer says of a batch, by the error that comes back anyway."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distilling(logits: Tensor, labels: Tensor, error: Tensor) -> Tensor:
    """The gradient with respect to a head's logits `[B, C]` of the mean cross-entropy with the target's probabilities.

    Args:
        labels: `[B]`.
        error: the target's `softmax - onehot`, `[B, C]`; with the labels, it tells the probabilities.
    """
    logits = logits.detach()
    return (torch.softmax(logits, dim=1) - F.one_hot(labels, logits.shape[1]) - error) / len(logits)
