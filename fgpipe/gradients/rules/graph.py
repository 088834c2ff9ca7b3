"""Tangents of modules whose forward pass their author wrote: `torch.fx` traces it, and each node has a rule.

A node may only do what `functions` lists: nothing random, nothing that writes. A module that does anything else goes through
`torch.func` as a whole (`by_torch_func`), which is slower.

Shapes: the lanes of a value are `[R, *shape]`, the same R lanes at every node.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from fgpipe.config.rng import restore, states
from fgpipe.gradients.dual import Direction, Directions, Push, Tangent, by_torch_func, has_rule, rule, rule_of
from fgpipe.gradients.reverse import gradients
from fgpipe.gradients.rules.functions import (
    ATTRIBUTES,
    KNOWN,
    OPTIONS,
    SEVERAL,
    VIEWS,
    NodePush,
    Stack,
    call_node,
    name_of,
)
from fgpipe.models.net import deep_copy


class _Tracer(fx.Tracer):
    """Modules of one input and one output stay whole that have a rule, or a graph of their own, or belong to PyTorch."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if len(args) == 1 and isinstance(args[0], fx.Proxy) and not kwargs:
            theirs = has_rule(m) or type(m).forward.__module__.startswith("torch.nn.")
            several = isinstance(m, nn.RNNBase | nn.RNNCellBase) or getattr(m, "return_indices", False)
            if (theirs and not several) or traced(m) is not None:
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
    one = len(inputs) == 1 and isinstance(result, fx.Node) and name_of(result) not in SEVERAL
    return graph if one and all(_is_known(node, module) for node in graph.nodes) else None


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
    name = name_of(node)
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
    return first.op == "call_module" or (first.op == "call_function" and name_of(first) not in VIEWS)


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
            values[node], push = call_node(node, values, live)
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
