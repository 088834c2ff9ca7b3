"""Tangents of modules whose forward pass their author wrote: `torch.fx` traces it, and each node has a rule.

A node may only do what is listed here: nothing random, nothing that writes. A module that does anything else goes through
`torch.func` as a whole (`by_torch_func`), which is slower.

Shapes: the lanes of a value are `[R, *shape]`, the same R lanes at every node.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import jvp, vmap
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgpipe.config.rng import restore, states
from fgpipe.gradients.dual import Direction, Directions, Push, Tangent, by_torch_func, has_rule, rule, rule_of
from fgpipe.gradients.reverse import gradients
from fgpipe.gradients.rules.tokens import times_derivative
from fgpipe.models.net import deep_copy

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


class _Tracer(fx.Tracer):
    """Modules of one input stay whole that have a rule, or a graph of their own, or belong to PyTorch."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if len(args) == 1 and isinstance(args[0], fx.Proxy) and not kwargs:
            theirs = type(m).forward.__module__.startswith("torch.nn.") and not isinstance(m, nn.RNNBase)
            if has_rule(m) or theirs or traced(m) is not None:
                return self.create_proxy("call_module", self.path_of_module(m), args, {})
        return forward(*args, **kwargs)


_graphs: WeakKeyDictionary[nn.Module, tuple[object, fx.Graph | None]] = WeakKeyDictionary()
_tried: WeakKeyDictionary[nn.Module, fx.Graph] = WeakKeyDictionary()


def traced(module: nn.Module, x: Tensor | None = None) -> fx.Graph | None:
    """The module's graph with the modes, numbers and words that its layers have now; None if not all of it is known.

    Args: x: an input `[B, ...]`, on which the graph must do what the module does, tried once: tracing does not see all of it,
    such as that `y += 1` writes over what `y` is a view of.
    """
    mode = [
        each
        for layer in module.modules()
        for each in vars(layer).values()
        if isinstance(each, bool | int | float | str)
    ]
    if module not in _graphs or _graphs[module][0] != mode:
        _graphs[module] = mode, _trace(module)
    graph = _graphs[module][1]
    if x is not None and graph is not None and _tried.get(module) is not graph:
        if not _agree(module, graph, x):
            _graphs[module] = mode, None
            return None
        _tried[module] = graph
    return graph


@torch.enable_grad()
def _agree(module: nn.Module, graph: fx.Graph, x: Tensor) -> bool:
    """A graph and its module give the same output and gradients, with the same random numbers in layers that draw.

    Gradients, as tracing does not see `torch.no_grad()` in a forward pass, nor a function of its author's own.
    """
    found: list[list[Tensor]] = []
    for traced in (False, True):
        copy, at = deep_copy(module), x.detach().clone().requires_grad_()
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            y = fx.Interpreter(copy, graph=graph).run(1 * at) if traced else copy(1 * at)
            places = [at, *(each for each in copy.parameters() if each.requires_grad)]
            try:
                found.append([y, *gradients(y, places, torch.randn_like(y))])
            except RuntimeError:  # it writes over what reverse mode needs
                return False
    return all(
        bool((got - wanted).norm() <= torch.finfo(x.dtype).eps ** 0.5 * wanted.norm())
        for wanted, got in zip(*found, strict=True)
    )


def _trace(module: nn.Module) -> fx.Graph | None:
    """The graph of a module that does nothing but compute: a copy is traced, and seen to be as before."""
    copy, drawn = deep_copy(module), states()
    before = _contents(copy)
    try:
        graph = _Tracer().trace(copy)
    except Exception:  # noqa: BLE001 - a forward pass may do anything with a proxy
        graph = None
    if states() != drawn:
        restore(drawn)
        return None
    if graph is None or _contents(copy) != before:
        return None
    result = graph.output_node().args[0]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    known = len(inputs) == 1 and isinstance(result, fx.Node) and all(_is_known(node, module) for node in graph.nodes)
    return graph if known else None


def _contents(module: nn.Module) -> list[object]:
    """Names and identities of all that a module's layers hold, and how often their tensors were written."""
    tensors = (each for each in (*module.parameters(), *module.buffers()) if isinstance(each, Tensor))  # or a proxy
    found: list[object] = [each._version for each in tensors]
    for layer in module.modules():
        for held in (vars(layer), layer._buffers, layer._parameters, layer._modules):
            found.append({name: id(value) for name, value in held.items()})
    return found


def _is_known(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "get_attr":
        value = _attribute(module, node)
        return isinstance(value, Tensor) and value.dim() > 0
    if node.op == "call_module":
        return not getattr(_attribute(module, node), "inplace", False) or _has_no_other_use(node)
    if node.op not in ("call_function", "call_method"):
        return True
    name = _name(node)
    if name == "getattr":
        return node.args[1] in ATTRIBUTES
    if name == "scaled_dot_product_attention":
        return len(node.args) == 3 and set(node.kwargs) <= OPTIONS
    writes = any(node.kwargs.get(each) for each in ("inplace", "max_norm", "out"))
    writes = writes or any(each is True for each in node.args)
    return name in KNOWN and not writes


def _has_no_other_use(node: fx.Node) -> bool:
    """Nobody else sees that a node writes over its first input."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or len(first.users) > 1:
        return False
    return first.op == "call_module" or (first.op == "call_function" and _name(first) not in VIEWS)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else NAMES.get(node.target, "")


def _attribute(module: nn.Module, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(module)


class _Step(NamedTuple):
    """A node that may have lanes."""

    node: fx.Node
    push: NodePush
    done: Sequence[fx.Node]
    """Nodes that none after this one reads."""


@rule(nn.Module)
def by_graph(module: nn.Module, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    """The rule of any module: node by node if all of them are known, else `by_torch_func`."""
    graph = traced(module, x)
    if graph is None:
        return by_torch_func(module, x, prefix)
    values: dict[fx.Node, Any] = {}
    live: set[fx.Node] = set()
    steps: list[_Step] = []
    pushing = _Pushing(prefix)
    *nodes, output = graph.nodes
    result = output.args[0]
    push: NodePush | None
    for node in nodes:
        if node.op == "placeholder":
            values[node], push = x, pushing.input
        elif node.op == "get_attr":
            values[node] = _attribute(module, node)
            push = pushing.parameter(f"{prefix}{node.target}") if isinstance(values[node], nn.Parameter) else None
        elif node.op == "call_module":
            layer, (source,) = _attribute(module, node), node.args
            values[node], inner = rule_of(layer)(layer, values[source], f"{prefix}{node.target}.")
            push = pushing.module(source, inner)
        else:
            values[node], push = _call(node, values, live)
        done = [each for each in node.all_input_nodes if next(reversed(each.users)) is node and each is not result]
        if push is not None:
            live.add(node)
            steps.append(_Step(node, push, done))
        for each in done:
            del values[each]
    return values[result], lambda dx, directions: pushing.run(steps, result, dx, directions)


class _Pushing:
    """What one push is given: its lanes, the input's tangent and the parameters' directions.

    Args: prefix: of the names of the module's parameters.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lanes: tuple[int, ...] = ()
        self._dx: Tangent | None = None
        self._directions: Directions = {}

    def run(self, steps: list[_Step], result: fx.Node, dx: Tangent | None, directions: Directions) -> Tangent | None:
        mine = (each for name, each in directions.items() if name.startswith(self._prefix))
        own = (lane for each in mine for lane in each.coefficients)
        self._lanes = tuple(dict.fromkeys((*(dx.lanes if dx else ()), *own)))
        self._dx, self._directions = dx, directions
        found: dict[fx.Node, Stack] = {}
        while steps:
            node, push, done = steps.pop(0)  # and what the node kept is gone
            lanes = push(found)
            if lanes is not None:
                found[node] = lanes
            for each in done:
                found.pop(each, None)
        return Tangent(self._lanes, found[result].flatten(0, 1)) if result in found else None

    def input(self, found: Mapping[fx.Node, Stack]) -> Stack:
        return self._stacked(self._dx)

    def parameter(self, name: str) -> NodePush:
        def push(found: Mapping[fx.Node, Stack]) -> Stack:
            direction = self._directions.get(name)
            return direction and self._along(direction)

        return push

    def module(self, source: fx.Node, push: Push) -> NodePush:
        def through(found: Mapping[fx.Node, Stack]) -> Stack:
            lanes = found.get(source)
            dx = None if lanes is None else Tangent(self._lanes, lanes.flatten(0, 1))
            return self._stacked(push(dx, self._directions))

        return through

    def _along(self, direction: Direction) -> Tensor:
        value = direction.value
        factors = value.new_tensor([direction.coefficients.get(lane, 0.0) for lane in self._lanes])
        return factors.reshape(-1, *[1] * value.dim()) * value

    def _stacked(self, tangent: Tangent | None) -> Tensor | None:
        """Stack in the order of this push, zeros where the tangent has none."""
        if tangent is None:
            return None
        stack = tangent.per_lane()
        if tangent.lanes == self._lanes:
            return stack
        whole = stack.new_zeros(len(self._lanes), *stack.shape[1:])
        whole[[self._lanes.index(lane) for lane in tangent.lanes]] = stack
        return whole


def _call(node: fx.Node, values: Values, live: Iterable[fx.Node]) -> tuple[Any, NodePush | None]:
    """What a function or method makes, and its push if that may have lanes."""
    name, reads = _name(node), node.all_input_nodes
    inputs, args = [each for each in reads if each in live], map_arg(node.args, values.__getitem__)
    target = node.target if callable(node.target) else partial(_method, node.target)
    fixed = {each: values[each] for each in reads if each not in live}

    def call(*given: Any) -> Any:
        """The node's value with these for what may have lanes."""
        bound = fixed | dict(zip(inputs, given, strict=True))
        return target(*map_arg(node.args, bound.__getitem__), **map_arg(node.kwargs, bound.__getitem__))

    given = [values[each] for each in inputs]
    y = call(*given)
    if not inputs or (name in CONSTANT and node.args[-1] not in VIEWS):
        return y, None
    adds = name == "pad" or any(isinstance(each, Tensor) and each.is_floating_point() for each in fixed.values())
    if name in CONSTANT or (name in LINEAR and not adds):  # as `cat` with a constant does, which has no lanes
        return y, _linear(inputs, call, given)
    if name in PRODUCTS and len(reads) == sum(isinstance(each, fx.Node) for each in node.args):  # no value twice
        return y, _product(inputs, call, given)
    if name in OWN and (own := OWN[name](args, node.kwargs, y)):
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
