"""Steps of all blocks in one process on one device: speed, waits of the host, how busy the device is, and memory.

    python -m fgpipe.study device [device=cuda] [steps=20] [pixels=32] [key=value ...]

Each method trains on one batch again and again, in rounds that take turns. A wait is a call that stops the host until the
device has done its work, as CUDA's own check counts them (`torch.cuda.set_sync_debug_mode`); findings, which are waited for
by an event, are none. Busy is the kernels' time over the time that passes, under PyTorch's profiler, in a step of its own.
Neither exists on the CPU. The other arguments go to every method.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from fgpipe.config import compose_config
from fgpipe.config.arguments import own_keys
from fgpipe.errors import bad_value
from fgpipe.plan.plan import DataFacts
from fgpipe.study.bench.measure import interleaved
from fgpipe.study.contests.contest import Spread
from fgpipe.trainers.build import local_trainer

METHODS: dict[str, tuple[str, ...]] = {
    "end to end": ("guess=end_to_end", "tangents=oracle", "window=1"),
    "local target": ("target=local",),
    "random weight guess, one lane": ("guess=gaussian", "lanes=1"),
    "local guess, one lane": ("lanes=1",),
    "local guess, exact lanes, a scalar per block": ("scope=block",),
    "activity space, one lane": ("space=activity", "lanes=1"),
}
SETTING = ["batch_size=128", "optim=constant", "optim.lr=0.0001", "epochs=1000000"]


@dataclass
class DeviceOptions:
    """Keys of this study."""

    device: str = "cuda"
    steps: int = 20
    pixels: int = 32

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""
        if self.device not in ("cuda", "cpu") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise bad_value("device", self.device, "cuda, where there is a GPU, or cpu")
        for key in ("steps", "pixels"):
            if (value := getattr(self, key)) < 1:
                raise bad_value(key, value, "a whole number of at least 1")


def main(arguments: list[str]) -> int:
    """Measure and print the table; returns the exit code.

    Raises:
        UserError: a method cannot be run with the arguments.
    """
    options, overrides = own_keys(arguments, DeviceOptions())
    options.check()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    steps = {name: step_of([*SETTING, *keys, *overrides], options.pixels, device) for name, keys in METHODS.items()}
    size = compose_config([*SETTING, *overrides]).batch_size
    seconds = interleaved({name: _finished(step, device) for name, step in steps.items()}, options.steps)
    print(table({name: _cells(steps[name], seconds[name], size, device) for name in steps}), end="")
    return 0


def table(rows: Mapping[str, str]) -> str:
    """Markdown, of each method's cells."""
    head = "| method | images/s, median | range | waits of the host per step | busy | peak memory above what is held, MiB |"
    return "\n".join([head, "|" + "---|" * 6, *(f"| {name} | {cells} |" for name, cells in rows.items())]) + "\n"


def step_of(overrides: list[str], pixels: int, device: torch.device) -> Callable[[], object]:
    """Make a training step of all blocks on a batch of noise, which is on the device already."""
    config = compose_config(overrides)
    facts = DataFacts(1, 1, classes=10, channels=3, height=pixels, width=pixels)
    trainer = local_trainer(config, facts, device=device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(config.batch_size, 3, pixels, pixels, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last).to(device)
    labels = torch.randint(10, (config.batch_size,), generator=generator).to(device)
    epochs = iter(range(config.epochs))
    return lambda: trainer.train(next(epochs), 1, lambda *_: (images, labels))


def _finished(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _cells(step: Callable[[], object], seconds: list[float], size: int, device: torch.device) -> str:
    speed = Spread.of(size / each for each in seconds).cells(".0f")
    if device.type == "cpu":
        return f"{speed} | | |"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        began = time.monotonic()
        _finished(step, device)()
        took = time.monotonic() - began
    busy = sum(event.self_device_time_total for event in profiled.key_averages()) * 1e-6 / took
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    peak = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    return f"{speed} | {len(waits)} | {busy:.0%} | {peak:.0f}"
