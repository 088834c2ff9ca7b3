"""A model of somebody else's, cut into modules that learn by themselves."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fgpipe.models.heads import Head, linear_head
from fgpipe.models.init import materialize
from fgpipe.models.net import Net, deep_copy, grouped
from fgpipe.plan.costs import ForwardPass, on_cpu
from fgpipe.plan.topology import balanced

CPU = torch.device("cpu")
MakeHead = Callable[[torch.Size, int], nn.Module]
"""From the shape of a module's output, without the batch, and the number of classes to a head."""


def default_head(shape: torch.Size, classes: int) -> Head:
    """A norm, a pool and a linear layer, on the meta device, which has weights where the head is used.

    Args: shape: `[C, H, W]`, pooled to 2 x 2; `[T, C]`, the mean over tokens; or `[F]`.

    Raises:
        ValueError: another number of dimensions.
    """
    with torch.device("meta"):
        if len(shape) == 3:
            return linear_head(shape[0], classes, pool=min(2, *shape[1:]))
        if len(shape) == 2:
            tokens = nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()
            return Head(nn.LayerNorm(shape[1]), *tokens, nn.Linear(shape[1], classes))
        if len(shape) == 1:
            return Head(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], classes))
    raise ValueError(f"no default head for an output {list(shape)}: give one (head=)")


def cut(model: nn.Module, modules: int, image: Sequence[int] = (3, 32, 32), head: MakeHead = default_head) -> Net:
    """Cut a model that is a chain of its children into modules balanced by FLOPs, with a head on each but the last.

    The children of `nn.Sequential` and of torchvision's ResNets and VGGs are such chains; what an `nn.Sequential` among
    them holds counts as children too, and a flattening stands before the first linear layer after a convolution. Norms,
    activations and pools stay with the layer before them. The last linear layer, with what has no parameters right
    before it, is the classifier. The parts are the model's own, not copies.

    Args:
        modules: how many.
        image: of the model's input, `[C, H, W]`.
        head: makes the other modules' heads.

    Raises:
        ValueError: the children's chain is not the model, it does not end in a linear layer that gives a row of logits, or it is too short.
    """
    units, classifier = _split(_chain(model, image))
    blocks = [nn.Sequential(*unit) if len(unit) > 1 else unit[0] for unit in units]
    if not 1 <= modules <= len(blocks):
        raise ValueError(f"modules={modules}: allowed: 1 to {len(blocks)}, the layers of {type(model).__name__}")
    *_, output = _shapes([*blocks, classifier], image)
    if len(output) != 1:
        raise ValueError(f"{type(model).__name__} gives {list(output)} for an image: allowed: a row of logits")
    (classes,) = output
    flops = ForwardPass.of(Net(blocks, [nn.Identity()] * len(blocks)), (2, *image)).flops
    parts = grouped(blocks, balanced(flops, modules))
    heads = [head(shape, classes) for shape in _shapes(parts[:-1], image)]
    return Net(parts, [*heads, classifier])


def _chain(model: nn.Module, image: Sequence[int]) -> list[nn.Module]:
    """Children in order, with a flattening where they need one; they compute what the model does."""
    found: list[nn.Module] = []
    x = y = torch.randn(2, *image, generator=torch.Generator().manual_seed(0))
    tried = materialize(deep_copy(model), torch.Generator().manual_seed(0), dtype=torch.float32, device=CPU).eval()
    with torch.no_grad():
        for child, copy in zip(_children(model), _children(tried), strict=True):
            if isinstance(child, nn.Linear) and y.dim() == 4:
                found.append(nn.Flatten())
                y = y.flatten(1)
            found.append(child)
            try:
                y = copy(y.clone())
            except Exception as error:
                raise ValueError(f"{type(model).__name__} is no chain of its children: {error}") from error
        if y.shape != (wanted := tried(x.clone())).shape or not torch.allclose(y, wanted, rtol=1e-3, atol=1e-5):
            raise ValueError(f"{type(model).__name__} is no chain of its children: they compute something else")
    return found


def _children(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        yield from child.children() if type(child) is nn.Sequential else [child]


def _split(chain: list[nn.Module]) -> tuple[list[list[nn.Module]], Head]:
    """Layers with what belongs to them, and the classifier."""
    if not chain or not isinstance(chain[-1], nn.Linear):
        raise ValueError("the last layer is no nn.Linear")
    first = len(chain) - 1
    while first > 0 and next(chain[first - 1].parameters(), None) is None:
        first -= 1
    units: list[list[nn.Module]] = []
    for layer in chain[:first]:
        if units and not _computes(layer):
            units[-1].append(layer)
        elif units and not any(map(_computes, units[-1])):
            units[-1].append(layer)  # what comes before the first layer that computes
        else:
            units.append([layer])
    return units, Head(*chain[first:])


def _computes(layer: nn.Module) -> bool:
    """Tell whether a layer has a weight with two dimensions or more: norms have none."""
    return any(parameter.dim() > 1 for parameter in layer.parameters())


def _shapes(parts: Sequence[nn.Module], image: Sequence[int]) -> list[torch.Size]:
    """Shapes of the outputs of parts that follow each other, without the batch."""
    x: Tensor = torch.zeros(2, *image)
    found = []
    with torch.no_grad():
        for part in parts:
            x = on_cpu(part)(x)
            found.append(x.shape[1:])
    return found
