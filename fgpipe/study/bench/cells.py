"""Accuracy cells, trained in one process by the oracle, against plain PyTorch; steps alone, without the data."""

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.gradients.optim import Trained
from fgpipe.plan.plan import DataFacts
from fgpipe.study.bench.measure import interleaved, ratios
from fgpipe.study.bench.plain import PlainLoop
from fgpipe.study.bench.table import BenchRow, Sizes, at_least, at_most
from fgpipe.study.bench.two_passes import TwoBackwardPasses
from fgpipe.trainers.build import local_trainer

AGAINST_HOOKS, AGAINST_PLAIN = at_least(3), at_most(1.05)
COMMON = ["window=1", "optim=constant", "optim.lr=0.001", "device=cpu"]
PROJECTED = [*COMMON, "tangents=oracle", "guess=local", "target=global", "space=activity", "scope=sample"]
END_TO_END = [*COMMON, "tangents=oracle", "guess=end_to_end"]
LAYOUTS = {"hooks, NCHW": torch.contiguous_format, "hooks, channels last": torch.channels_last}
"""PyTorch's default, which a straightforward loop has; and ours, which shows how much of the gain that is."""
EPOCHS = "epochs=1000000"
"""Epochs, at which a constant learning rate does not look."""


def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Yield the rows of each width; the note has images per second, the median of the rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a grid runs its cells
    for width in sizes.widths:
        yield from _of_width(width, sizes)
    torch.set_num_threads(threads)


def _of_width(width: float, sizes: Sizes) -> Iterator[BenchRow]:
    images, labels = random_batch(sizes)
    step, trained = step_of([*PROJECTED, f"model.width={width}"], images, labels)
    whole, of_net = step_of([*END_TO_END, f"model.width={width}"], images, labels)
    optim = compose_config(COMMON).optim
    calls = {"cell": step}
    for name, layout in LAYOUTS.items():
        hooks = TwoBackwardPasses(*_copies(trained, layout), optim)
        calls[name] = partial(hooks.step, images.contiguous(memory_format=layout), labels)
    seconds = interleaved(calls, sizes.steps, sizes.step_seconds)
    for name, goal in zip(LAYOUTS, (AGAINST_HOOKS, None), strict=True):
        what = f"speed of activity/sample against {name}, width {width:g}"
        yield BenchRow(
            "cells", what, ratios(seconds[name], seconds["cell"]), goal, _speeds(seconds, ("cell", name), sizes)
        )
    blocks, (*_, classifier) = _copies(of_net, torch.channels_last)
    assert classifier is not None
    plain = PlainLoop(nn.Sequential(*blocks, classifier), optim)
    both: dict[str, Callable[[], object]] = {"end to end": whole, "plain loop": partial(plain.step, images, labels)}
    seconds = interleaved(both, 2 * sizes.steps, sizes.step_seconds)
    what = f"time of end to end over the plain loop's, channels last, width {width:g}"
    yield BenchRow(
        "cells", what, ratios(*(seconds[name] for name in both)), AGAINST_PLAIN, _speeds(seconds, both, sizes)
    )


def random_batch(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Images of three channels, channels last, and labels of ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, generator=generator)
    labels = torch.randint(10, (sizes.batch,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def step_of(
    overrides: list[str], images: Tensor, labels: Tensor
) -> tuple[Callable[[], object], Mapping[int, Mapping[str, Trained]]]:
    """Make one training step, in this process, on a batch that is always the same; and what it trains, by block."""
    config = compose_config([*overrides, f"batch_size={len(images)}", EPOCHS])
    facts = DataFacts(1, 1, classes=10, channels=images.shape[1], height=images.shape[2], width=images.shape[3])
    trainer = local_trainer(config, facts)
    epochs = iter(range(config.epochs))
    return lambda: trainer.train(next(epochs), 1, lambda *_: (images, labels)), trainer.trained()


def _copies(
    trained: Mapping[int, Mapping[str, Trained]], layout: torch.memory_format
) -> tuple[list[nn.Module], list[nn.Module | None]]:
    """Blocks and heads in a layout; None where a block has no head."""
    parts = [copy.deepcopy({name: part.module for name, part in trained[j].items()}) for j in sorted(trained)]
    moved = [{name: module.to(memory_format=layout) for name, module in part.items()} for part in parts]
    return [part["block"] for part in moved], [part.get("head") for part in moved]


def _speeds(seconds: Mapping[str, list[float]], names: Iterable[str], sizes: Sizes) -> str:
    speeds = {name: sizes.batch / statistics.median(seconds[name]) for name in names}
    return "; ".join(f"{name}: {speed:.0f} images/s" for name, speed in speeds.items())
