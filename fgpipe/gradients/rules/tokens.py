"""Tangent rules of the layers that transformers and mixers are made of.

Each beats `torch.func` (`python -m fgpipe.bench only=layers`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fgpipe.gradients.dual import Directions, Push, Tangent, by_torch_func, empty, insert, rule
from fgpipe.models.net import input_for

aten = torch.ops.aten


@rule(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    weight, shape = module.weight, list(module.normalized_shape)
    if weight is not None and weight.dtype != x.dtype:
        return by_torch_func(module, x, prefix)
    y, mean, inverse_std = torch.native_layer_norm(x, shape, weight, module.bias, module.eps)
    x, mean, inverse_std = x.detach(), mean.detach(), inverse_std.detach()

    def normalise(lane: Tensor) -> Tensor:
        return aten.native_layer_norm_backward(lane, x, shape, mean, inverse_std, None, None, [True, False, False])[0]

    return y, _norm_push(module, y.detach(), normalise, lambda: (x - mean) * inverse_std, shape, prefix)


@rule(nn.GroupNorm)
def _group_norm(module: nn.GroupNorm, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    weight, (batch, channels, *pixels), groups = module.weight, x.shape, module.num_groups
    if weight is not None and weight.dtype != x.dtype:
        return by_torch_func(module, x, prefix)
    count, x = math.prod(pixels), _dense(x)
    y, mean, inverse_std = torch.native_group_norm(x, weight, module.bias, batch, channels, count, groups, module.eps)
    x, mean, inverse_std = x.detach(), mean.detach(), inverse_std.detach()
    sizes = batch, channels, count, groups

    def normalise(lane: Tensor) -> Tensor:
        gradient = aten.native_group_norm_backward
        return gradient(_dense(lane, x), x, mean, inverse_std, None, *sizes, [True, False, False])[0]

    def normalised() -> Tensor:
        return torch.native_group_norm(x, None, None, *sizes, module.eps)[0]

    return y, _norm_push(module, y.detach(), normalise, normalised, [channels] + [1] * len(pixels), prefix)


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """`x` contiguous, or channels last if `like` is, itself without one."""
    like = x if like is None else like
    channels_last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _norm_push(
    module: nn.LayerNorm | nn.GroupNorm,
    like: Tensor,
    normalise: Callable[[Tensor], Tensor],
    normalised: Callable[[], Tensor],
    shape: Sequence[int],
    prefix: str,
) -> Push:
    """dy = gamma N dx + dgamma xhat + dbeta. N, the derivative of xhat, is symmetric: the backward kernel without a weight.

    Args: shape: of gamma and beta beside a sample.
    """

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        dy = None
        if dx is not None:
            dy = empty(dx.lanes, like)
            for lane, place in zip(dx.per_lane(), dy.per_lane(), strict=True):
                scale = 1.0 if module.weight is None else module.weight.reshape(shape)
                torch.mul(normalise(lane), scale, out=place)
        if gamma := directions.get(f"{prefix}weight"):
            dy = insert(dy, normalised() * gamma.value.reshape(shape), gamma.coefficients)
        if beta := directions.get(f"{prefix}bias"):
            dy = insert(dy, beta.value.reshape(shape).expand_as(like), beta.coefficients)
        return dy

    return push


@rule(nn.GELU, nn.SiLU)
def _smooth(module: nn.GELU | nn.SiLU, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    kept, options = x.detach(), {"approximate": module.approximate} if isinstance(module, nn.GELU) else {}
    backward = partial(aten.gelu_backward if isinstance(module, nn.GELU) else aten.silu_backward, **options)

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        if dx is None:
            return None
        return Tangent(dx.lanes, times_derivative(dx.per_lane(), backward, kept).flatten(0, 1), fresh=True)

    return module(input_for(module, x)), push


def times_derivative(lanes: Tensor, backward: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """Lanes `[R, ...]` times the derivative at `x` of an elementwise function with this backward kernel.

    The kernel is dear, so that several lanes share one call.
    """
    if len(lanes) == 1:
        return backward(lanes, x.expand_as(lanes))
    return lanes * backward(torch.ones_like(x), x)


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _dropout(module: _DropoutNd, x: Tensor, prefix: str) -> tuple[Tensor, Push]:
    """The primal's mask for every lane."""
    mask = module(torch.ones_like(x.detach())) if module.training and module.p > 0 else None

    def push(dx: Tangent | None, directions: Directions) -> Tangent | None:
        return dx if dx is None or mask is None else Tangent(dx.lanes, (dx.per_lane() * mask).flatten(0, 1), fresh=True)

    return x if mask is None else x * mask, push
