"""The typed schema of a run, composed by Hydra from `configs/`, and the checks that Hydra cannot make.

Every rejection is a `UserError` that names the key, the value and what is allowed.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgpipe.errors import UserError, bad_value
from fgpipe.units import RATE, TIME, bits_per_second, seconds

RANDOM = ("gaussian", "rademacher")
GUESSES = ("local", "local_subspace", "ntk", "fixed_ntk", *RANDOM, "end_to_end")
SCOPES = {"weight": ("tensor", "block"), "activity": ("sample", "batch")}
"""Scopes of each space; the first is the paper's and the default."""
_PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""The configuration files: inside an installed package, beside it in a checkout."""


@dataclass
class DataConfig:
    """Which images, and how they are prepared. `size` is the side in pixels that the net sees."""

    name: str = MISSING
    root: str = "data"
    size: int = MISSING
    stored_size: int = MISSING
    """Side in pixels of the decoded images in memory; larger than `size` only where crops are cut from them."""
    augment: str = MISSING
    padding: int = 4
    """Pixels of zero padding around the image for `augment=crop_flip`."""
    mean: list[float] = MISSING
    std: list[float] = MISSING
    train_samples: int | None = None
    test_samples: int | None = None


@dataclass
class ModelConfig:
    blocks: int = MISSING
    width: float = MISSING
    stem: str = MISSING


@dataclass
class HeadConfig:
    name: str = MISSING
    hidden: int | None = None
    """Hidden channels or features at width 1; null takes the paper's for the number of blocks."""


@dataclass
class TargetConfig:
    name: str = MISSING
    depth: int | None = None
    """The target of block j is the loss at block min(j + depth, J - 1); null is the last block's (global)."""


@dataclass
class FeedbackConfig:
    policy: str = MISSING
    lost: str = MISSING


@dataclass
class LinkConfig:
    """Slower links between processes than there are, for studies; off while rate and rtt are null."""

    rate: str | None = None
    rtt: str | None = None
    between: list[int] | None = None
    """k: the boundary of the processes at positions k and k + 1 of the pipeline; null is every one."""

    @property
    def slow(self) -> bool:
        return self.rate is not None or self.rtt is not None

    def refused(self, allowed: str) -> UserError:
        """A slow link where there can be none."""
        key = "rate" if self.rate is not None else "rtt"
        return bad_value(f"link.{key}", getattr(self, key), allowed)


@dataclass
class SlowConfig:
    """A block that is slower than it is, for studies; off while block is null."""

    block: int | None = None
    factor: float = 1.0
    jitter: float = 0.0


@dataclass
class ReplayConfig:
    """Buffers between the processes of a run with a local target; off while size is null."""

    size: int | None = None
    reuse: int = 4
    take: str = "newest"


@dataclass
class OptimConfig:
    schedule: str = MISSING
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    step_epochs: int = MISSING
    gamma: float = MISSING
    warmup: float = MISSING


@dataclass
class ObserveConfig:
    heads: bool = False
    """Train a head beside every block that has none, without touching the net."""
    cosine: int | None = None
    """Every how many training steps the cosine of guess and global target is measured."""
    tensorboard: bool = True


@dataclass
class CheckpointConfig:
    """When the state of a run is saved; off while both intervals are null."""

    every_steps: int | None = None
    """Training batches, counted over the whole run."""
    every_minutes: float | None = None
    keep: int = 2
    """The newest ones that are kept, beside the one with the best test accuracy."""

    @property
    def on(self) -> bool:
        return self.every_steps is not None or self.every_minutes is not None


@dataclass
class Config:
    """One run. See `configs/train.yaml` for what each key means."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    slow: SlowConfig = field(default_factory=SlowConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guess: str = MISSING
    space: str = MISSING
    scope: str | None = None
    directions: int | None = None
    """Of guess=local_subspace, at most; null is as many as the batch has samples."""
    tangents: str = MISSING
    lanes: Any = MISSING
    code: str = MISSING
    decode: str = MISSING
    step: str = MISSING
    window: Any = MISSING
    schedule: str = MISSING
    microbatches: int = MISSING
    replicas: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    dtype: str = MISSING
    autocast: bool = MISSING
    wire: str | None = None
    device: str = MISSING
    threads: Any = MISSING
    partition: Any = MISSING
    placement: str | None = None
    interface: str = MISSING
    deadline: float = MISSING
    trace: bool = False
    run_dir: str | None = None
    resume: str | None = None

    @property
    def share(self) -> int:
        """Samples of a batch that each replica takes."""
        return self.batch_size // self.replicas


def _one_of(*allowed: str | bool) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in allowed), " | ".join(str(each).lower() for each in allowed)


def _at_least(least: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.isfinite(value) and value >= least), f"a finite number of at least {least:g}"


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
    return value == "auto" or _is_count(value) or (_is_list(value) and all(map(_is_count, value)))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_boundaries(values: Sequence[int]) -> bool:
    return len(values) == len(set(values)) >= 1 and min(values) >= 0


def _is_partition(value: Any) -> bool:
    return value == "counted" or (_is_list(value) and all(map(_is_count, value)))


def _are_channel_numbers(values: Sequence[float]) -> bool:
    return len(values) >= 1 and all(map(math.isfinite, values))


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.name": _one_of(
        "digits", "cifar10", "cifar100", "fashion_mnist", "imagenette", "imagenet32", "image_folder"
    ),
    "data.size": _at_least(4),
    "data.stored_size": _at_least(4),
    "data.augment": _one_of("none", "crop_flip", "resized_crop_flip"),
    "data.padding": _at_least(0),
    "data.mean": (_are_channel_numbers, "one finite number per channel"),
    "data.std": (lambda values: _are_channel_numbers(values) and min(values) > 0, "one positive number per channel"),
    "data.train_samples": _optional(_at_least(1)),
    "data.test_samples": _optional(_at_least(1)),
    "model.blocks": (lambda value: value in (8, 16), "8 | 16"),
    "model.width": _above(0),
    "model.stem": _one_of("cifar", "imagenet"),
    "head.name": _one_of("cnn", "mlp", "linear", "predsim"),
    "head.hidden": _optional(_at_least(1)),
    "target.name": _one_of("global", "intermediate", "local"),
    "target.depth": (
        lambda value: value is None or value >= 0,
        "0 (local), a whole number of at least 1 (intermediate), or null (global)",
    ),
    "feedback.policy": _one_of("in_order", "eager"),
    "feedback.lost": _one_of("retry", "skip", "fail"),
    "link.rate": _optional(_reads(bits_per_second, RATE)),
    "link.rtt": _optional(_reads(seconds, TIME)),
    "link.between": _optional((_is_boundaries, "a list such as [0], where k is between processes k and k + 1")),
    "slow.block": _optional(_at_least(0)),
    "slow.factor": _at_least(1),
    "slow.jitter": _at_least(0),
    "replay.size": _optional(_at_least(1)),
    "replay.reuse": _at_least(1),
    "replay.take": _one_of("newest", "oldest", "random"),
    "optim.schedule": _one_of("step", "one_cycle", "constant"),
    "optim.lr": _above(0),
    "optim.momentum": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "optim.weight_decay": _at_least(0),
    "optim.step_epochs": _at_least(1),
    "optim.gamma": _above(0),
    "optim.warmup": (lambda value: 0 < value < 1, "a fraction between 0 and 1"),
    "observe.heads": _one_of(False, True),
    "observe.tensorboard": _one_of(False, True),
    "guess": _one_of(*GUESSES),
    "space": _one_of(*SCOPES),
    "directions": _optional((_is_count, "a whole number of at least 1")),
    "tangents": _one_of("forward", "oracle"),
    "lanes": (lambda value: value == "exact" or _is_count(value), "exact, or a whole number of at least 1"),
    "code": _one_of("hadamard", "rademacher"),
    "decode": _one_of("plain", "predicted", "smoothed"),
    "step": _one_of("projection", "normalised"),
    "window": (_is_window, "auto, or a whole number of at least 1, or a list of them, one for each block"),
    "schedule": _one_of("gpipe", "1f1b", "zero_bubble"),
    "microbatches": _at_least(1),
    "replicas": _at_least(1),
    "epochs": _at_least(1),
    "batch_size": _at_least(2),
    "seed": _at_least(0),
    "dtype": _one_of("float32", "float64"),
    "wire": _optional(_one_of("bfloat16")),
    "device": _one_of("auto", "cpu", "cuda"),
    "threads": (lambda value: value == "auto" or _is_count(value), "auto, or a whole number of at least 1"),
    "partition": (_is_partition, "counted, or a list of blocks per process such as [4,4]"),
    "deadline": _above(0),
    "trace": _one_of(False, True),
    "autocast": _one_of(False, True),
    "observe.cosine": _optional(_at_least(1)),
    "checkpoint.every_steps": _optional(_at_least(1)),
    "checkpoint.every_minutes": _optional(_above(0)),
    "checkpoint.keep": _at_least(1),
}
"""What each key accepts by itself, and how to say so."""


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose `configs/train.yaml` with command-line overrides into a checked, typed configuration.

    Raises:
        UserError: an unknown key or group choice, a value of the wrong type, or one that `check` refuses.
    """
    ConfigStore.instance().store(name="schema", node=Config)
    for override in overrides:
        _check_syntax(override)
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            composed = compose("train", overrides=list(overrides))
        OmegaConf.resolve(composed)
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides)) from error
    assert isinstance(config, Config)
    check(config)
    return config


def _check_syntax(override: str) -> None:
    if not re.match(r"[A-Za-z_][\w.]*=", override):
        raise UserError(f"{override}: allowed: key=value")
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = " ".join(str(error).split()).partition(" See https")[0]
        raise UserError(f"{override}: the value cannot be read ({reason}); quote it as in key='value'") from error


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line from an error of Hydra or OmegaConf, naming the override at fault where it can be told."""
    text = " ".join(str(error).split())
    group = re.search(r"Could not find '([\w/]+)/([^']*)'.*Available options in '[^']*': (.*?)(?: Config search path|$)", text)
    if group:
        options = " | ".join(sorted(group[3].split()))
        return f"{group[1].split('/')[-1]}={group[2]}: allowed: {options}"
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None)
    unknown = re.search(r"Key '([^']+)'(?: is)? not in|Could not override '([^']+)'", text)
    for override in overrides:
        name, _, value = override.partition("=")
        if unknown and name.split(".")[-1] == (unknown[2] or unknown[1]).split(".")[-1]:
            near = difflib.get_close_matches(name, known_keys(), n=3)
            return f"{override}: no such key" + (f"; did you mean {' or '.join(near)}?" if near else "; --help lists all")
        if name == key or f"merging override {override}" in text:
            reason = re.sub(r"\s*full_key:.*", "", " ".join(str(error.__cause__ or error).split()))
            return f"{name}={value}: " + (f"allowed: {RULES[name][1]}" if name in RULES else reason)
    return text


def known_keys() -> list[str]:
    """Every key of the schema, dotted."""

    def walk(node: DictConfig, prefix: str) -> list[str]:
        keys = []
        for name in node:
            child = node._get_node(name)
            keys += walk(child, f"{prefix}{name}.") if isinstance(child, DictConfig) else [f"{prefix}{name}"]
        return keys

    return walk(OmegaConf.structured(Config), "")


def check(config: Config) -> None:
    """Reject values that no run can have, alone or together, and fill in the scope that the space implies.

    Raises:
        UserError: with the key, the value and what is allowed.
    """
    for key, (accepts, allowed) in RULES.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        if not accepts(value):
            raise bad_value(key, value, allowed)
    _check_data(config.data)
    _check_target(config)
    _check_replicas(config)
    if config.scope is None:
        config.scope = SCOPES[config.space][0]
    if config.scope not in SCOPES[config.space]:
        raise bad_value("scope", config.scope, f"{' | '.join(SCOPES[config.space])} with space={config.space}")
    if config.observe.cosine is not None and (config.tangents != "oracle" or config.guess == "end_to_end"):
        raise bad_value("observe.cosine", config.observe.cosine, "null unless tangents=oracle, with a guess to compare")
    _check_subspace(config)
    _check_lanes(config)
    if config.tangents == "oracle" and config.window != 1:
        raise bad_value("window", config.window, "1 with tangents=oracle, which has no pipeline")
    if config.tangents == "oracle" and config.trace:
        raise bad_value("trace", "true", "false with tangents=oracle, which has no pipeline")
    _check_link(config)
    _check_slow(config)
    _check_replay(config)
    _check_precision(config)
    if config.guess == "end_to_end" and config.tangents == "forward" and config.share % config.microbatches:
        what = f"the {config.share} samples of a replica" if config.replicas > 1 else f"batch_size={config.batch_size}"
        raise bad_value("microbatches", config.microbatches, f"a divisor of {what}")
    if config.placement is not None and config.guess == "end_to_end":
        raise bad_value("placement", config.placement, "null with guess=end_to_end, whose pipeline goes by rank")
    if config.resume == "auto" and config.run_dir is None:
        raise bad_value("resume", "auto", "with run_dir=FOLDER, the folder to continue in; or a run's folder")
    if not isinstance(config.partition, str) and sum(config.partition) != config.model.blocks:
        raise bad_value("partition", list(config.partition), f"numbers that add up to model.blocks={config.model.blocks}")


def _check_data(data: DataConfig) -> None:
    if len(data.mean) != len(data.std):
        raise bad_value("data.std", list(data.std), f"as many numbers as data.mean has ({len(data.mean)})")
    if data.augment == "resized_crop_flip" and data.stored_size < data.size:
        raise bad_value("data.stored_size", data.stored_size, f"at least data.size={data.size}")
    if data.augment != "resized_crop_flip" and data.stored_size != data.size:
        raise bad_value("data.stored_size", data.stored_size, f"data.size={data.size} unless data.augment=resized_crop_flip")


def _check_target(config: Config) -> None:
    name, depth = config.target.name, config.target.depth
    if name == "global" and depth is not None:
        raise bad_value("target.depth", depth, "null with target=global; use target=intermediate for a depth")
    if name == "local" and depth != 0:
        raise bad_value("target.depth", depth, "0 with target=local")
    if name == "intermediate" and (depth is None or depth < 1):
        raise bad_value("target.depth", depth, "a whole number of at least 1 with target=intermediate")
    if config.guess == "end_to_end" and name != "global":
        raise bad_value("target", name, "global with guess=end_to_end")


def _check_replicas(config: Config) -> None:
    if config.replicas == 1:
        return
    replicas = f"replicas={config.replicas}"
    if config.batch_size % config.replicas or config.share < 2:
        raise bad_value("batch_size", config.batch_size, f"a multiple of {replicas}, with at least 2 samples for each")
    refused = (
        ("feedback", config.feedback.policy, "in_order", "whose updates must come in one order"),
        ("decode", config.decode, "plain", "whose running means would differ"),
        ("step", config.step, "projection", "whose running means would differ"),
    )
    for key, value, only, reason in refused:
        if value != only:
            raise bad_value(key, value, f"{only} with {replicas}, {reason}")
    if config.trace:
        raise bad_value("trace", "true", f"false with {replicas}, whose waits for each other would look like work")
    if config.slow.block is not None:
        raise bad_value("slow.block", config.slow.block, f"null with {replicas}, which would wait for it as one")
    if config.feedback.lost == "skip":
        raise bad_value("feedback.lost", "skip", f"retry | fail with {replicas}, of which all make the same updates")


def _check_subspace(config: Config) -> None:
    if config.guess != "local_subspace":
        if config.directions is not None:
            raise bad_value("directions", config.directions, "null unless guess=local_subspace")
        return
    for key, only in (("space", "activity"), ("scope", "sample")):
        if (value := getattr(config, key)) != only:
            raise bad_value(key, value, f"{only} with guess=local_subspace")
    if config.directions is not None and config.directions > config.share:
        what = f"{config.share}, the samples of a replica" if config.replicas > 1 else f"batch_size={config.batch_size}"
        raise bad_value("directions", config.directions, f"1 to {what}, or null")


def _check_lanes(config: Config) -> None:
    coded, method = config.lanes != "exact", f"guess={config.guess} target={config.target.name}"
    if config.guess == "end_to_end" or (config.guess == "local" and config.target.depth == 0):
        for key, only in (("lanes", "exact"), ("decode", "plain"), ("step", "projection")):
            if (value := getattr(config, key)) != only:
                raise bad_value(key, value, f"{only} with {method}, which projects nothing")
    if config.guess == "local_subspace":
        for key, only in (("lanes", "exact"), ("decode", "plain"), ("step", "projection")):
            if (value := getattr(config, key)) != only:
                raise bad_value(key, value, f"{only} with {method}, whose directions change with every batch")
    if coded and config.code == "hadamard" and config.lanes & (config.lanes - 1):
        raise bad_value("lanes", config.lanes, "a power of two with code=hadamard")
    if coded and config.tangents == "oracle" and config.scope == "sample":
        raise bad_value("lanes", config.lanes, "exact with tangents=oracle scope=sample, which projects each sample")
    if config.decode == "predicted" and not coded:
        raise bad_value("decode", config.decode, "plain | smoothed with lanes=exact, which has no noise")
    if config.decode != "plain" and config.guess in RANDOM:
        raise bad_value("decode", config.decode, f"plain with guess={config.guess}, whose coefficients have mean zero")


def _check_link(config: Config) -> None:
    link = config.link
    if link.between is not None and not link.slow:
        raise bad_value("link.between", list(link.between), "null unless link.rate or link.rtt is given")
    if link.slow and config.guess == "end_to_end":
        raise link.refused("null with guess=end_to_end, whose gradients take links of their own; see launch/two_hosts")


def _check_slow(config: Config) -> None:
    slow = config.slow
    for key, off in (("factor", 1.0), ("jitter", 0.0)):
        if slow.block is None and (value := getattr(slow, key)) != off:
            raise bad_value(f"slow.{key}", value, f"{off:g} unless slow.block is given")
    if config.tangents == "oracle" and slow.block is not None:
        raise bad_value("slow.block", slow.block, "null with tangents=oracle, which has no pipeline")


def _check_precision(config: Config) -> None:
    for key, value, off in (("autocast", config.autocast, "false"), ("wire", config.wire, "null")):
        for other, excluded in (("dtype", "float64"), ("tangents", "oracle"), ("guess", "end_to_end")):
            if value and getattr(config, other) == excluded:
                raise bad_value(key, str(value).lower(), f"{off} with {other}={excluded}")


def _check_replay(config: Config) -> None:
    replay, off = config.replay, ReplayConfig()
    if replay.size is None:
        for key in ("reuse", "take"):
            if (value := getattr(replay, key)) != getattr(off, key):
                raise bad_value(f"replay.{key}", value, f"{getattr(off, key)} unless replay.size is given")
        return
    if config.target.depth != 0:
        raise bad_value("replay.size", replay.size, f"null with target={config.target.name}, whose scalars go by the batch")
    if config.tangents == "oracle":
        raise bad_value("replay.size", replay.size, "null with tangents=oracle, which has no pipeline")
    if config.replicas > 1:
        raise bad_value("replay.size", replay.size, f"null with replicas={config.replicas}, whose updates go together")
    if config.checkpoint.on or config.resume is not None:
        raise bad_value("replay.size", replay.size, "null with checkpoint.* or resume; what is in a buffer is not saved")


def check_world(config: Config, world_size: int) -> None:
    """Reject a number of processes that the run cannot be split over.

    Raises:
        UserError: as `check`.
    """
    blocks, replicas = config.model.blocks, config.replicas
    if world_size % replicas:
        raise bad_value("replicas", replicas, f"a divisor of the number of processes ({world_size})")
    if config.tangents == "oracle" and world_size > 1:
        raise bad_value("tangents", "oracle", f"forward with {world_size} processes; the oracle runs in one")
    if _is_list(config.window) and len(config.window) != blocks:
        raise bad_value("window", list(config.window), f"one number for each block ({blocks})")
    world_size //= replicas
    if world_size > blocks:
        most = f"at most one process per block (model.blocks={blocks})" + (f" and replica ({replicas})" if replicas > 1 else "")
        raise bad_value("nproc_per_node", world_size * replicas, most)
    if config.guess == "end_to_end" and config.schedule == "1f1b" and config.microbatches < world_size:
        raise bad_value("microbatches", config.microbatches, f"at least the {world_size} processes with schedule=1f1b")
    if config.guess == "end_to_end" and config.schedule == "zero_bubble" and config.microbatches % world_size:
        raise bad_value("microbatches", config.microbatches, f"a multiple of the {world_size} processes with schedule=zero_bubble")
    _check_boundaries(config.link, world_size)
    if config.replay.size is not None and world_size == 1:
        raise bad_value("replay.size", config.replay.size, "null in one process, whose blocks take turns")
    if config.slow.block is not None and config.slow.block >= blocks:
        raise bad_value("slow.block", config.slow.block, f"0 to {blocks - 1} with {blocks} blocks")
    if not isinstance(config.partition, str) and len(config.partition) != world_size:
        raise bad_value("partition", list(config.partition), f"one number per process of a pipeline ({world_size})")


def _check_boundaries(link: LinkConfig, world_size: int) -> None:
    if link.slow and world_size == 1:
        raise link.refused("null in one process, which has no links")
    if link.between is not None and max(link.between) > world_size - 2:
        raise bad_value("link.between", list(link.between), f"0 to {world_size - 2} with {world_size} processes")
