"""Values that each key accepts by itself."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from fgpipe.config.schema import SCOPES
from fgpipe.config.units import RATE, TIME, bits_per_second, seconds


def _one_of(*allowed: str | bool) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in allowed), " | ".join(str(each).lower() for each in allowed)


def _at_least(least: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.isfinite(value) and value >= least), f"a finite number of at least {least:g}"


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value >= least), f"a whole number of at least {least}"


def _above(bound: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.isfinite(value) and value > bound), f"a finite number above {bound:g}"


def _optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    accepts, allowed = rule
    return (lambda value: value is None or accepts(value)), f"{allowed}, or null"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _reads(read: Callable[[str], float], allowed: str) -> tuple[Callable[[Any], bool], str]:
    """A text with a unit."""

    def accepts(value: Any) -> bool:
        try:
            return read(value) > 0
        except ValueError:
            return False

    return accepts, allowed


def _is_window(value: Any) -> bool:
    return value == "auto" or _is_count(value) or (is_list(value) and all(map(_is_count, value)))


def is_list(value: Any) -> bool:
    """Several values, as in `window=[3,2,1]`."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_boundaries(values: Sequence[int]) -> bool:
    return len(values) == len(set(values)) >= 1 and min(values) >= 0


def _is_partition(value: Any) -> bool:
    return value == "counted" or (is_list(value) and all(map(_is_count, value)))


def _is_optimizer(value: str) -> bool:
    return value == "sgd" or value in optimizers()


def optimizers() -> dict[str, type]:
    """Classes of `torch.optim` by their names in lower case; LBFGS wants the loss again and again, SparseAdam sparse
    gradients: they are none of them."""
    optim = import_module("torch.optim")  # which checks of other keys need not wait for
    found = {name.lower(): kind for name, kind in vars(optim).items() if isinstance(kind, type)}
    del found["optimizer"], found["lbfgs"], found["sparseadam"]
    return found


def _is_place(value: Any) -> bool:
    return value in (None, "auto") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_address(value: str) -> bool:
    host, _, port = value.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16


def _is_modules(value: Any) -> bool:
    return value == "nproc" or (is_list(value) and len(value) > 0 and all(map(_is_count, value)))


def _are_channel_numbers(values: Sequence[float]) -> bool:
    return len(values) >= 1 and all(map(math.isfinite, values))


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.name": _one_of(
        "digits", "digit_sums", "cifar10", "cifar100", "fashion_mnist", "imagenette", "imagenet32", "image_folder"
    ),
    "data.size": _whole(4),
    "data.stored_size": _whole(4),
    "data.augment": _one_of("none", "crop_flip", "resized_crop_flip"),
    "data.padding": _whole(0),
    "data.mean": (_are_channel_numbers, "one finite number per channel"),
    "data.std": (lambda values: _are_channel_numbers(values) and min(values) > 0, "one positive number per channel"),
    "data.train_samples": _optional(_whole(1)),
    "data.test_samples": _optional(_whole(1)),
    "data.held_out": _optional(_whole(1)),
    "model.blocks": (lambda value: value in (8, 16), "8 | 16"),
    "model.modules": _optional((_is_modules, "nproc, or a list of blocks per module such as [4,4]")),
    "model.width": _above(0),
    "model.stem": _one_of("cifar", "imagenet"),
    "head.name": _one_of("cnn", "mlp", "linear", "predsim", "spatial", "strided"),
    "head.hidden": _optional(_whole(1)),
    "head.learns": _one_of("labels", "distilled"),
    "target.name": _one_of("global", "intermediate", "local"),
    "target.depth": (
        lambda value: value is None or value >= 0,
        "0 (local), a whole number of at least 1 (intermediate), or null (global)",
    ),
    "feedback.policy": _one_of("in_order", "eager"),
    "feedback.every": _whole(1),
    "feedback.lost": _one_of("retry", "skip", "fail"),
    "link.rate": _optional(_reads(bits_per_second, RATE)),
    "link.rtt": _optional(_reads(seconds, TIME)),
    "link.between": _optional((_is_boundaries, "a list such as [0], where k is between processes k and k + 1")),
    "elastic.block": (_is_place, "null, auto or a whole number of at least 0"),
    "elastic.store": (_is_address, "HOST:PORT"),
    "elastic.fallback": _one_of("local", "wait"),
    "slow.block": _optional(_whole(0)),
    "slow.process": _optional(_whole(0)),
    "slow.factor": _at_least(1),
    "slow.jitter": _at_least(0),
    "replay.size": _optional(_whole(1)),
    "replay.reuse": _whole(1),
    "replay.take": _one_of("newest", "oldest", "random"),
    "optim.name": (_is_optimizer, "sgd, adamw or another optimizer of torch.optim, in lower case"),
    "optim.decay_norms": _one_of(False, True),
    "optim.look_ahead": _one_of(False, True),
    "optim.clip": _optional(_above(0)),
    "optim.schedule": _one_of("step", "one_cycle", "constant"),
    "optim.lr": _above(0),
    "optim.momentum": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "optim.weight_decay": _at_least(0),
    "optim.step_epochs": _whole(1),
    "optim.gamma": _above(0),
    "optim.warmup": (lambda value: 0 < value < 1, "a fraction between 0 and 1"),
    "observe.heads": _one_of(False, True),
    "observe.tensorboard": _one_of(False, True),
    "space": _one_of(*SCOPES),
    "tangents": _one_of("forward", "oracle"),
    "lanes": (lambda value: value == "exact" or _is_count(value), "exact, or a whole number of at least 1"),
    "code": _one_of("hadamard", "rademacher"),
    "decode": _one_of("plain", "predicted", "smoothed"),
    "step": _one_of("projection", "normalised"),
    "window": (_is_window, "auto, or a whole number of at least 1, or a list of them, one for each block"),
    "schedule": _one_of("gpipe", "1f1b", "zero_bubble", "async_1f1b"),
    "stash": _one_of("all", "two"),
    "microbatches": _whole(1),
    "replicas": _whole(1),
    "epochs": _whole(1),
    "batch_size": _whole(2),
    "seed": _whole(0),
    "dtype": _one_of("float32", "float64"),
    "wire": _optional(_one_of("bfloat16", "int8")),
    "device": _one_of("auto", "cpu", "cuda"),
    "threads": (lambda value: value == "auto" or _is_count(value), "auto, or a whole number of at least 1"),
    "partition": (_is_partition, "counted, or a list of blocks per process such as [4,4]"),
    "deadline": ((lambda value: 0 < value <= 1e6), "a number above 0 and at most 1e6"),
    "trace": _one_of(False, True),
    "streams": _one_of(False, True),
    "autocast": _one_of(False, True),
    "observe.cosine": _optional(_whole(1)),
    "checkpoint.every_steps": _optional(_whole(1)),
    "checkpoint.every_minutes": _optional(_above(0)),
    "checkpoint.keep": _whole(1),
}
"""Values that each key accepts by itself, and how to say so."""
