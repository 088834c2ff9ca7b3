"""Signs of coded lanes: which probe enters which lane with which sign.

They are drawn from a key (seed, target, batch) that both ends know, so nothing is sent. One draw makes the signs of
all probes that share the lanes. It is made on the CPU, so that ends on different devices agree.

P probes, R lanes, S samples (1 unless every sample has signs of its own).
"""

from functools import cache

import torch
from torch import Tensor

from fgpipe.config.rng import generator


def most_lanes(code: str, probes: int) -> int:
    """The most lanes that P probes can use: more would repeat what these tell."""
    return max(1, probes) if code == "rademacher" else 1 << max(0, probes - 1).bit_length()


def signs(code: str, probes: int, lanes: int, samples: int, *, seed: int, target: int, batch: int) -> Tensor:
    """The signs of one batch, int8 `[P, R, S]`, all of mean zero.

    `rademacher`: independent signs. `hadamard`: each probe gets a random row of the Hadamard matrix of order R, a
    power of two, times a random sign. No two probes share a row if P <= R; otherwise as few as can be share one, and
    their random signs keep the decoding unbiased. Signs differ from sample to sample where that averages noise,
    hence not where the rows suffice: there is none.
    """
    source = generator(seed, "code", target, batch)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=source, dtype=torch.int8).mul_(2).sub_(1)

    if code == "rademacher":
        return draw(probes, lanes, samples)
    rows = torch.randperm(probes, generator=source) % lanes
    own = draw(probes, 1, 1 if probes <= lanes else samples)
    return (hadamard(lanes)[rows].unsqueeze(2) * own).expand(-1, -1, samples)


@cache
def hadamard(order: int) -> Tensor:
    """Sylvester's Hadamard matrix, int8 `[order, order]`, for a power of two: orthogonal rows of signs."""
    matrix, double = torch.ones(1, 1, dtype=torch.int8), torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    while len(matrix) < order:
        matrix = torch.kron(double, matrix)
    return matrix
