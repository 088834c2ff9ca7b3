"""Forward-mode differentiation of modules: run the primal once, then push tangents through its linearisation.

`linearize(module, x)` returns the output and a function that carries tangents along. The primal pass is an
ordinary one (autograd may record it), so a block's backward pass and its tangents share it. `rules` has rules for
layers, and one for modules that `torch.fx` can trace; any other goes through `torch.func.jvp` and `vmap`.

Shapes: B samples, R lanes. A tangent holds its lanes stacked along the batch, `[R * B, ...]`, so that a layer
which is linear in its input treats lanes as more samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from fgpipe.gradients.second_run import ForwardMode, Masks, again, attributes_kept, generators
from fgpipe.models.net import may_draw

warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # within torch, on its first jvp


@dataclass(eq=False)
class Tangent:
    """The tangents of one value, one for each live lane; a lane that is not listed is zero."""

    lanes: tuple[int, ...]
    """Names of the lanes, in the order of the stack."""
    value: Tensor
    """`[len(lanes) * B, ...]`, lane by lane."""
    fresh: bool = False
    """Made by the layer just before and kept by nobody: the next layer may write over `value`."""

    def per_lane(self) -> Tensor:
        """A view `[len(lanes), B, ...]`."""
        return self.value.unflatten(0, (len(self.lanes), -1))

    def select(self, lanes: tuple[int, ...]) -> Tangent | None:
        """The part that lives in `lanes`, or None; no copy where that is a contiguous run."""
        kept = [position for position, lane in enumerate(self.lanes) if lane in set(lanes)]
        if not kept:
            return None
        first, last = kept[0], kept[-1] + 1
        stack = self.per_lane()
        contiguous = last - first == len(kept)
        part = stack[first:last].flatten(0, 1) if contiguous else torch.cat([stack[position] for position in kept])
        return Tangent(tuple(self.lanes[position] for position in kept), part)


@dataclass(eq=False)
class Direction:
    """A direction of one parameter, or of a value, and the lanes that carry it."""

    value: Tensor
    coefficients: Mapping[int, float]
    """Lane -> factor."""


Factor = float | Tensor
"""Factor of a direction in a lane: a number, or one for each sample, `[B, 1, ...]`."""
Directions = Mapping[str, Direction]
Push = Callable[[Tangent | None, Directions], Tangent | None]
"""Maps the input's tangent and directions of the parameters, by qualified name, to the output's tangent; once, as it lets
go of what the layers kept for it."""
Rule = Callable[[Any, Tensor, str], tuple[Tensor, Push]]
PushLosses = Callable[[Tangent], Tensor]
"""Maps the head input's tangent to the derivative of each sample's loss, `[R, B]`; once."""
LossRule = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor, PushLosses]]

_rules: dict[Callable[..., Any], Rule] = {}
_loss_rules: dict[Callable[..., Any], LossRule] = {}


def rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the rule of these modules and of subclasses that do not override `forward`.

    A rule takes the module, its input and the prefix of its parameters' names; it returns output and `Push`.
    A push is called once, and should let go of what it no longer needs; it must hand one tangent to two others as not
    `fresh`.
    """

    def register(function: Rule) -> Rule:
        for kind in kinds:
            _rules[kind.forward] = function
        return function

    return register


def loss_rule(kind: type[Any]) -> Callable[[LossRule], LossRule]:
    """Register the rule of a head and of subclasses that do not override `losses`.

    It takes the head, its input and the labels; it returns losses, logits and `PushLosses`.
    """

    def register(function: LossRule) -> LossRule:
        _loss_rules[kind.losses] = function
        return function

    return register


def linearize(module: nn.Module, x: Tensor) -> tuple[Tensor, Push]:
    """Run `module` on `x` and return the output with its `Push`.

    The push is linear and may be called once: each layer lets go of what it kept as the tangents pass, so that the
    primal's activations go if autograd has no use for them. It records no autograd graph, and writes over a tangent
    only if that is `fresh`. Running statistics are updated once, by the primal. A module without a rule must give the
    same output when it is run again.

    Raises:
        RuntimeError: by the push, when it is called again.
    """
    parameters = [id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)]
    tied = len(set(parameters)) < len(parameters)  # a rule would take a parameter's second name for another's
    y, push = (by_torch_func if tied else rule_of(module))(module, x, "")
    kept = [push]

    @torch.no_grad()
    def push_once(dx: Tangent | None, directions: Directions) -> Tangent | None:
        if not kept:
            raise RuntimeError("a push may be called once")
        return kept.pop()(dx, directions)

    return y, push_once


def rule_of(module: nn.Module) -> Rule:
    """The module's own rule, `by_graph` without one, or `by_torch_func` where neither would see all that a call does."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    plain = not parametrize.is_parametrized(module) and not changed
    return _rules.get(type(module).forward, _rules[nn.Module.forward]) if plain else by_torch_func


def has_rule(module: nn.Module) -> bool:
    """Tell whether the module's class has a rule of its own."""
    return type(module).forward in _rules


def linearize_losses(head: Any, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, PushLosses]:
    """Run `head.losses(x, labels)`; return the losses `[B]`, the logits `[B, classes]` and the `PushLosses`."""
    losses, logits, push = _loss_rules.get(type(head).losses, losses_by_torch_func)(head, x, labels)
    return losses, logits, torch.no_grad()(push)


def by_torch_func(module: nn.Module, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    """The rule of any module: `torch.func.jvp` of a second run, under `vmap` over the lanes.

    Both runs get a copy of `x`, which a module may write over, and the buffers and random numbers that the first one found.

    Raises:
        NotRepeatable: by the push, when the second run gives another output.
    """
    buffers, drawn = copies(module.named_buffers()), generators(x)
    masks = Masks()
    with masks if may_draw(module) else nullcontext():
        y = module(x.clone())
    draws = any(not torch.equal(before, now) for before, now in zip(drawn, generators(x), strict=True))
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    x, found = x.detach(), y.detach()

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return call_with(module, parameters | copies(buffers.items()), x.clone())

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        own = {name: directions[prefix + name] for name in parameters if prefix + name in directions}
        lanes = () if dx is None else dx.lanes
        lanes += tuple(dict.fromkeys(lane for each in own.values() for lane in each.coefficients if lane not in lanes))
        if not lanes:
            return None
        dxs = x.new_zeros(len(lanes), *x.shape)
        if dx is not None:
            dxs[: len(dx.lanes)] = dx.per_lane()
        moved = {}
        for name, each in own.items():
            factors = x.new_tensor([each.coefficients.get(lane, 0.0) for lane in lanes])
            moved[name] = factors.reshape(-1, *[1] * each.value.dim()) * each.value
        still = {name: parameter for name, parameter in parameters.items() if name not in moved}

        def derivative(dx: Tensor, dp: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            at = ({name: parameters[name] for name in moved}, x)
            pair = jvp(lambda p, x: run({**still, **p}, x), at, (dp, dx))
            return pair[0], pair[1]

        with (
            again(drawn if draws else [], x),
            masks if masks.made else nullcontext(),
            sdpa_kernel(SDPBackend.MATH),
            ForwardMode(),
            attributes_kept(module),
        ):
            lifted = vmap(derivative, out_dims=(None, 0), randomness="same")  # type: ignore[arg-type]  # torch's type has no None
            repeated, dy = lifted(dxs, moved)
        if (repeated - found).norm() > torch.finfo(found.dtype).eps ** 0.5 * found.norm():
            raise NotRepeatable(module)
        return Tangent(lanes, dy.flatten(0, 1))  # perhaps an expanded view, not to be written

    return y, push


def losses_by_torch_func(head: Any, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, PushLosses]:
    """The rule of any head, as `by_torch_func`."""
    wrapped = HeadLosses(head, labels)
    losses, push = by_torch_func(wrapped, x, "")
    return losses, wrapped.others.pop(), lambda dx: there(push(dx, {})).per_lane()


def linearize_logits(head: Any, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, PushLosses]:
    """Run `head.losses(x, labels)`; return losses `[B]` and logits `[B, C]`, and a push to the logits' tangents `[R, B, C]`."""
    wrapped = HeadLosses(head, labels, as_logits=True)
    logits, push = by_torch_func(wrapped, x, "")
    return wrapped.others.pop(), logits, torch.no_grad()(lambda dx: there(push(dx, {})).per_lane())


class HeadLosses(nn.Module):
    """A head's losses as a module of their own, or its logits; what its runs have as the other is left in `others`."""

    def __init__(self, head: Any, labels: Tensor, *, as_logits: bool = False) -> None:
        super().__init__()
        self.head, self._labels, self._as_logits = head, labels, as_logits
        self.others: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        losses, logits = self.head.losses(x, self._labels)
        self.others.append(losses if self._as_logits else logits)
        return logits if self._as_logits else losses

    def _get_name(self) -> str:
        return type(self.head).__name__


class NotRepeatable(RuntimeError):
    """A module gave another output when it was run again on the same input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(f"{module._get_name()} gives another output when it is run again on the same input")


def call_with(module: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The module with other tensors; of a layer that stands in two places, PyTorch would not put its own ones back."""
    layers, places = (sum(1 for _ in module.named_modules(remove_duplicate=each)) for each in (True, False))
    return functional_call(module, tensors, (x,), tie_weights=layers == places)


def copies(buffers: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Running statistics and the like, which a run may write to."""
    return {name: buffer.clone() for name, buffer in buffers}


def empty(lanes: tuple[int, ...], like: Tensor) -> Tangent:
    """A tangent to be written, in the layout of the primal `like` `[B, ...]`."""
    channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = len(lanes) * len(like), *like.shape[1:]
    return Tangent(lanes, torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout), fresh=True)


def there(tangent: Tangent | None) -> Tangent:
    """A tangent that lives in some lane, as the caller knows."""
    assert tangent is not None, "no lane is live"
    return tangent


def along(directions: Tensor, lanes: tuple[int, ...], like: Tensor) -> Tangent:
    """A tangent that moves all samples of `like` `[B, ...]` alike, each lane along one of `directions` `[R, ...]`."""
    assert len(directions) == len(lanes), "a lane for each direction"
    tangent = empty(lanes, like)
    tangent.per_lane().copy_(directions.unsqueeze(1))
    return tangent


def insert(tangent: Tangent | None, direction: Tensor, coefficients: Mapping[int, Factor]) -> Tangent | None:
    """Add `direction` `[B, ...]` to lanes of a tangent. The result may share the memory of either."""
    if tangent is None:
        parts = [_scaled(direction, factor) for factor in coefficients.values()]
        if not parts:
            return None
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return Tangent(tuple(coefficients), value, fresh=value is not direction)
    live = set(tangent.lanes) & set(coefficients)
    if live:
        tangent = _to_write(tangent, tangent.value.dtype)
    stack = tangent.per_lane()
    for position, lane in enumerate(tangent.lanes):
        factor = coefficients.get(lane)
        if isinstance(factor, Tensor):
            stack[position].addcmul_(direction, factor)
        elif factor is not None:
            stack[position].add_(direction, alpha=factor)
    new = {lane: factor for lane, factor in coefficients.items() if lane not in live}
    if not new:
        return tangent
    parts = [tangent.value, *(_scaled(direction, factor).to(tangent.value.dtype) for factor in new.values())]
    return Tangent(tangent.lanes + tuple(new), torch.cat(parts), fresh=True)


def _scaled(direction: Tensor, factor: Factor) -> Tensor:
    return direction if not isinstance(factor, Tensor) and factor == 1.0 else factor * direction


def add(first: Tangent | None, second: Tangent | None) -> Tangent | None:
    """The sum of two tangents, on the union of their lanes. The result may share the memory of either."""
    if first is None or second is None:
        return second if first is None else first
    if first.lanes == second.lanes and not first.fresh:
        first, second = second, first
    total = _to_write(first, torch.promote_types(first.value.dtype, second.value.dtype))
    if total.lanes == second.lanes:
        total.value.add_(second.value)
        return total
    stack = total.per_lane()
    for lane, value in zip(second.lanes, second.per_lane(), strict=True):
        if lane in total.lanes:
            stack[total.lanes.index(lane)].add_(value)
    rest = second.select(tuple(lane for lane in second.lanes if lane not in total.lanes))
    return Tangent(total.lanes + rest.lanes, torch.cat([total.value, rest.value]), fresh=True) if rest else total


def _to_write(tangent: Tangent, dtype: torch.dtype) -> Tangent:
    """The tangent, or a copy, that may be written over and has this type."""
    if tangent.fresh and tangent.value.dtype == dtype:
        return tangent
    return Tangent(tangent.lanes, tangent.value.to(dtype, copy=True), fresh=True)
