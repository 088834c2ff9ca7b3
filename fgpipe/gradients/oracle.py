"""The definition of every estimator: two backward passes in one process, then the projection (paper, A.3).

One forward pass runs the whole net and its heads, so batch statistics are those of that pass in both backward
passes, and running statistics are updated once. Nothing here uses tangents: it is what forward mode is held to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.gradients.estimator import EPSILON
from fgpipe.gradients.guess import noise_like
from fgpipe.gradients.method import Method


@dataclass
class Estimates:
    """What one batch teaches a net."""

    blocks: list[dict[str, Tensor]]
    """Of each block, by parameter name: the gradient estimate; the last block's is its true gradient."""
    heads: list[dict[str, Tensor]]
    """Of each head: the gradient of its own loss, empty where the block has none."""
    scalars: list[Tensor | None]
    """Of each block, `[P, S]`: <target gradient, guess>, exact per sample; None where nothing is projected."""
    losses: list[Tensor | None]
    """Of each head, `[B]`."""
    logits: list[Tensor | None]


def estimate(
    method: Method,
    blocks: Sequence[nn.Module],
    heads: Sequence[Any],
    guess_heads: Sequence[Any],
    x: Tensor,
    labels: Tensor,
    *,
    seed: int,
    batch: int,
) -> Estimates:
    """Estimate every block's gradient on one batch.

    Args:
        heads: the trained head of each block or None, the classifier last.
        guess_heads: the untrained head of each block or None; with weights drawn for this batch.
        x: images `[B, C, H, W]`.
        seed, batch: the key of random guesses.
    """
    outputs: list[Tensor] = []
    for block in blocks:
        x = block(x)
        outputs.append(x)
    evaluated = [head.losses(y, labels) if head is not None else (None, None) for head, y in zip(heads, outputs, strict=True)]
    losses = [loss for loss, _ in evaluated]
    result = Estimates([], [], [], losses, [logits for _, logits in evaluated])
    for j, block in enumerate(blocks):
        names, parameters = zip(*block.named_parameters(), strict=True)
        place = parameters if method.space == "weight" else (outputs[j],)
        result.heads.append(_gradients(losses[j], heads[j]))
        target = losses[j] if method.is_plain(j) else losses[method.target(j)]
        if method.is_plain(j) or method.guess == "end_to_end":
            objective = losses[method.last] if method.guess == "end_to_end" else target
            gradient = torch.autograd.grad(objective.mean(), parameters, retain_graph=True)
            result.blocks.append(dict(zip(names, gradient, strict=True)))
            result.scalars.append(None)
            continue
        gradient = torch.autograd.grad(target.mean(), place, retain_graph=True)
        if method.is_random:
            guess = noise_like(method.guess, place, seed, j, batch)
        else:
            head_losses = guess_heads[j].losses(outputs[j], labels)[0] if method.has_untrained_guess else losses[j]
            guess = torch.autograd.grad(head_losses.mean(), place, retain_graph=True)
        scalars, projected = _project(method, gradient, guess)
        if method.space == "activity":
            projected = torch.autograd.grad(outputs[j], parameters, projected[0], retain_graph=True)
        result.blocks.append(dict(zip(names, projected, strict=True)))
        result.scalars.append(scalars)
    return result


def _gradients(losses: Tensor | None, head: Any) -> dict[str, Tensor]:
    if losses is None:
        return {}
    names, parameters = zip(*head.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(losses.mean(), parameters, retain_graph=True), strict=True))


def _project(
    method: Method, gradient: Sequence[Tensor], guess: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The scalars `[P, S]`, and c g for each tensor."""
    if method.scope == "sample":
        axes = tuple(range(1, gradient[0].dim()))
        scalars = (gradient[0] * guess[0]).sum(axes, keepdim=True)
        norms = (guess[0] * guess[0]).sum(axes, keepdim=True)
        factors = scalars if method.is_random else scalars / (norms + EPSILON)
        return scalars.flatten().unsqueeze(0), [factors * guess[0]]
    inner = [(a * b).sum() for a, b in zip(gradient, guess, strict=True)]
    norms = [(b * b).sum() for b in guess]
    if method.scope != "tensor":
        inner, norms = [sum(inner)], [sum(norms)]
    factors = inner if method.is_random else [d / (n + EPSILON) for d, n in zip(inner, norms, strict=True)]
    spread = factors if method.scope == "tensor" else factors * len(guess)
    return torch.stack(inner).unsqueeze(1), [c * g for c, g in zip(spread, guess, strict=True)]
