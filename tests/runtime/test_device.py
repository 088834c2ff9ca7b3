"""A GPU that PyTorch pretends: fake tensors know their device, refuse mixtures, and have no numbers to be read.

A step that reads a number of the device, by `.item()`, by a condition or to find an index, fails here; what the host must
know leaves a step in its findings, once for each block and batch. Codes of lanes, numbers of the host, cannot be pretended.
Nothing here says that a kernel exists on a GPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fgpipe.config import compose_config
from fgpipe.config.schema import SCOPES
from fgpipe.errors import NotFiniteError
from fgpipe.gradients.guesses import make
from fgpipe.gradients.guesses.registry import OWN
from fgpipe.models.init import materialize
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.saving.checkpoint import Checkpoints
from fgpipe.trainers.build import local_trainer
from fgpipe.trainers.findings import Findings, Transfer
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.oracle import OracleStep
from fgpipe.trainers.session import run
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch, within_process
from fgpipe.wire.feedback.messages import Feedback
from tests.runtime.poison import poison

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # to see if two share memory
GPU, CPU = torch.device("lazy", 0), torch.device("cpu")
"""A type of device that PyTorch's autograd takes without a driver, unlike `cuda`."""
SIZE = 8
GUESSES = [make(name) for name in OWN if name != "end_to_end"]
CASES = [
    (f"guess={guess.name}", f"space={space}", f"scope={scope}")
    for guess in GUESSES
    for space, scope in (("weight", "tensor"), ("weight", "block"), ("activity", "batch"), ("activity", "sample"))
    if space in guess.spaces and scope in guess.scopes
] + [
    ("target=local",),
    ("target=intermediate", "head=predsim"),
    ("target=intermediate", "target.depth=3", "head=cnn", "decode=smoothed", "step=normalised"),
    ("optim.clip=1.0", "optim.name=adamw"),
    ("model.blocks=16", "head=linear"),
    ("target=local", "model.modules=[4,4]"),
]


class OnHost(torch.Generator):
    """A generator of the host, whatever device is asked for."""

    def __new__(cls, device: object = None) -> Any:
        return super().__new__(cls, CPU)  # type: ignore[call-arg]  # torch's type does not say so


class OneMode(FakeTensorMode):
    """Copied modules stay on the same device."""

    def __deepcopy__(self, memo: object) -> "OneMode":
        return self


class Copies(TorchDispatchMode):
    """Counts copies from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in pytree.tree_leaves(args) if isinstance(each, Tensor)]
        if function is torch.ops.aten._fused_sgd_.default:  # which PyTorch cannot pretend
            assert {each.device for each in given} == {GPU}
            return None
        found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.device == CPU and any(each.device == GPU for each in given):
            self.count += 1
        return found


@contextmanager
def pretending(*parts: Sequence[nn.Module]) -> Iterator[Copies]:
    """Modules are on the pretended GPU afterwards."""
    fake = OneMode()
    for module in (each for part in parts for each in part):
        on_gpu(module, fake)
    with fake, Copies() as copies:
        yield copies


def on_gpu(module: nn.Module, fake: OneMode) -> None:
    """Give a module tensors of the pretended device."""

    def moved(tensor: Tensor) -> Tensor:
        still = tensor.detach()
        with fake:
            return fake.from_tensor(still).to(GPU)

    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(moved(parameter))
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = moved(buffer)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are on the device already, whose generator is the host's."""
    monkeypatch.setattr("fgpipe.trainers.learner.materialize", lambda module, source, **_: module)
    monkeypatch.setattr(torch, "Generator", OnHost)


def plan_of(*overrides: str) -> Plan:
    facts = DataFacts(train_batches=4, test_batches=1, classes=10, channels=3, height=16, width=16)
    config = compose_config([f"batch_size={SIZE}", "model.width=0.0625", "window=auto", *overrides])
    plan = Plan.make(config, facts)
    for module in (*plan.net.blocks, *plan.net.heads, *plan.net.beside):
        materialize(module, torch.Generator().manual_seed(0), dtype=torch.float32, device=CPU)
    return plan


def images() -> tuple[Tensor, Tensor]:
    return torch.zeros(SIZE, 3, 16, 16), torch.zeros(SIZE, dtype=torch.int64)


def findings(messages: Iterator[Message]) -> tuple[int, list[Batch]]:
    """How many there are, and what leaves the block."""
    kept = list(messages)
    assert all(each.device == GPU for found in kept if isinstance(found, Findings) for each in found.numbers)
    return sum(isinstance(each, Findings) for each in kept), [each for each in kept if isinstance(each, Batch)]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_stages(case: tuple[str, ...]) -> None:
    """Two batches through all blocks, the readings that they wait for, and a test batch."""
    plan = plan_of(*case)
    with pretending(plan.net.blocks, plan.net.heads, plan.net.beside) as copies:
        stages = [Stage(plan, Learner.make(plan, j, GPU), GPU) for j in plan.topology.local]
        for number, training in ((0, True), (1, True), (0, False)):
            batch = Batch(number, 0, training, *images())
            for stage in stages:
                count, above = findings(stage.run(batch))
                assert count == 1
                batch = within_process(above[0]) if above else batch
            for stage in stages if training else ():
                for entry in stage.in_flight:
                    probes = plan.lanes.counts[stage.index]
                    numbers = [0.5] * plan.method.numbers(probes)
                    target_block = plan.method.target(stage.index)
                    given = Feedback(0, entry.batch, target_block, stage.index, tuple(range(probes)), tuple(numbers))
                    assert not findings(stage.run(given))[0]
        assert not copies.count


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("guess", [*(each.name for each in GUESSES), "end_to_end"])
def test_oracle(guess: str) -> None:
    space = make(guess).spaces[0]
    scope = next(each for each in SCOPES[space] if each in make(guess).scopes)
    plan = plan_of(f"guess={guess}", f"space={space}", f"scope={scope}", "tangents=oracle", "window=1")
    with pretending(plan.net.blocks, plan.net.heads, plan.net.beside) as copies:
        step = OracleStep(plan, {j: Learner.make(plan, j, GPU) for j in plan.topology.local}, GPU)
        for training in (True, False):
            assert findings(step.run(Batch(0, 0, training, *images())))[0] == 1
        assert not copies.count


def test_a_mixture_and_a_read_are_found() -> None:
    """What the tests above rest on."""
    with pretending() as copies:
        x, host = torch.zeros(2, device=GPU), torch.zeros(2)
        with pytest.raises(Exception, match="device"):
            x + host
        for read in (lambda: x.sum().item(), lambda: bool((x > 0).all()), x.tolist, lambda: x[x > 0]):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                read()
        x.cpu()
        assert copies.count == 1


FACTS = DataFacts(train_batches=6, test_batches=1, classes=10, channels=3, height=16, width=16)


@pytest.mark.parametrize(
    "case", [("target=global", "scope=block"), ("target=local",), ("tangents=oracle",)], ids=" ".join
)
def test_findings_that_arrive_late(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose numbers are on their way while the next batch is begun: no weight and no score is another."""
    config = compose_config(["model.width=0.0625", f"batch_size={SIZE}", "window=1", *case])
    data = torch.randn(6, SIZE, 3, 16, 16), torch.arange(6 * SIZE).view(6, SIZE) % 10
    found = []
    for late in (False, True):
        if late:
            monkeypatch.setattr(Transfer, "arrived", property(lambda self: False))
        trainer = local_trainer(config, FACTS)
        trainer.train(0, 6, lambda epoch, index: (data[0][index], data[1][index]))
        weights = [p.detach() for parts in trainer.trained().values() for p in parts["block"].module.parameters()]
        found.append([*weights, trainer.observers.metrics.take()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_late_nan_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops the run before the checkpoint of the same batch."""
    monkeypatch.setattr(Transfer, "arrived", property(lambda self: False))
    poison("activation", 3, batch=2, value=float("nan"), replace=monkeypatch.setattr)
    keys = ["epochs=1", "batch_size=32", "data.train_samples=128", "model.width=0.125", "observe.tensorboard=false"]
    with pytest.raises(NotFiniteError, match="activation of batch 2"):
        run(compose_config([*keys, "checkpoint.every_steps=1", "device=cpu", f"run_dir={tmp_path / 'run'}"]))
    assert Checkpoints(tmp_path / "run").steps()[-1] == 2
