"""Forward mode computes what two backward passes compute: every estimate of the pipeline against the oracle.

The pipeline (stages, tangents, lanes, feedback) trains a small net in float64 for two lock-step batches of random
images; before each batch its weights are copied, and the oracle estimates the same gradients on the copy. Each
parameter tensor must agree within 1e-9 relative: both are sums of at most some 1e5 products in float64, whose
rounding is about 1e-13, and the guesses' heads divide by batch statistics of few samples, which costs some digits.

A failure in weight space only points to the parameters' tangents, in activity space only to the block's own backward
pass, for one head to its rule, at one depth to the lanes' plan, for random guesses to the redrawing of noise.
"""

import itertools
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fgpipe.cluster.process import Cluster, Place
from fgpipe.config import Config, compose_config
from fgpipe.gradients.guesses import make, redraw
from fgpipe.gradients.guesses.registry import OWN
from fgpipe.gradients.oracle import Estimates, estimate
from fgpipe.gradients.readings import Reading
from fgpipe.models.heads import Head
from fgpipe.models.net import Net, deep_copy
from fgpipe.observe.events import Learnt, StepEvent
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.observers import Observers
from fgpipe.observe.timeline import Timeline
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.build import build_trainer
from fgpipe.trainers.session import run
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Given, Message
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Lost
from tests.nets import KINDS

BATCH, STEPS, TOLERANCE = 8, 2, 1e-9
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SPACES = [("weight", "tensor"), ("weight", "block"), ("activity", "batch"), ("activity", "sample")]
TARGETS = {"global": [], "local": [], "intermediate": ["target.depth=1"], "depth 3": ["target.depth=3"]}
GUESSES = [make(name) for name in OWN if name != "end_to_end"]
HEADS = ("cnn", "mlp", "linear", "predsim", "spatial", "strided")


def combinations() -> list[tuple[str, str, str, str, str]]:
    """Every guess, head, space, scope and target; guesses without a head have none to vary for a global target."""
    found = []
    for (space, scope), target in itertools.product(SPACES, TARGETS):
        for guess in GUESSES:
            if space in guess.spaces and scope in guess.scopes:
                heads = HEADS if guess.head is not None or target != "global" else HEADS[:1]
                found += [(guess.name, head, space, scope, target) for head in heads]
    return found


def covering(cases: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Some of the cases, chosen greedily: all choices of guess, space, scope and target, and of any two values."""

    def choices(case: tuple[str, ...]) -> set[tuple[tuple[int, str], ...]]:
        values = tuple(enumerate(case))
        return {*itertools.combinations(values, 2), (values[0], *values[2:])}

    rest, found = {case: choices(case) for case in cases}, set()
    left = set().union(*rest.values())
    while left:
        best = max(rest, key=lambda case: len(rest[case] & left))
        found.add(best)
        left -= rest.pop(best)
    return found


COVERING_8 = covering(combinations())
COVERING_16 = [
    ("local", "cnn", "weight", "tensor", "global"),
    ("local", "mlp", "weight", "block", "intermediate"),
    ("local", "linear", "activity", "batch", "global"),
    ("local", "predsim", "activity", "sample", "depth 3"),
    ("local", "mlp", "weight", "tensor", "local"),
    ("ntk", "mlp", "weight", "tensor", "intermediate"),
    ("ntk", "linear", "activity", "batch", "local"),
    ("fixed_ntk", "cnn", "weight", "block", "global"),
    ("fixed_ntk", "predsim", "activity", "batch", "depth 3"),
    ("gaussian", "cnn", "weight", "tensor", "global"),
    ("gaussian", "linear", "activity", "batch", "local"),
    ("gaussian", "mlp", "activity", "sample", "global"),
    ("rademacher", "predsim", "weight", "block", "intermediate"),
    ("rademacher", "cnn", "weight", "tensor", "local"),
]


class Recorded(Metrics):
    """Keeps the estimates that blocks and heads have last learnt from, and the readings that have come."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.learnt: dict[tuple[int, str], list[Tensor]] = {}

    def observe(self, event: StepEvent) -> None:
        if isinstance(event, Learnt):
            self.learnt[event.block, event.part] = [estimate.clone() for estimate in event.estimates]
        super().observe(event)


class Pipeline:
    """All stages in one process, as `python -m fgpipe.train` builds them, with what they learnt laid open."""

    def __init__(self, config: Config, net: Net | None = None, channels: int = 3) -> None:
        self.config, self.channels = config, channels
        facts = DataFacts(train_batches=1, test_batches=1, classes=5, channels=channels, height=16, width=16)
        self.plan = Plan.make(config, facts, net)
        blocks = self.plan.method.blocks
        self.metrics = Recorded(blocks)
        observers = Observers(self.metrics, Ledger(blocks), Timeline())
        self.trainer = build_trainer(self.plan, Cluster(Place(0, 1, 0, 1)), torch.device("cpu"), observers)
        self.stages = [step for step in self.trainer.steps.values() if isinstance(step, Stage)]

    def learnt(self, block: int, part: str = "block") -> list[Tensor]:
        """The estimates that a block, or its head, has last learnt from."""
        return self.metrics.learnt[block, part]

    def step(self, batch: int) -> tuple[Estimates, "Snapshot"]:
        """Train on one batch; return what the oracle says of it, and the net as it was before."""
        images, labels = draw(batch, self.channels)
        before = Snapshot(self, batch, images, labels)
        self.trainer.train(batch, 1, lambda epoch, index: (images, labels))
        return before.oracle(), before


def draw(batch: int, channels: int) -> tuple[Tensor, Tensor]:
    """Random images and labels of a batch."""
    rng = torch.Generator().manual_seed(100 + batch)
    images = torch.randn(BATCH, channels, 16, 16, generator=rng, dtype=torch.float64)
    return images, torch.randint(0, 5, (BATCH,), generator=rng)


class Snapshot:
    """The net before a batch."""

    def __init__(self, pipeline: Pipeline, batch: int, images: Tensor, labels: Tensor) -> None:
        self.method, self.seed, self.batch = pipeline.plan.method, pipeline.config.seed, batch
        self.images, self.labels = images, labels
        self.memory: list[dict[str, Tensor]] = [{} for _ in pipeline.stages]
        self.blocks = [stage.block for stage in pipeline.stages]
        self.heads = [stage.head for stage in pipeline.stages]
        self.guess_heads = [stage.guess_head for stage in pipeline.stages]
        for stage in pipeline.stages:
            self.take(stage)

    def take(self, stage: Stage) -> None:
        """Copy a block as it is."""
        j = stage.index
        self.memory[j] = {name: each.clone() for name, each in stage.memory.tensors.items()}
        self.blocks[j] = deep_copy(stage.block)
        self.heads[j] = stage.head and deep_copy(stage.head)
        self.guess_heads[j] = head = stage.guess_head and deep_copy(stage.guess_head)
        if head is not None and self.method.guesses_by_untrained_head:
            redraw(head, self.method.guess, self.seed, j, self.batch)

    def oracle(self) -> Estimates:
        return estimate(
            self.method, self.blocks, self.heads, self.guess_heads, self.images, self.labels,
            seed=self.seed, batch=self.batch, memory=self.memory.__getitem__,
        )  # fmt: skip


def configuration(guess: str, head: str, space: str, scope: str, target: str, blocks: int, *more: str) -> Config:
    return compose_config([
        f"model=resnet18_{blocks}", f"guess={guess}", f"head={head}", f"space={space}", f"scope={scope}",
        f"target={target if target in ('global', 'local') else 'intermediate'}", *TARGETS[target],
        "model.width=0.08", "head.hidden=64", "dtype=float64", "window=1", f"batch_size={BATCH}", "optim.lr=0.01", "seed=1", *more,
    ])  # fmt: skip


def assert_close(got: Tensor, want: Tensor, where: str) -> None:
    error = (got - want).norm() / want.norm().clamp_min(1e-30)
    assert error <= TOLERANCE, f"{where}: relative error {error:.2e}"


def assert_agrees(pipeline: Pipeline, wanted: Estimates, before: Snapshot, skip_samples: bool) -> None:
    """Every parameter tensor of every block and head."""
    method = pipeline.plan.method
    for j, stage in enumerate(pipeline.stages):
        if j in method.idle:
            assert not wanted.blocks[j]
        elif not (skip_samples and not method.is_plain(j)):
            for got, (name, want) in zip(pipeline.learnt(j), wanted.blocks[j].items(), strict=True):
                assert_close(got, want, f"block {j} {name} at batch {before.batch}")
        if stage.head is not None:
            for got, (name, want) in zip(pipeline.learnt(j, "head"), wanted.heads[j].items(), strict=True):
                assert_close(got, want, f"head {j} {name} at batch {before.batch}")
        if method.has_beside(j):
            for got, (name, want) in zip(pipeline.learnt(j, "beside"), wanted.beside[j].items(), strict=True):
                assert_close(got, want, f"head beside {j} {name} at batch {before.batch}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=" ".join(case), marks=() if case in COVERING_8 else pytest.mark.long)
        for case in combinations()
    ],
)
def test_8_blocks(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, 8, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", COVERING_16, ids=" ".join)
def test_16_blocks(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, 16, monkeypatch)


def check(case: tuple[str, ...], blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    guess, head, space, scope, target = case
    pipeline = Pipeline(configuration(guess, head, space, scope, target, blocks))
    approximate = scope == "sample" and make(guess).reading is Reading.DERIVATIVE  # samples share a tangent
    for batch in range(STEPS):
        replies = record_replies(monkeypatch) if approximate else {}
        wanted, before = pipeline.step(batch)
        assert_agrees(pipeline, wanted, before, skip_samples=approximate)
        for block, numbers in replies.items():
            exact = wanted.scalars[block]
            assert exact is not None
            scale = exact.abs().sum()
            assert abs(sum(numbers) - exact.sum()) <= TOLERANCE * scale, f"sum of the scalars of block {block}"


def record_replies(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, ...]]:
    """The numbers that each block gets from now on."""
    replies: dict[int, tuple[float, ...]] = {}
    run = Stage.run

    def recording(self: Stage, given: Batch | Feedback | Lost) -> Iterator[Message]:
        if isinstance(given, Feedback):
            replies[given.receiver] = given.numbers
        return run(self, given)

    monkeypatch.setattr(Stage, "run", recording)
    return replies


@pytest.mark.parametrize("target", ["global", "intermediate"])
@pytest.mark.parametrize("guess, space, scope", [
    ("local", "weight", "tensor"), ("local", "activity", "batch"), ("ntk", "weight", "block"), ("gaussian", "weight", "block"),
    ("gaussian", "activity", "batch"),
])  # fmt: skip
def test_windows(guess: str, space: str, scope: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches in flight an estimate is the definition's at the weights that each block had when it ran the batch.

    The oracle has those of every block, copied then; lower blocks have learnt from other batches before they apply it.
    """
    pipeline = Pipeline(configuration(guess, "mlp", space, scope, target, 8, "window=auto"))
    blocks = pipeline.plan.method.blocks
    data = [draw(batch, 3) for batch in range(2 * blocks)]
    seen = [Snapshot(pipeline, batch, *each) for batch, each in enumerate(data)]
    learnt: dict[tuple[int, int, str], Learnt] = {}
    run = Stage.run

    def recording(self: Stage, given: Given) -> Iterator[Message]:
        if isinstance(given, Batch):
            seen[given.id].take(self)
        for message in run(self, given):
            if isinstance(message, Learnt):
                estimates = [each.clone() for each in message.estimates]
                learnt[given.id if isinstance(given, Batch) else given.batch, message.block, message.part] = replace(
                    message, estimates=estimates
                )
            yield message

    monkeypatch.setattr(Stage, "run", recording)
    pipeline.trainer.train(0, len(data), lambda epoch, index: data[index])
    late = 0
    for batch, before in enumerate(seen):
        wanted = before.oracle()
        for j in range(blocks):
            late += bool(learnt[batch, j, "block"].staleness)
            for part, estimates in (("block", wanted.blocks[j]), ("head", wanted.heads[j])):
                if part == "block" or before.heads[j] is not None:
                    for got, (name, want) in zip(learnt[batch, j, part].estimates, estimates.items(), strict=True):
                        assert_close(got, want, f"{part} {j} {name} at batch {batch}")
    assert late > len(data), "lower blocks apply numbers that are updates old"


class Gated(nn.Module):
    """A block of a kind that has no tangent rule of ours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * torch.tanh(self.norm(self.conv(x)))


def vgg_like() -> Net:
    """A user's own net: VGG-like blocks, one without a rule, and heads of two kinds."""
    torch.manual_seed(5)
    blocks = [
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        Gated(6),
        nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.Softplus()),
    ]
    widths = (384, 384, 128)
    heads = [Head(nn.Flatten(), nn.Linear(width, 5)) for width in widths]
    return Net(blocks, [*heads, Head(nn.BatchNorm1d(16), nn.Linear(16, 5))])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("space, scope", SPACES[:3])
def test_a_net_of_your_own(space: str, scope: str, target: str) -> None:
    net = vgg_like()
    config = configuration("local", "linear", space, scope, target, 8)
    config.model.blocks = len(net.blocks)
    pipeline = Pipeline(config, net)
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)


@pytest.mark.parametrize("guess, space, scope", [
    ("local", "weight", "tensor"), ("local", "activity", "batch"), ("ntk", "weight", "block"), ("gaussian", "weight", "tensor"),
])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_nets_of_all_kinds(kind: str, guess: str, space: str, scope: str) -> None:
    """Under a global target, whose lanes pass every block; frozen parameters stay as they are."""
    torch.manual_seed(3)
    net = KINDS[kind]()
    config = configuration(guess, "linear", space, scope, "global", 8)
    config.model.blocks = len(net.blocks)
    pipeline = Pipeline(config, net)
    parts = nn.ModuleList([*net.blocks, *net.heads])
    still = {name: value.clone() for name, value in parts.named_parameters() if not value.requires_grad}
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)
    assert all(torch.equal(dict(parts.named_parameters())[name], value) for name, value in still.items())


@pytest.mark.slow
@pytest.mark.parametrize("guess, space, scope", [("local", "weight", "block"), ("gaussian", "activity", "batch")])
@pytest.mark.parametrize("example", ["vit", "mixer", "resnet50"])
def test_nets_of_the_examples(example: str, guess: str, space: str, scope: str) -> None:
    """Those of `docs/examples`, under a global target."""
    net = runpy.run_path(str(EXAMPLES / f"{example}.py"))["net"]()
    config = configuration(guess, "linear", space, scope, "global", 8)
    config.model.blocks = len(net.blocks)
    pipeline = Pipeline(config, net, channels=1)
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)


def test_a_net_of_your_own_by_name(tmp_path) -> None:
    """Through the public entry, on real digits, with a window and activity graphs in flight."""
    blocks = [nn.Sequential(nn.Conv2d(1, 8, 3), nn.GELU()), Gated(8), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())]
    heads = [Head(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)) for _ in blocks]
    overrides = [
        "epochs=3",
        "data.train_samples=640",
        "space=activity",
        "window=auto",
        "observe.tensorboard=false",
        f"run_dir={tmp_path / 'run'}",
    ]
    figures = run(compose_config(overrides), Net(blocks, heads))
    assert figures["windows"] == [3, 2, 1]
    assert figures["test_accuracy"] > 0.2, "twice as good as chance"
