"""Gain of `torch.compile`: what a block computes, compiled and not, in turns, on the CPU.

    python -m fgpipe.study compiling [widths=[1,0.25]] [lanes=[1,4]] [blocks=[0,1,2,3,4,5,6,7]] [batch=64] [pixels=32]
                                     [seconds=1.2] [out=FILE]

Of each block of ResNet-18 with its MLP head, in training mode: a step of both on the head's loss (forward as one graph,
and backward); a forward pass without autograd's graph; and, for each number of lanes, the primal with its lanes as one
graph, which a local guess does not allow, as its backward pass stands between the two. A row has every block's time as
it is over its time compiled (above 1, compiling pays): the median block, the worst and the best; the same of all blocks
together; and the seconds until all are compiled for the first time. `seconds` is how long each is measured. `out=FILE`
puts the table below the heading "Results" of FILE.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.cluster.allocator import keep_pages
from fgpipe.config import compose_config
from fgpipe.config.arguments import parse
from fgpipe.errors import bad_value
from fgpipe.gradients import Tangent, linearize
from fgpipe.models.init import materialize
from fgpipe.models.net import resnet
from fgpipe.saving.outputs import check_file
from fgpipe.study.bench.command import surroundings, write_results
from fgpipe.study.bench.measure import interleaved
from fgpipe.study.bench.table import FULL, BenchRow, table

Graph = Callable[..., Any]
"""Function that is compiled."""
Use = Callable[[Graph], object]
"""Calls it, and does what stays outside of it."""
BLOCKS, CLASSES = 8, 10
ROUNDS = 3
"""Rounds of interleaved calls, at least."""


@dataclass
class CompilingOptions:
    """Keys of the command."""

    widths: list[float] = field(default_factory=lambda: [1.0, 0.25])
    lanes: list[int] = field(default_factory=lambda: [1, 4])
    blocks: list[int] = field(default_factory=lambda: list(range(BLOCKS)))
    batch: int = FULL.batch
    pixels: int = FULL.pixels
    seconds: float = 1.2
    out: str | None = None

    def check(self) -> None:
        """
        Raises:
            UserError: a value that it cannot have.
        """
        if not self.blocks or not set(self.blocks) <= set(range(BLOCKS)):
            raise bad_value("blocks", self.blocks, f"a list of blocks from 0 to {BLOCKS - 1}")
        for key in ("widths", "lanes"):
            if min(getattr(self, key), default=0) <= 0:
                raise bad_value(key, getattr(self, key), "a list of numbers above 0")
        for key, least in (("batch", 2), ("pixels", 8)):
            if getattr(self, key) < least:
                raise bad_value(key, getattr(self, key), f"at least {least}")
        if self.out is not None:
            check_file("out", Path(self.out))


@dataclass(frozen=True)
class Seconds:
    """Time of one block and what it computes: in the median, and of the first compiled call."""

    as_it_is: float
    compiled: float
    compiling: float


def main(arguments: list[str]) -> int:
    """Measure and print; returns the exit code.

    Raises:
        UserError: the arguments cannot be run.
    """
    options = parse(arguments, CompilingOptions())
    options.check()
    keep_pages()  # as training does
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # in its own, it would find what an earlier run has compiled
        found = list(rows(options))
    command = " ".join(["python -m fgpipe.study compiling", *arguments])
    text = f"{table(found)}\n{surroundings()}\n\nCommand: `{command}`\n"
    print(text, end="")
    if options.out is not None:
        write_results(Path(options.out), text)
    return 0


def rows(options: CompilingOptions) -> Iterator[BenchRow]:
    """Yield a row for each width and computation."""
    for width in options.widths:
        found: dict[str, list[Seconds]] = {}
        for block, head, x, labels in parts(width, options):
            for name, (graph, use) in computations(block, head, x, labels, options.lanes).items():
                found.setdefault(name, []).append(measure(graph, use, options.seconds))
        for name, blocks in found.items():
            as_it_is, compiled, compiling = (sum(column) for column in zip(*map(astuple, blocks), strict=True))
            note = f"together {as_it_is / compiled:.2f}; compiled in {compiling:.0f} s"
            gains = [each.as_it_is / each.compiled for each in blocks]
            yield BenchRow("compiling", f"{name}, width {width:g}", gains, note=note)


def parts(width: float, options: CompilingOptions) -> Iterator[tuple[nn.Module, Any, Tensor, Tensor]]:
    """Yield each block asked for, in training mode, its head, a batch at its input, channels last, and labels."""
    config, generator = compose_config([f"model.width={width}"]), torch.Generator().manual_seed(0)
    net = resnet(config.model, config.head, in_channels=3, classes=CLASSES)
    x = torch.randn(options.batch, 3, options.pixels, options.pixels, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (options.batch,), generator=generator)
    for index, modules in enumerate(zip(net.blocks, net.heads, strict=True)):
        block, head = (materialize(module, generator, dtype=x.dtype, device=x.device) for module in modules)
        if index in options.blocks:
            yield block, head, x, labels
        x = block(x).detach()


def computations(
    block: nn.Module, head: Any, x: Tensor, labels: Tensor, lanes: Sequence[int]
) -> dict[str, tuple[Graph, Use]]:
    """Name what is compiled of a block, and how it is used."""
    parameters = [*block.parameters(), *head.parameters()]

    def losses(x: Tensor) -> Tensor:
        return head.losses(block(x), labels)[0]

    def push(x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        y, push = linearize(block, x)
        pushed = push(Tangent(tuple(range(len(dx) // len(x))), dx), {})
        assert pushed is not None
        return y, pushed.value

    found: dict[str, tuple[Graph, Use]] = {
        "step of block and head": (losses, lambda graph: torch.autograd.grad(graph(x).mean(), parameters)),
        "forward": (block, torch.no_grad()(lambda graph: graph(x))),
    }
    for count in lanes:
        dx = torch.randn(count * len(x), *x.shape[1:]).contiguous(memory_format=torch.channels_last)
        use = torch.no_grad()(lambda graph, dx=dx: graph(x, dx))
        found[f"primal and {count} lane{'s' * (count > 1)}"] = push, use
    return found


def measure(graph: Graph, use: Use, at_least: float) -> Seconds:
    """Compile, and time both in turns."""
    torch.compiler.reset()
    compiled = torch.compile(graph, fullgraph=True)
    began = time.perf_counter()
    use(compiled)
    compiling = time.perf_counter() - began
    seconds = interleaved({graph: lambda: use(graph), compiled: lambda: use(compiled)}, ROUNDS, at_least)
    return Seconds(statistics.median(seconds[graph]), statistics.median(seconds[compiled]), compiling)
