"""The typed schema of a run: every key, its type and what it means."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from fgpipe.errors import UserError, bad_value

SCOPES = {"weight": ("tensor", "block"), "activity": ("sample", "batch")}
"""Scopes of each space; the first is the paper's and the default."""


@dataclass
class DataConfig:
    """Images, and how they are prepared. `size` is the side in pixels that the net sees."""

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
    held_out: int | None = None
    """Training images, of those that `train_samples` leaves, to test on in place of the test set."""


@dataclass
class ModelConfig:
    blocks: int = MISSING
    """Residual or plain blocks that the net is made of."""
    modules: Any = None
    """Number of them in each isolated module: null, one; a list; nproc, as many modules as processes."""
    width: float = MISSING
    stem: str = MISSING


@dataclass
class HeadConfig:
    name: str = MISSING
    hidden: int | None = None
    """Hidden channels or features at width 1; null takes the paper's for the number of blocks."""
    learns: str = "labels"
    """From what heads learn that the target's error goes through: `labels`, as all others, or `distilled`."""


@dataclass
class TargetConfig:
    name: str = MISSING
    depth: int | None = None
    """The target of block j is the loss at block min(j + depth, J - 1); null is the last block's (global)."""


@dataclass
class FeedbackConfig:
    policy: str = MISSING
    every: int = MISSING
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
    """A block, or all of a process, that is slower than it is, for studies; off while both are null."""

    block: int | None = None
    process: int | None = None
    """By its position in the pipeline."""
    factor: float = 1.0
    jitter: float = 0.0

    @property
    def key(self) -> str | None:
        """The key that says who is slow, if anybody is."""
        return next((key for key in ("block", "process") if getattr(self, key) is not None), None)


@dataclass
class ReplayConfig:
    """Buffers between the processes of a run with a local target; off while size is null."""

    size: int | None = None
    reuse: int = 4
    take: str = "newest"


@dataclass
class OptimConfig:
    name: str = "sgd"
    """`sgd`, or any other class of `torch.optim` in lower case, with `options`."""
    options: dict[str, Any] = field(default_factory=dict)
    decay_norms: bool = True
    """Norms and biases have weight decay too."""
    look_ahead: bool = False
    """Nesterov's momentum against delayed gradients, of `sgd`."""
    clip: float | None = None
    """Largest norm of the estimates of a block, or of its head."""
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
    """Training steps from one measurement of the cosine of guess and global target to the next."""
    tensorboard: bool = True


@dataclass
class CheckpointConfig:
    """Times at which the state of a run is saved; off while both intervals are null."""

    every_steps: int | None = None
    """Training batches, counted over the whole run."""
    every_minutes: float | None = None
    keep: int = 2
    """The newest ones that are kept, beside the one with the best test accuracy."""

    @property
    def on(self) -> bool:
        return self.every_steps is not None or self.every_minutes is not None


@dataclass
class ElasticConfig:
    """A process for each block that is a job of its own and may be lost; off while block is null."""

    block: Any = None
    """The block of this process; auto: from the environment."""
    store: str = "127.0.0.1:29400"
    fallback: str = "local"

    @property
    def on(self) -> bool:
        return self.block is not None


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
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    guess: dict[str, Any] = field(default_factory=dict)
    """Its name, and the keys of its own."""
    space: str = MISSING
    scope: str | None = None
    tangents: str = MISSING
    lanes: Any = MISSING
    code: str = MISSING
    decode: str = MISSING
    step: str = MISSING
    window: Any = MISSING
    schedule: str = MISSING
    stash: str = MISSING
    microbatches: int = MISSING
    replicas: int = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    dtype: str = MISSING
    autocast: bool = MISSING
    wire: str | None = None
    device: str = MISSING
    streams: bool = False
    threads: Any = MISSING
    partition: Any = MISSING
    placement: str | None = None
    interface: str = MISSING
    deadline: float = MISSING
    trace: bool = False
    run_dir: str | None = None
    resume: str | None = None

    @property
    def guess_name(self) -> str:
        """Name by which `fgpipe.gradients.guesses` knows the guess; `end_to_end` is backpropagation."""
        return self.guess["name"]

    @property
    def blocks(self) -> int:
        """Blocks that learn by themselves: the net's modules."""
        modules = self.model.modules
        return len(modules) if isinstance(modules, list) else self.model.blocks

    @property
    def share(self) -> int:
        """Samples of a batch that each replica takes."""
        return self.batch_size // self.replicas

    @property
    def backpropagates(self) -> bool:
        """Gradients come back through a pipeline."""
        return self.guess_name == "end_to_end" and self.tangents == "forward"

    @property
    def pipelined(self) -> bool:
        """Blocks are trained by `torch.distributed.pipelining`, all of a process as one, and drain after every batch."""
        return self.backpropagates and self.schedule != "async_1f1b"

    @property
    def asynchronous(self) -> bool:
        """Blocks are trained by asynchronous backpropagation, which does not drain."""
        return self.backpropagates and self.schedule == "async_1f1b"

    @property
    def parts(self) -> int:
        """Parts of a batch that go up one by one, and whose gradients come back so: microbatches with two versions of
        the weights, else the whole batch."""
        return self.microbatches if self.asynchronous and self.stash == "two" else 1
