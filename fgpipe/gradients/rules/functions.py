"""Nodes of a traced forward pass that call a function or a method: which are known, and what each does to lanes.

Shapes: the lanes of a value are `[R, *shape]`, the same R lanes at every node.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import jvp, vmap
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgpipe.gradients.rules.tokens import times_derivative

aten = torch.ops.aten

# fmt: off
VIEWS = {
    "T", "chunk", "contiguous", "expand", "flatten", "getitem", "mT", "movedim", "narrow", "permute", "reshape",
    "select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
}
LINEAR = VIEWS | {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool2d", "cat", "embedding", "mean", "neg", "pad", "repeat",
    "stack", "sum",
}
"""Linear in all tensors that they read, together."""
PRODUCTS = {"bmm", "matmul", "mul"}
"""Linear in each tensor that they read."""
OTHERS = {
    "abs", "add", "clamp", "conv2d", "cos", "elu", "exp", "gelu", "group_norm", "hardswish", "layer_norm",
    "leaky_relu", "linear", "log", "log_softmax", "maximum", "minimum", "mish", "normalize", "pow", "relu", "rsqrt",
    "scaled_dot_product_attention", "sigmoid", "silu", "sin", "softmax", "softplus", "sqrt", "square", "sub",
    "tanh", "truediv", "var", "where",
}
# fmt: on
CONSTANT = {"_assert", "dim", "eq", "floordiv", "ge", "getattr", "gt", "le", "lt", "ne", "numel", "size"}
"""Without a derivative."""
SEVERAL = {"chunk", "split", "unbind"}
"""With several values."""
ATTRIBUTES = {"T", "device", "dtype", "mT", "ndim", "shape"}
KNOWN = LINEAR | PRODUCTS | OTHERS | CONSTANT
NAMES = {
    getattr(place, name): name
    for name in KNOWN
    for place in (operator, torch, F)
    if callable(getattr(place, name, None))
} | {getattr: "getattr"}
OPTIONS = {"attn_mask", "is_causal", "scale"}
"""Keywords that attention may have; its dropout is random."""

Values = Mapping[fx.Node, Any]
Stack = Any
"""Tangents of a value, `[R, *shape]`, or a tuple of them; None: all are zero."""
NodePush = Callable[[Mapping[fx.Node, Stack]], Stack]
"""Maps lanes of what a node reads, where they are not None, to those of what it makes."""


def name_of(node: fx.Node) -> str:
    """Name of the function or method in the tables above; empty if it is in none."""
    return str(node.target) if node.op == "call_method" else NAMES.get(node.target, "")


def call_node(node: fx.Node, values: Values, live: Iterable[fx.Node]) -> tuple[Any, NodePush | None]:
    """What a function or method makes, and its push if that may have lanes."""
    name, reads = name_of(node), node.all_input_nodes
    inputs, args = [each for each in reads if each in live], map_arg(node.args, values.__getitem__)
    target = node.target if callable(node.target) else partial(_method, node.target)
    fixed = {each: values[each] for each in reads if each not in live}

    def call(*given: Any) -> Any:
        """The node's value with these for what may have lanes."""
        bound = fixed | dict(zip(inputs, given, strict=True))
        return target(*map_arg(node.args, bound.__getitem__), **map_arg(node.kwargs, bound.__getitem__))

    given = [values[each] for each in inputs]
    y = call(*given)
    if not inputs or (name in CONSTANT and not (name == "getattr" and node.args[1] in VIEWS)):
        return y, None
    adds = name == "pad" or any(isinstance(each, Tensor) and each.is_floating_point() for each in fixed.values())
    if name in CONSTANT or (name in LINEAR and not adds):  # as `cat` with a constant does, which has no lanes
        return y, _linear(inputs, call, given)
    if name in PRODUCTS and len(reads) == sum(isinstance(each, fx.Node) for each in node.args):  # no value twice
        return y, _product(inputs, call, given)
    if name in OWN and node.args and (own := OWN[name](args, node.kwargs, y)):
        return y, lambda found: own([found.get(each) if isinstance(each, fx.Node) else None for each in node.args])
    return y, _by_jvp(inputs, call, given, name)


def _method(name: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return getattr(x, name)(*args, **kwargs)


def _detached(values: Iterable[Any]) -> list[Any]:
    return [value.detach() if isinstance(value, Tensor) else value for value in values]


def _linear(inputs: Sequence[fx.Node], call: Callable[..., Any], given: Sequence[Any]) -> NodePush:
    zeros = _detached(given) if len(given) > 1 else []

    def push(found: Mapping[fx.Node, Stack]) -> Stack:
        there = [found.get(each) for each in inputs]
        if all(each is None for each in there):
            return None
        if zeros:
            lanes = next(len(each) for each in there if each is not None)
            there = [
                zero.new_zeros(1).expand(lanes, *zero.shape) if each is None else each
                for zero, each in zip(zeros, there, strict=True)
            ]
        return vmap(call)(*there)

    return push


def _product(inputs: Sequence[fx.Node], call: Callable[..., Any], given: Sequence[Any]) -> NodePush:
    factors = _detached(given)

    def push(found: Mapping[fx.Node, Stack]) -> Stack:
        total = None
        for position, each in enumerate(inputs):
            if found.get(each) is not None:
                places = [None] * position + [0] + [None] * (len(factors) - position - 1)
                part = vmap(call, in_dims=tuple(places))(*factors[:position], found[each], *factors[position + 1 :])
                total = part if total is None else total + part
        return total

    return push


def _by_jvp(inputs: Sequence[fx.Node], call: Callable[..., Any], given: Sequence[Any], name: str) -> NodePush:
    at = _detached(given)

    def push(found: Mapping[fx.Node, Stack]) -> Stack:
        moved = [position for position, each in enumerate(inputs) if found.get(each) is not None]
        if not moved:
            return None

        def along(*lanes: Tensor) -> Any:
            return jvp(lambda *x: call(*_with(at, moved, x)), tuple(at[position] for position in moved), lanes)[1]

        with sdpa_kernel(SDPBackend.MATH) if name == "scaled_dot_product_attention" else nullcontext():
            return vmap(along)(*(found[inputs[position]] for position in moved))

    return push


def _with(values: Sequence[Any], positions: Sequence[int], new: Sequence[Any]) -> list[Any]:
    changed = dict(zip(positions, new, strict=True))
    return [changed.get(position, value) for position, value in enumerate(values)]


Own = Callable[[Sequence[Stack]], Stack]
"""Maps lanes of the positional arguments to those of the value."""


def _add(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor, sign: int = 1) -> Own | None:
    if kwargs:
        return None
    shape = y.shape

    def push(lanes: Sequence[Stack]) -> Stack:
        first, second = (
            each if each is None or each.shape[1:] == shape else vmap(lambda lane: lane.expand(shape))(each)
            for each in lanes
        )
        if first is None or second is None:
            return first if second is None else sign * second
        return torch.add(first, second, alpha=sign)

    return push


def _subtract(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    return _add(args, kwargs, y, -1)


def _affine(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    """d(x W^T + b) = dx W^T + x dW^T + db."""
    if kwargs:
        return None
    x, weight = _detached(args[:2])
    shape = y.shape

    def push(lanes: Sequence[Stack]) -> Stack:
        dx, dweight, dbias = [*lanes, None][:3]
        parts = [] if dx is None else [F.linear(dx, weight)]
        if dweight is not None:
            parts.append(torch.stack([F.linear(x, each) for each in dweight]))
        if dbias is not None:
            parts.append(torch.stack([each.expand(shape) for each in dbias]))
        return sum(parts[1:], parts[0]) if parts else None

    return push


def _gelu(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    return _elementwise(partial(aten.gelu_backward, **kwargs), args[0])


def _silu(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    return _elementwise(aten.silu_backward, args[0])


def _elementwise(backward: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Own:
    x = x.detach()
    return lambda lanes: None if lanes[0] is None else times_derivative(lanes[0], backward, x)


def _relu(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    gate = y.detach()
    return lambda lanes: None if lanes[0] is None else aten.threshold_backward(lanes[0], gate.expand_as(lanes[0]), 0)


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], y: Tensor) -> Own | None:
    """With P the softmax of S = s q k^T: dy = dP v + P dv, dP = P (dS - sum(P dS)), dS = s (dq k^T + q dk^T)."""
    same = len({each.shape[:-2] for each in args}) == 1 and args[0].dim() > 2
    if kwargs.get("is_causal") or kwargs.get("attn_mask") is not None or not same:
        return None
    q, k, v = (each.flatten(0, -3) for each in _detached(args))
    scale, shape = kwargs.get("scale") or q.shape[-1] ** -0.5, y.shape

    def push(lanes: Sequence[Stack]) -> Stack:
        if all(each is None for each in lanes):
            return None
        shares = torch.bmm(scale * q, k.mT).softmax(dim=-1)
        found = v.new_empty(next(len(each) for each in lanes if each is not None), *shape)
        for lane, place in enumerate(found.flatten(1, -3)):
            dq, dk, dv = (None if each is None else each[lane].flatten(0, -3) for each in lanes)
            scores = None if dq is None else torch.bmm(scale * dq, k.mT)
            if dk is not None:
                scores = _accumulated(scores, scale * q, dk.mT)
            torch.bmm(shares, dv, out=place) if dv is not None else place.zero_()
            if scores is not None:
                aten._softmax_backward_data.out(scores, shares, -1, scores.dtype, grad_input=scores)
                torch.baddbmm(place, scores, v, out=place)
        return found

    return push


def _accumulated(total: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    """`total`, written over, and a product."""
    return torch.bmm(first, second) if total is None else torch.baddbmm(total, first, second, out=total)


OWN = {"add": _add, "sub": _subtract, "linear": _affine, "gelu": _gelu, "silu": _silu, "relu": _relu,
       "scaled_dot_product_attention": _attention}  # fmt: skip
"""Rules of functions that beat `torch.func` (`python -m fgpipe.bench only=layers`)."""
