"""Weights of the batches in flight: a backward pass is made with those of its forward pass, whatever came between."""

import torch
from torch import Tensor, nn

from fgpipe.models.net import deep_copy


class Stash:
    """A copy of a module's weights for each batch in flight."""

    def __init__(self, module: nn.Module, copies: int) -> None:
        """Args: copies: batches in flight; 0: each is done with before the next update, and needs no copy."""
        self._module = module
        self._copies = [sharing_buffers(module) for _ in range(copies)]

    def keep(self, batch: int) -> nn.Module:
        """The module that runs a batch: a copy that keeps the present weights for its graph, or the module itself."""
        if not self._copies:
            return self._module
        copy = self._copies[batch % len(self._copies)]
        copy_weights(self._module, copy)
        return copy


class TwoVersions:
    """The newest two versions of a module's weights, of which each batch's graph has the older (2BW).

    Version v is what v updates have made. Batch b is run with version b - 1, the first one with version 0: that is the
    newest where the update of batch b - 1 is yet to come, as in full flow below the last block, and else the one before.
    """

    def __init__(self, module: nn.Module, version: int) -> None:
        """Args: version: the one that the module has."""
        self._module, self._version = module, version
        self._copies = [sharing_buffers(module) for _ in range(2)]
        """Version v is in number v % 2."""
        self._held = {(version - 1) % 2: version - 1}
        """The version that is in a copy, by the copy's number."""

    @staticmethod
    def version_for(batch: int) -> int:
        """The version that runs a batch."""
        return max(0, batch - 1)

    def keep(self, batch: int) -> nn.Module:
        """The copy that runs all parts of a batch, in order."""
        wanted = self.version_for(batch)
        if wanted == self._version:
            self._hold()
        assert self._held[wanted % 2] == wanted, "updates come in order, at most one late"
        return self._copies[wanted % 2]

    def before_update(self) -> None:
        """Keep the newest version, which is about to change."""
        self._hold()
        self._version += 1

    def _hold(self) -> None:
        if self._held.get(self._version % 2) != self._version:
            copy_weights(self._module, self._copies[self._version % 2])
            self._held[self._version % 2] = self._version

    @property
    def older(self) -> nn.Module:
        """The version before the newest, which a checkpoint needs beside it."""
        return nn.ParameterList(self._copies[(self._version - 1) % 2].parameters())


def sharing_buffers(module: nn.Module) -> nn.Module:
    """A copy with parameters of its own that writes the same running statistics."""
    twin = deep_copy(module)
    for own, shared in zip(twin.modules(), module.modules(), strict=True):
        own._buffers = shared._buffers
    return twin


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a copy the weights of the original."""
    targets: list[Tensor] = list(target.parameters())
    if targets:
        torch._foreach_copy_(targets, list(source.parameters()))
