"""Conditions on a net of a user's own, tried before training on copies and a few random images.

Blocks and heads must have tensors of their own and the shapes that `models.net.Net` says; give the same output when
they are run again, since a layer without a tangent rule is run twice (blocks may draw from PyTorch's generator, heads may
not); and have a forward mode, where tangents pass, that
agrees with their reverse mode: <u, J dx> = <J^T u, dx> for a random dx and u = J dx + noise.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fgpipe.config.rng import drawing, generator, states
from fgpipe.errors import UserError, typed_line
from fgpipe.gradients.dual import Direction, Tangent, linearize, linearize_losses
from fgpipe.gradients.method import Method
from fgpipe.gradients.optim import trainable
from fgpipe.gradients.probes import Lanes
from fgpipe.gradients.reverse import gradients
from fgpipe.models.init import NotInitialized, materialize
from fgpipe.models.net import deep_copy, input_for

SAMPLES = 3
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative errors of forward against reverse mode; the types are tried in turn, as not every net runs in the first."""


def check_net(
    blocks: Sequence[nn.Module],
    heads: Sequence[nn.Module | None],
    beside: Sequence[nn.Module],
    method: Method,
    lanes: Lanes,
    shape: Sequence[int],
    classes: int,
) -> None:
    """Refuse a net that cannot be trained, or whose tangents would be wrong.

    Args:
        heads: of each block the one that the run uses, or None.
        beside: the second head of each block but the last, if the run uses any.
        shape: of an image, `[C, H, W]`.

    Raises:
        UserError: names the block or head, the layer or tensor, and what is allowed.
    """
    _check_apart(blocks, heads, beside)
    if not any(trainable(module) for module in (*blocks, *heads) if module is not None):
        raise UserError("the net: no trainable parameters: allowed: at least one with requires_grad=True")
    for dtype in TOLERANCES:
        try:
            x = torch.randn(SAMPLES, *shape, dtype=dtype, generator=_source())
            return _check_runs(blocks, heads, beside, method, lanes, x, classes)
        except _Failed as error:
            failure = error
    raise UserError(str(failure)) from failure.__cause__


def fails_alone(blocks: Sequence[nn.Module], classifier: Any, shape: Sequence[int], dtype: torch.dtype) -> str | None:
    """Place and reason why training on a single sample fails, as batch norm does with one value per channel, or None.

    Args: shape: of an image, `[C, H, W]`.
    """
    x, labels = torch.zeros(1, *shape, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    try:
        with torch.no_grad():
            for j, block in enumerate(blocks):
                with _naming(f"block {j}"):
                    block = _copy(block, dtype)
                    x = block(input_for(block, x))
            with _naming("the classifier"):
                _copy(classifier, dtype).losses(x, labels)
    except _Failed as error:
        return str(error)
    return None


class _Failed(Exception):
    """An error inside a block or head."""


def _source() -> torch.Generator:
    return generator(0, "check")


def _check_apart(blocks: Sequence[nn.Module], heads: Sequence[nn.Module | None], beside: Sequence[nn.Module]) -> None:
    owners: dict[int, str] = {}
    parts = [(f"block {j}", block) for j, block in enumerate(blocks)]
    parts += [(f"the head of block {j}", head) for j, head in enumerate(heads) if head is not None]
    parts += [(f"the head beside that of block {j}", head) for j, head in enumerate(beside)]
    for part, module in parts:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if nn.parameter.is_lazy(tensor):
                raise UserError(
                    f"{part}: {name} has no shape yet: allowed: layers that are told their sizes, not lazy ones"
                )
            owner = owners.setdefault(tensor.untyped_storage().data_ptr() or id(tensor), part)
            if owner != part:
                raise UserError(f"{part}: {name} is {owner}'s too: allowed: tensors of its own")


def _check_runs(
    blocks: Sequence[nn.Module],
    heads: Sequence[nn.Module | None],
    beside: Sequence[nn.Module],
    method: Method,
    lanes: Lanes,
    x: Tensor,
    classes: int,
) -> None:
    labels = torch.arange(SAMPLES) % classes
    for j, (block, head) in enumerate(zip(blocks, heads, strict=True)):
        with _naming(f"block {j}"):
            block = _copy(block, x.dtype)
            y = _repeated(block, lambda block=block, x=x: _numbered(block, input_for(block, x)))
            if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
                found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
                raise UserError(
                    f"gives {found} for an input of {list(x.shape)}: allowed: a tensor, or a tuple of tensors, with a row per sample"
                )
            if y.dtype != x.dtype:
                raise UserError(f"gives {y.dtype} for an input of {x.dtype}: allowed: the same")
            guessed = trainable(block) if lanes.of(j) and method.space == "weight" else {}
            if guessed or (j and lanes.on_link(j - 1)):
                _check_block_tangents(block, x, guessed)
        x = y.detach()
        if head is not None:
            with _naming(f"the head of block {j}"):
                redrawn = method.guesses_by_untrained_head and j != method.last
                _check_head(head, x, labels, classes, pushed=bool(lanes.read_at(j)), redrawn=redrawn)
        if j < len(beside):
            with _naming(f"the head beside that of block {j}"):
                _check_head(beside[j], x, labels, classes, pushed=False, redrawn=False)


def _check_head(head: Any, x: Tensor, labels: Tensor, classes: int, *, pushed: bool, redrawn: bool) -> None:
    if not hasattr(head, "losses"):
        raise UserError(f"{type(head).__name__} has no losses(x, labels): allowed: Head(*layers), or a module with it")
    head = _copy(head, x.dtype)
    losses, logits = _repeated(head, lambda: head.losses(input_for(head, x), labels))
    if losses.shape != labels.shape:
        raise UserError(f"losses of {list(losses.shape)} for {SAMPLES} samples: allowed: one for each")
    if logits.dim() != 2 or logits.shape[1] < classes:
        raise UserError(f"logits of {list(logits.shape)}: allowed: {SAMPLES} rows of at least {classes}, the classes")
    if redrawn:
        _copy(deep_copy(head).to("meta"), x.dtype)
    if pushed:
        dx, x = _random(x), x.requires_grad_()
        losses, _, push = linearize_losses(head, x, labels)
        dlosses = push(Tangent((0,), dx)).squeeze(0)
        _compare(dlosses, losses, [x], [dx])


def _check_block_tangents(block: nn.Module, x: Tensor, guessed: dict[str, nn.Parameter]) -> None:
    dx, directions = _random(x), {name: _random(parameter) for name, parameter in guessed.items()}
    x = x.requires_grad_()
    with drawing(0, "check"):
        y, push = linearize(block, x)
    dy = push(Tangent((0,), dx.clone()), {name: Direction(each, {0: 1.0}) for name, each in directions.items()})
    assert dy is not None
    _compare(dy.value, y, [x, *guessed.values()], [dx, *directions.values()])


def _compare(dy: Tensor, y: Tensor, inputs: Sequence[Tensor], directions: Sequence[Tensor]) -> None:
    probe = dy + _random(dy)  # not dy alone: a tangent that is zero would agree with any gradient
    found = gradients(y, inputs, probe)
    forward = (probe * dy).sum().item()
    reverse = float(sum((gradient * direction).sum() for gradient, direction in zip(found, directions, strict=True)))
    if abs(forward - reverse) > TOLERANCES[dy.dtype] * max(abs(forward), abs(reverse)):
        raise UserError(
            f"the derivative is {reverse:.6g} in reverse mode and {forward:.6g} in forward mode: allowed: a forward pass "
            "that both differentiate alike (x.detach() instead of torch.no_grad(), no torch.autograd.Function without jvp)"
        )


def _random(like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=_source())


def _copy(module: Any, dtype: torch.dtype) -> Any:
    return materialize(deep_copy(module).train(), _source(), dtype=dtype, device=torch.device("cpu"))


def _repeated(module: nn.Module, run: Any) -> Any:
    """The result of `run`, the same each time.

    Raises:
        UserError: a layer draws random numbers, or the output differs.
    """
    state, before, entered, drew = copy.deepcopy(module.state_dict()), states(), [], []
    handles = [
        register_module_forward_pre_hook(lambda *_: entered.append(states())),
        register_module_forward_hook(lambda layer, *_: drew.append(layer) if entered.pop() != states() else None),
    ]
    try:
        first = run()
    finally:
        for handle in handles:
            handle.remove()
    if states() != before:
        layer = next(iter(drew), module)  # the innermost, as it returns first
        name = next((name for name, each in module.named_modules() if each is layer and name), "it")
        what = f"{name} ({type(layer).__name__}) draws random numbers"
        raise UserError(f"{what}: allowed: layers that give the same output when they are run again")
    module.load_state_dict(state)
    again = run()
    for one, other in zip(_tensors(first), _tensors(again), strict=True):
        if (one - other).norm() > TOLERANCES.get(one.dtype, 0) * one.norm():
            raise UserError("gives another output when it is run again: allowed: the same for the same input and state")
    return first


def _numbered(block: nn.Module, x: Tensor) -> Any:
    """The block's output with the same numbers from PyTorch's generator each time, as a run gives it."""
    with drawing(0, "check"):
        return block(x)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, tuple) else (values,):
        if isinstance(value, Tensor):
            yield value


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Errors of a part of the net begin with its name, and that of the layer whose forward pass has raised them."""
    running: list[nn.Module] = []

    def leave(layer: nn.Module, *_: object) -> None:
        while running and running.pop() is not layer:  # an inner one, whose error was caught
            pass

    handles = [
        register_module_forward_pre_hook(lambda layer, _: running.append(layer)),
        register_module_forward_hook(leave),
    ]
    try:
        yield
    except (UserError, NotInitialized) as error:
        raise UserError(f"{part}: {error}") from error
    except Exception as error:  # a user's module may raise anything
        layers = running[0].named_modules() if running else ()
        names = (f"{name} ({type(each).__name__}): " for name, each in layers if each is running[-1] and name)
        where = next(names, "")  # none for the part itself
        raise _Failed(f"{part}: {where}{typed_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
