"""The definition of every estimator: a backward pass from the target, one from the guess's loss, then the projection
(paper, A.3).

One forward pass runs the whole net and its heads, so batch statistics are those of that pass in all backward
passes, and running statistics are updated once. Nothing here uses tangents: it is what forward mode is held to.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgpipe.config.rng import drawing
from fgpipe.gradients.distillation import distilling
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import View, lacking
from fgpipe.gradients.method import Method
from fgpipe.gradients.optim import trainable
from fgpipe.gradients.readings import Reading
from fgpipe.gradients.reverse import gradients as gradients_of
from fgpipe.models.net import input_for, may_draw

Found = TypeVar("Found")


@dataclass
class Estimates:
    """Results of one batch on a net."""

    blocks: list[dict[str, Tensor]]
    """Gradient estimate of each block, by parameter name; the last block's is its true gradient."""
    heads: list[dict[str, Tensor]]
    """Gradient of each head's own loss, by parameter name; empty where the block has none."""
    beside: list[dict[str, Tensor]]
    """The same of the head beside it."""
    scalars: list[Tensor | None]
    """Exact readings of each block, `[P, S]` or `[P, B, C]`; <target gradient, guess> of each sample by itself where they
    are derivatives; None where nothing is projected."""
    losses: list[Tensor | None]
    """Losses of each head, `[B]`."""
    logits: list[Tensor | None]
    cosines: list[Tensor] | None = None
    """Cosine of guess and global target for each block below the last, if asked for."""


def _unchanged(scalars: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    return scalars


def _projections(block: int) -> StepRule:
    return StepRule()


def _itself(value: Found) -> Found:
    return value


def _no_memory(block: int) -> dict[str, Tensor]:
    return {}


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
    transmit: Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]] = _unchanged,
    step: Callable[[int], StepRule] = _projections,
    memory: Callable[[int], Mapping[str, Tensor]] = _no_memory,
    cosine: bool = False,
) -> Estimates:
    """Estimate every block's gradient on one batch.

    Args:
        heads: the trained head of each block or None, the classifier last.
        guess_heads: the untrained head of each block, with weights drawn for this batch; or the one beside its trained
            head; or None.
        x: images `[B, C, H, W]`.
        seed, batch: the key of random guesses, and of what layers draw.
        transmit: from the scalars `[P, S]` of the blocks that ask to what arrives of them.
        step: the size of each block's steps along its guesses.
        memory: what the guess of each block remembers.
        cosine: measure how well the guesses align with the gradient of the last loss; the estimates are the same.
    """
    outputs: list[Tensor] = []
    for j, block in enumerate(blocks):
        with drawing(seed, "layers", j, batch) if may_draw(block) else nullcontext():
            x = block(input_for(block, x))
        outputs.append(x)
    evaluated = [
        head.losses(input_for(head, y), labels) if head is not None else (None, None)
        for head, y in zip(heads, outputs, strict=True)
    ]
    losses = [loss for loss, _ in evaluated]
    result = Estimates([], [], [{} for _ in blocks], [], losses, [logits for _, logits in evaluated])
    places = [
        ()
        if j in method.idle
        else tuple(trainable(block).values())
        if method.is_plain(j) or method.space == "weight"
        else (y,)
        for j, (block, y) in enumerate(zip(blocks, outputs, strict=True))
    ]
    gradients: dict[int, Sequence[Tensor]] = {}
    guesses: dict[int, Sequence[Tensor]] = {}
    for t, (loss, head) in enumerate(zip(losses, heads, strict=True)):  # one backward pass for each loss
        if loss is None:
            result.heads.append({})
            continue
        asking = [j for j in range(method.blocks) if method.target(j) == t]
        guessing = [t] if method.guesses_by_trained_head and method.projects(t) else []
        wanted = [*(places[j] for j in (*asking, *guessing)), tuple(trainable(head).values())]
        *found, of_head = _backward(loss, wanted)
        gradients.update(zip(asking, found))
        guesses.update(zip(guessing, found[len(asking) :]))
        result.heads.append(_named(head, of_head))
    directions: dict[int, Sequence[Tensor]] = {}
    logits_of_beside: dict[int, Tensor] = {}
    for j in filter(method.projects, range(method.blocks)):
        if method.guesses_by_untrained_head:
            head = guess_heads[j]
            (guesses[j],) = _backward(head.losses(input_for(head, outputs[j]), labels)[0], [places[j]])
        logits: Callable[[], Tensor] = partial(_of_head, result.logits, j)
        second: Callable[[], Sequence[Tensor]] = lacking("beside", "a second head or a twin")
        if method.has_beside(j):
            losses_beside, logits_beside = guess_heads[j].losses(input_for(guess_heads[j], outputs[j]), labels)
            of_places, of_head = _backward(losses_beside, [places[j], tuple(trainable(guess_heads[j]).values())])
            result.beside[j] = _named(guess_heads[j], of_head)
            logits, second = partial(_itself, logits_beside), partial(_itself, of_places)
            logits_of_beside[j] = logits_beside
        elif method.has_copies(j):
            losses_beside, logits_beside = guess_heads[j].losses(input_for(guess_heads[j], outputs[j]), labels)
            logits = partial(_itself, logits_beside)
            second = partial(gradients_of, losses_beside.mean(), places[j], retain_graph=True)
        own, aim = (partial(found.__getitem__, j) for found in (guesses, gradients))
        view = View(places[j], (seed, j, batch), own, logits, second, aim, memory(j))
        directions[j] = method.guess.proposed(view)
    exact = partial(_readings, method, result)
    scalars = {j: exact(j, gradients[j], each, places[j]) for j, each in directions.items()}
    result.scalars.extend(scalars.get(j) for j in range(method.blocks))
    received = transmit(scalars)
    for j, block in enumerate(blocks):
        estimates = gradients[j]
        if j in received:
            estimates = method.guess.estimate(directions[j], received[j], method.scope, step(j), places[j])
            if not method.guess.reading.has_lane:
                guesses[j] = estimates
            if method.space == "activity":
                parameters = tuple(trainable(block).values())
                estimates = gradients_of(outputs[j], parameters, estimates[0], retain_graph=True)
        result.blocks.append(_named(block, estimates))
    for j in filter(method.distils, range(method.last)):
        beside = method.has_beside(j)
        pupil, said = (guess_heads[j], logits_of_beside[j]) if beside else (heads[j], result.logits[j])
        if said is not None:
            signal = distilling(said, labels, _error(result, method.target(j)))
            of_pupil = gradients_of(said, tuple(trainable(pupil).values()), signal, retain_graph=True)
            (result.beside if beside else result.heads)[j] = _named(pupil, of_pupil)
    if cosine:
        true: Sequence[Sequence[Tensor]] = _backward(_of_head(losses, method.last), places[: method.last])
        by_sample = [method.space == "activity" and not method.is_plain(j) for j in range(method.last)]
        result.cosines = [
            alignment(true[j], guesses.get(j) or directions.get(j) or gradients[j], by_sample[j])
            if places[j]
            else x.new_zeros(())
            for j in range(method.last)
        ]
    return result


def _readings(
    method: Method,
    found: Estimates,
    block: int,
    gradient: Sequence[Tensor],
    directions: Sequence[Tensor],
    places: Sequence[Tensor],
) -> Tensor:
    """The exact readings of a block's probes."""
    reading, target = method.guess.reading, method.target(block)
    if reading is Reading.DERIVATIVE:
        return method.guess.inner(gradient, directions, method.scope)
    if reading is Reading.ERROR:
        return _error(found, target).unsqueeze(0)
    logits = _of_head(found.logits, target)
    signal = torch.zeros_like(logits, requires_grad=True)  # J v is the derivative of <v, J^T u> with respect to u
    pulled = torch.autograd.grad(logits, list(places), signal, create_graph=True, materialize_grads=True)
    products = [(each * direction).sum() for each, direction in zip(pulled, directions, strict=True)]
    wanted = products if method.scope == "tensor" else [torch.stack(products).sum()]
    return torch.stack([torch.autograd.grad(each, signal, retain_graph=True)[0] for each in wanted])


def _error(found: Estimates, target: int) -> Tensor:
    """The derivative of each sample's target with respect to its logits, `[B, C]`."""
    losses, logits = _of_head(found.losses, target), _of_head(found.logits, target)
    return torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0]


def alignment(gradient: Sequence[Tensor], guess: Sequence[Tensor], by_sample: bool) -> Tensor:
    """The batch's estimate of the cosine of gradient and guess (paper, eq. 6, whose terms the text lost).

    In weight space of all tensors of the block together, in activity space (`by_sample`) the mean over the samples.
    """
    parts = [
        [tensor.flatten(1) if by_sample else tensor.flatten()[None] for tensor in group] for group in (gradient, guess)
    ]
    one, other = (torch.cat(group, dim=1) for group in parts)
    return torch.nn.functional.cosine_similarity(one, other).mean()


def _of_head(values: Sequence[Tensor | None], block: int) -> Tensor:
    value = values[block]
    assert value is not None, "the block has a head"
    return value


def _backward(losses: Tensor, places: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The gradients of the mean loss with respect to groups of tensors, in one pass."""
    found = iter(gradients_of(losses.mean(), list(chain(*places)), retain_graph=True))
    return [tuple(islice(found, len(group))) for group in places]


def _named(module: nn.Module, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(trainable(module), tensors, strict=True))
