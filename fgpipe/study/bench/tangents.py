"""Cost of lanes, in forward passes of the same block, and against `torch.func`; time and memory."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgpipe.gradients import Tangent, linearize
from fgpipe.models.init import materialize
from fgpipe.models.resnet import resnet18
from fgpipe.study.bench.measure import interleaved, peak_bytes, ratios
from fgpipe.study.bench.table import BenchRow, Sizes, at_least, at_most
from fgpipe.wire.batch import canonical

PRICE, SPEEDUP, MEDIAN_SPEEDUP, MEMORY = at_most(1.1), at_least(1.0), at_least(1.7), at_most(1.1)


@dataclass(frozen=True)
class Figures:
    """Figures of one block and number of lanes."""

    price: list[float]
    """Time of each round: primal and R lanes, over 1 + R forward passes."""
    speedup: list[float]
    """Time of each round: `vmap(jvp)` over primal and R lanes."""
    memory: float
    """Peak of primal and R lanes, over 1 + R times the peak of a forward pass."""
    recorded_memory: float
    """Peak over a forward pass that records its graph, as the primal of a block with a local guess does."""


@torch.no_grad()
def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Yield the worst block of each width and number of lanes; the note has every block's median."""
    speedups = []
    for width in sizes.widths:
        found: dict[int, list[Figures]] = {lanes: [] for lanes in sizes.lanes}
        for block, x in blocks(width, sizes):
            for lanes, figures in measure(block, x, sizes).items():
                found[lanes].append(figures)
        for lanes, of_blocks in found.items():
            prices, each = [figures.price for figures in of_blocks], [figures.speedup for figures in of_blocks]
            speedups += [statistics.median(speedup) for speedup in each]
            where = f"width {width:g}, {lanes} lane{'s' * (lanes > 1)}"
            worst = max(prices, key=statistics.median)
            yield BenchRow("tangents", f"time in forward passes, {where}", worst, PRICE, _note(prices))
            slowest = min(each, key=statistics.median)
            yield BenchRow("tangents", f"speed against vmap(jvp), {where}", slowest, SPEEDUP, _note(each))
            memory = [[figures.memory] for figures in of_blocks]
            yield BenchRow("tangents", f"peak memory in forward passes', {where}", max(memory), MEMORY, _note(memory))
            memory = [[figures.recorded_memory] for figures in of_blocks]
            what = f"peak memory in forward passes' that record their graph, {where}"
            yield BenchRow("tangents", what, max(memory), MEMORY, _note(memory))
    yield BenchRow("tangents", "speed against vmap(jvp), all of these", speedups, MEDIAN_SPEEDUP)


def _note(of_blocks: list[list[float]]) -> str:
    return "blocks from 0 on: " + " ".join(f"{statistics.median(figures):.2f}" for figures in of_blocks)


def blocks(width: float, sizes: Sizes) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield each block of ResNet-18 in training mode, with a batch at its input, channels last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        found, _ = resnet18(8, width=width)
    for block in found:
        block = materialize(block, generator, dtype=x.dtype, device=x.device)
        yield block, x
        x = block(x)


def measure(block: nn.Module, x: Tensor, sizes: Sizes) -> dict[int, Figures]:
    """Measure one block, by number of lanes."""
    forward, found = (lambda: block(x)), {}
    forward_peak, recorded_peak = peak_bytes(forward), peak_bytes(torch.enable_grad()(forward))
    for lanes, rounds in zip(sizes.lanes, sizes.rounds, strict=True):
        dx = canonical(torch.randn(lanes * len(x), *x.shape[1:]))
        ours = pushing(block, x, Tangent(tuple(range(lanes)), dx))
        calls = {"forward": forward, "ours": ours, "torch": by_torch(block, x, dx)}
        seconds = interleaved(calls, rounds, sizes.seconds)
        price = [ratio / (1 + lanes) for ratio in ratios(seconds["ours"], seconds["forward"])]
        peak = peak_bytes(ours) / (1 + lanes)
        speedup = ratios(seconds["torch"], seconds["ours"])
        found[lanes] = Figures(price, speedup, peak / forward_peak, peak / recorded_peak)
    return found


def pushing(block: nn.Module, x: Tensor, tangent: Tangent) -> Callable[[], tuple[Tensor, Tensor]]:
    """Make a call for the block's output and its lanes, as a stage computes them."""

    def run() -> tuple[Tensor, Tensor]:
        y, push = linearize(block, x)
        pushed = push(tangent, {})
        assert pushed is not None
        return y, pushed.value

    return run


def by_torch(block: nn.Module, x: Tensor, dx: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Make a call for them by `vmap(jvp)`, which computes the primal once: `[B, ...]` and `[R, B, ...]`."""
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}

    def call(x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}  # which jvp must see being made
        return functional_call(block, parameters | buffers, (x,))

    def push(dx: Tensor) -> tuple[Tensor, Tensor]:
        y, dy = jvp(call, (x,), (dx,))[:2]
        return y, dy

    pushed = vmap(push, out_dims=(None, 0))  # type: ignore[arg-type]  # the annotation lacks None, which is documented

    def run() -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no forward mode
            return pushed(dx.unflatten(0, (-1, len(x))))

    return run
