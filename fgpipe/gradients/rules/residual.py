"""Tangent rules of the layers that ResNets and their heads are made of.

Convolution, pooling and linear layers are linear: a lane goes through them as an activation does, without the
bias. For the others the rule is PyTorch's own backward kernel, run in the forward direction, which is right where
the Jacobian is symmetric: batch norm's normaliser and ReLU.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgpipe.gradients.dual import (
    Direction,
    Directions,
    Push,
    PushLosses,
    Tangent,
    add,
    by_torch_func,
    empty,
    insert,
    linearize,
    loss_rule,
    rule,
    rule_of,
    there,
)
from fgpipe.models.convolution import PaddedConv2d
from fgpipe.models.heads import SIMILARITY_WEIGHT, Head, PredSim, similarity_matrix, spread, unit_rows
from fgpipe.models.pooling import GridPool2d
from fgpipe.models.resnet import Residual

aten = torch.ops.aten
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
CONVOLUTIONS = nn.Conv2d._conv_forward, PaddedConv2d._conv_forward
"""Linear in the image and in the weight; a subclass may convolve in another way."""


@rule(nn.Sequential)
def _sequential(module: nn.Sequential, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    """Layer by layer, but batch norm and a ReLU after it as one."""
    pushes = []
    layers = list(module._modules.items())  # one that stands there twice too
    while layers:
        name, layer = layers.pop(0)
        then_relu = layers and rule_of(layer) is _batch_norm and rule_of(layers[0][1]) is _relu
        if then_relu and isinstance(layer, BatchNorm) and _has_batch_statistics(layer):
            x, push = _by_batch_statistics(layer, x, f"{prefix}{name}.", then_relu=True)
            layers.pop(0)
        else:
            x, push = rule_of(layer)(layer, x, f"{prefix}{name}.")
        pushes.append(push)

    def through(dx: Tangent | None, directions: Directions) -> Tangent | None:
        while pushes:
            dx = pushes.pop(0)(dx, directions)  # and what the layer kept is gone
        return dx

    return x, through


@rule(nn.Conv2d)
def _conv(module: nn.Conv2d, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    if type(module)._conv_forward not in CONVOLUTIONS:
        return by_torch_func(module, x, prefix)

    def convolve(lanes: Tensor, weight: Tensor) -> Tensor:
        return module._conv_forward(lanes, weight, None)

    y = module(x)
    return y, _affine_push(convolve, module, x.detach(), y.detach(), prefix)


@rule(nn.Linear)
def _linear(module: nn.Linear, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    y = module(x)
    return y, _affine_push(F.linear, module, x.detach(), y.detach(), prefix)


def _affine_push(
    multiply: Callable[[Tensor, Tensor], Tensor], module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor, prefix: str
) -> Push:
    """d(W x + b) = W dx + dW x + db."""
    like, inputs = y if module.bias is not None else None, [x]

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        x = inputs.pop()
        of_weight = directions.get(f"{prefix}weight")
        if of_weight:
            of_weight = replace(of_weight, value=multiply(x, of_weight.value))
        del x  # before there is room made for the output's lanes
        dy = None if dx is None else Tangent(dx.lanes, multiply(dx.value, module.weight), fresh=True)
        if of_weight:
            dy = insert(dy, of_weight.value, of_weight.coefficients)
        if own := directions.get(f"{prefix}bias"):
            assert like is not None
            shape = (-1,) + (1,) * (like.dim() - 2) if isinstance(module, nn.Conv2d) else (-1,)
            dy = insert(dy, torch.empty_like(like).copy_(own.value.reshape(shape)), own.coefficients)
        return dy

    return push


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(module: BatchNorm, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    return (
        _by_batch_statistics(module, x, prefix) if _has_batch_statistics(module) else by_torch_func(module, x, prefix)
    )


def _has_batch_statistics(module: BatchNorm) -> bool:
    """The module trains, and its running statistics are no cumulative means."""
    return module.training and module.momentum is not None


def _by_batch_statistics(module: BatchNorm, x: Tensor, prefix: str, *, then_relu: bool = False) -> tuple[Tensor, Push]:
    """Batch norm, and with `then_relu` a ReLU of it, which saves the primal a tensor, and each of several lanes a copy.

    dy = gamma / sigma (dx - mean(dx) - xhat mean(xhat dx)) + dgamma xhat + dbeta. The first part is symmetric in dx
    and an output gradient, hence the backward kernel.
    """
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
    weight, means, variances, eps = module.weight, module.running_mean, module.running_var, module.eps
    assert module.momentum is not None
    y, mean, inverse_std = torch.native_batch_norm(x, weight, module.bias, means, variances, True, module.momentum, eps)
    gate = y.relu_().detach() if then_relu else None
    x, mean, inverse_std = x.detach(), mean.detach(), inverse_std.detach()
    per_channel = (-1,) + (1,) * (x.dim() - 2)

    def normalise(lane: Tensor) -> Tensor:
        return aten.native_batch_norm_backward(
            lane, x, weight, means, variances, mean, inverse_std, True, eps, [True, False, False]
        )[0]

    def own_directions(directions: Directions) -> Iterator[Direction]:
        """Directions of gamma and beta, as directions of y."""
        if gamma := directions.get(f"{prefix}weight"):
            scale = (gamma.value * inverse_std).reshape(per_channel)
            yield replace(gamma, value=torch.addcmul(-scale * mean.reshape(per_channel), x, scale))
        if beta := directions.get(f"{prefix}bias"):
            yield replace(beta, value=beta.value.reshape(per_channel))

    def write(lane: Tensor, place: Tensor) -> Tensor:
        if gate is not None:
            aten.threshold_backward.grad_input(lane, gate, 0, grad_input=place)
        elif lane is not place:
            place.copy_(lane)
        return place

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        own = list(own_directions(directions))
        live = {} if dx is None else dict(zip(dx.lanes, dx.per_lane(), strict=True))
        lanes = tuple(dict.fromkeys((*live, *(lane for each in own for lane in each.coefficients))))

        def normalised(lane: int) -> Tensor:
            value = normalise(live[lane]) if lane in live else torch.zeros_like(x)
            for each in own:
                if lane in each.coefficients:
                    value.add_(each.value, alpha=each.coefficients[lane])
            return value

        if not lanes:
            return None
        if len(lanes) == 1:
            value = normalised(lanes[0])
            return Tangent(lanes, write(value, value), fresh=True)
        dy = dx if dx is not None and dx.fresh and len(lanes) == len(live) else empty(lanes, x)
        for lane, place in zip(lanes, dy.per_lane(), strict=True):
            write(normalised(lane), place)  # one at a time: only this lane is there twice
        return dy

    return y, push


@rule(nn.ReLU)
def _relu(module: nn.ReLU, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    return _gated(torch.relu(x))


def _gated(y: Tensor) -> tuple[Tensor, Push]:
    """The output of a ReLU, and its push: a lane passes where that is positive."""
    gate = y.detach()

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        if dx is None:
            return None
        stack = dx.per_lane()
        gates = gate.expand_as(stack)
        if dx.fresh and dx.value.dtype == gate.dtype:
            aten.threshold_backward.grad_input(stack, gates, 0, grad_input=stack)
            return dx
        return Tangent(dx.lanes, aten.threshold_backward(stack, gates, 0).flatten(0, 1), fresh=True)

    return y, push


@rule(nn.MaxPool2d)
def _max_pool(module: nn.MaxPool2d, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    y, indices = F.max_pool2d(
        x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, return_indices=True
    )
    like = y.detach()

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        if dx is None:
            return None
        stack = dx.per_lane().flatten(-2)
        chosen = stack.gather(-1, indices.flatten(-2).expand(*stack.shape[:-1], -1))
        dy = empty(dx.lanes, like)
        dy.per_lane().copy_(chosen.unflatten(-1, indices.shape[-2:]))
        return dy

    return y, push


@rule(nn.AvgPool2d, nn.AdaptiveAvgPool2d, GridPool2d, nn.Flatten, nn.Identity)
def _linear_map(module: nn.Module, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    if isinstance(module, nn.Flatten) and module.start_dim != 1:
        return by_torch_func(module, x, prefix)

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        return dx and replace(dx, value=module(dx.value))

    return module(x), push


@rule(Residual)
def _residual(module: Residual, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    body, push_body = rule_of(module.body)(module.body, x, f"{prefix}body.")
    shortcut, push_shortcut = rule_of(module.shortcut)(module.shortcut, x, f"{prefix}shortcut.")
    y, push_relu = _gated((body + shortcut).relu_())

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        shared = dx and replace(dx, fresh=False)
        return push_relu(add(push_body(shared, directions), push_shortcut(shared, directions)), directions)

    return y, push


@loss_rule(Head)
def _cross_entropy(head: Head, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, PushLosses]:
    logits, push_head = linearize(head, x)
    push_losses = _cross_entropy_push(logits, labels)
    return F.cross_entropy(logits, labels, reduction="none"), logits, lambda dx: push_losses(there(push_head(dx, {})))


def _cross_entropy_push(logits: Tensor, labels: Tensor) -> PushLosses:
    """d loss_i = <softmax(z_i) - onehot_i, dz_i>."""
    residual = logits.detach().softmax(dim=1)
    residual[torch.arange(len(labels)), labels] -= 1
    return lambda dz: (dz.per_lane() * residual).sum(dim=2)


@loss_rule(PredSim)
def _predsim(head: PredSim, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, PushLosses]:
    logits, push_logits = linearize(head.predict, x)
    z, push_z = linearize(head.similarity, x)
    features = spread(z)
    similarity = similarity_matrix(features)
    mismatch = similarity - similarity_matrix(F.one_hot(labels, logits.shape[1]).to(x.dtype))
    losses = SIMILARITY_WEIGHT * mismatch.square().mean(dim=1)
    losses = losses + (1 - SIMILARITY_WEIGHT) * F.cross_entropy(logits, labels, reduction="none")
    push_cross_entropy = _cross_entropy_push(logits, labels)
    z, features, mismatch = z.detach(), features.detach(), mismatch.detach()
    unit = unit_rows(features)

    def push(dx: Tangent) -> Tensor:
        dunit = _unit_rows_tangent(features, unit, _spread_tangent(z, features, there(push_z(dx, {})).per_lane()))
        dsimilarity = dunit @ unit.T
        dsimilarity = dsimilarity + dsimilarity.mT
        dmismatch = 2 * (mismatch * dsimilarity).mean(dim=2)
        dcross_entropy = push_cross_entropy(there(push_logits(dx, {})))
        return SIMILARITY_WEIGHT * dmismatch + (1 - SIMILARITY_WEIGHT) * dcross_entropy

    return losses, logits, push


def _spread_tangent(z: Tensor, deviation: Tensor, dz: Tensor) -> Tensor:
    """d std = <z - mean, dz> / ((n - 1) std), and 0 where std is 0, as autograd has it. `dz` is `[R, B, C, H, W]`."""
    pixels, dpixels = z.flatten(2), dz.flatten(3)
    count = pixels.shape[2]
    if count == 1:
        return dpixels.squeeze(3)
    inner = ((pixels - pixels.mean(dim=2, keepdim=True)) * dpixels).sum(dim=3)
    return torch.where(deviation > 0, inner / ((count - 1) * deviation), 0.0)


def _unit_rows_tangent(features: Tensor, unit: Tensor, dfeatures: Tensor) -> Tensor:
    """The tangent `[R, B, F]` of `unit_rows`: with v centred, (dv - u <v, dv> / |v|) / (|v| + 1e-8)."""
    centred = features - features.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    dcentred = dfeatures - dfeatures.mean(dim=2, keepdim=True)
    inner = (centred * dcentred).sum(dim=2, keepdim=True)
    return (dcentred - unit * torch.where(norm > 0, inner / norm, 0.0)) / (norm + 1e-8)
