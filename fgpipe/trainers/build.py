"""Puts a run's trainer together: the only file that chooses between kinds of steps, and connects them."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from fgpipe.cluster.interface import Interface
from fgpipe.cluster.process import Cluster, Place
from fgpipe.cluster.replicas import Replicas
from fgpipe.config import Config
from fgpipe.errors import bad_value
from fgpipe.models.net import Net
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import DTYPES, Precision
from fgpipe.plan.schedule import kept
from fgpipe.trainers.asynchronous import AsynchronousStage
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.oracle import OracleStep
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Step
from fgpipe.trainers.worker import Worker
from fgpipe.wire.feedback.mailbox import Due, Mailbox
from fgpipe.wire.feedback.zmq import Terms, ZmqFeedback
from fgpipe.wire.gradients import Gradient, GradientBox
from fgpipe.wire.inbox import Arrivals, Inbox
from fgpipe.wire.links.header import Layout
from fgpipe.wire.links.receiver import Receiver
from fgpipe.wire.links.sender import Sender
from fgpipe.wire.post import Post
from fgpipe.wire.replay import Replay, copied
from fgpipe.wire.slow import Delay, SlowLinks
from fgpipe.wire.streams import GpuStreams, Streams
from fgpipe.wire.weights import WeightsBox

CPU = torch.device("cpu")
QUEUED = 2
"""Batches that a GPU may still be working on when the host takes another: it waits for the findings of the one before."""


def build_trainer(
    plan: Plan, cluster: Cluster, device: torch.device, observers: Observers, replicas: Replicas | None = None
) -> Worker:
    """The trainer that the configuration asks for, of one process; collective, as sockets are made."""
    replicas = replicas or Replicas()
    learners = {
        j: Learner.make(plan, j, device, partial(replicas.average, observers.ledger, j)) for j in plan.topology.local
    }
    timeline, phases = observers.timeline, {}
    steps: list[Step] = []
    if plan.config.tangents == "oracle":
        steps = [OracleStep(plan, learners, device)]
    elif plan.pipelined:
        from fgpipe.trainers.backpropagation import PipelinedStep  # imports half of PyTorch, for a second

        steps = [PipelinedStep(plan, learners, device, cluster.wire, observers, replicas.pipeline)]
    else:
        for each in learners.values():
            returns = plan.method.returns_gradients
            steps.append(AsynchronousStage(plan, each, device) if returns else Stage(plan, each, device, cluster.run))
        phases = {j: Phases.of(plan, j, timeline, device) for j in learners}
    streams = streams_of(plan.config, device, [*learners])
    return Worker(plan, steps, _connect(plan, steps, cluster, device, streams, observers), observers, phases)


def local_trainer(config: Config, facts: DataFacts, net: Net | None = None, device: torch.device = CPU) -> Worker:
    """A trainer of all blocks in this process, without a run folder, for studies and tests.

    Its `plan`, `observers` and `steps` are open to them.

    Raises:
        UserError: the configuration does not fit the net or the data.
    """
    plan = Plan.make(config, facts, net)
    return build_trainer(plan, Cluster(Place(0, 1, 0, 1)), device, Observers.of(plan.method.blocks))


def local_stages(plan: Plan) -> list[Stage]:
    """The stages of all blocks in this process, on the CPU and connected to nothing, lowest first."""
    return [Stage(plan, Learner.make(plan, j, CPU), CPU) for j in plan.topology.local]


def asynchronous_stages(plan: Plan) -> list[AsynchronousStage]:
    """The same of those whose gradients come back."""
    return [AsynchronousStage(plan, Learner.make(plan, j, CPU), CPU) for j in plan.topology.local]


def streams_of(config: Config, device: torch.device, blocks: Sequence[int]) -> Streams:
    """Streams of a process with these blocks.

    Raises:
        UserError: streams are wanted without a GPU.
    """
    if device.type == "cuda":
        return GpuStreams(device, blocks if config.streams else ())
    if config.streams:
        raise bad_value("streams", "true", f"false on device={device.type}")
    return Streams()


def _connect(
    plan: Plan, steps: list[Step], cluster: Cluster, device: torch.device, streams: Streams, observers: Observers
) -> Post:
    config, method, topology, metrics = plan.config, plan.method, plan.topology, observers.metrics
    first, last, wire = topology.local[0], topology.local[-1], cluster.wire
    links = SlowLinks.of(config.link, len(topology.pipeline))
    mailboxes: dict[int, Mailbox | GradientBox] = {}
    gradients = _gradients(plan, device, observers) if method.returns_gradients and last < method.last else None
    if method.returns_gradients:
        mailboxes.update(_gradient_boxes(plan, gradients))
    elif plan.has_readings:
        mailboxes.update(_mailboxes(plan, cluster.run, observers))
    inputs: dict[int, Arrivals | Replay] = {step.index: Arrivals() for step in steps if step.index != first}
    receiver = _receiver(plan, device, wire, observers) if first else None
    replays = receiver is not None and config.replay.size is not None
    if receiver is not None:
        taken = receiver.taken
        inputs[first] = Replay(first, config.replay, config.seed, metrics, taken) if replays else Arrivals(taken)
    boxes = {} if plan.config.tangents == "oracle" else _weights_boxes(plan, cluster.run)
    inbox = Inbox(inputs, mailboxes, observers.timeline, plan.step * plan.parts, boxes)
    upwards, downwards, feedback = None, None, None
    if last < method.last:
        delay = None if plan.pipelined else links.delay(topology.position, topology.position + 1, inbox.fail)
        if delay is None and wire.type != device.type:
            delay = Delay(None, 0.0, inbox.fail)
        above = topology.rank_of(last + 1)
        upwards = Sender(last, above, _layout(plan, last + 1, device, wire), observers.ledger, streams, delay)
    if method.returns_gradients and first:
        slow = links.delay(topology.position, topology.position - 1, inbox.fail) or Delay(None, 0.0, inbox.fail)
        below = topology.rank_of(first - 1)
        layout = _gradient_layout(plan, first - 1, device)
        downwards = Sender(first, below, layout, observers.ledger, streams, slow, gradients=True)
    if cluster.store is not None and plan.has_readings:
        probes, counts = max(1, *plan.lanes.counts), plan.lanes.counts
        terms = Terms(
            Interface.find(config.interface, cluster.place.several_hosts).address,
            config.deadline,
            largest=(probes, max(1, *(method.numbers(count) for count in counts))),
            kept=kept(plan.windows, method.every) if config.feedback.lost == "retry" else [0] * method.blocks,
            links=links,
            weights=max((size for j in topology.local for size in weights_bytes(plan, j).values()), default=0),
        )
        feedback = ZmqFeedback(topology, cluster.store, inbox, observers.ledger, metrics, terms)
    if receiver is not None:
        deliver = partial(inbox.deliver_batch, first)
        receiver.start(plan.batches, (lambda batch: deliver(copied(batch))) if replays else deliver, inbox.fail)
    if gradients is not None:
        gradients.start(len(plan.gradients), lambda batch: inbox.deliver_gradient(Gradient.of(batch, last)), inbox.fail)
    return Post(inbox, upwards, feedback, downwards, streams)


def _gradient_boxes(plan: Plan, receiver: Receiver | None) -> Mapping[int, GradientBox]:
    """Those of the blocks here that wait for gradients.

    Args: receiver: of those that come from another process.
    """
    last = plan.topology.local[-1]
    taken = {} if receiver is None else {last: receiver.taken}
    waiting = filter(plan.method.waits, plan.topology.local)
    return {j: GradientBox(j, plan.gradients, taken.get(j, lambda: None)) for j in waiting}


def _gradients(plan: Plan, device: torch.device, observers: Observers) -> Receiver:
    """The receiver of the gradients of the highest block here."""
    last = plan.topology.local[-1]
    return Receiver(
        last,
        plan.topology.rank_of(last + 1),
        _gradient_layout(plan, last, device),
        held=1,
        batches=plan.facts.train_batches * plan.parts,
        timeline=observers.timeline,
        gradients=True,
    )


def _gradient_layout(plan: Plan, block: int, device: torch.device) -> Layout:
    """Gradients of the output of a block, always by the host: NCCL would have those that come and the batches that go wait
    for each other."""
    shape = plan.config.share // plan.parts, *plan.forward.shapes[block + 1]
    precision = Precision.of(plan.config)
    pinned = device.type != "cpu"
    return Layout(shape, (), precision.wire, CPU, pinned=pinned, packed=precision.int8, labelled=False)


def _layout(plan: Plan, block: int, device: torch.device, wire: torch.device) -> Layout:
    """Batches on their way to a block."""
    share, shape, precision = plan.config.share, plan.forward.shapes[block], Precision.of(plan.config)
    return Layout(
        (share, *shape),
        plan.lanes.on_link(block - 1),
        precision.wire,
        wire,
        pinned=device.type != wire.type,
        training_shape=(share, 0) if plan.pipelined else (share // plan.parts, *shape),
        every=plan.method.every,
        packed=precision.int8,
    )


def weights_bytes(plan: Plan, block: int) -> dict[int, int]:
    """Source -> bytes of one message of its weights to the twin of a block."""
    return {source: size * DTYPES[plan.config.dtype].itemsize for source, size in plan.weights_from(block).items()}


def _weights_boxes(plan: Plan, run: int) -> Mapping[int, WeightsBox]:
    """Those of the blocks here whose twins get their weights from above."""
    every, sizes = plan.method.guess.copied_every, {j: weights_bytes(plan, j) for j in plan.topology.local}
    return {j: WeightsBox(run, j, each, every, plan.step) for j, each in sizes.items() if each and every}


def _mailboxes(plan: Plan, run: int, observers: Observers) -> Mapping[int, Mailbox]:
    """Those of the blocks here that wait for readings."""
    method, counts, lost = plan.method, plan.lanes.counts, plan.config.feedback.lost
    return {
        j: Mailbox(
            Due(run, method.target(j), j, counts[j], method.numbers(counts[j]), method.every),
            plan.step,
            window=plan.windows[j],
            lost=lost,
            metrics=observers.metrics,
        )
        for j in plan.topology.local
        if method.waits(j)
    }


def _receiver(plan: Plan, device: torch.device, wire: torch.device, observers: Observers) -> Receiver:
    first = plan.topology.local[0]
    return Receiver(
        first,
        plan.topology.rank_of(first - 1),
        _layout(plan, first, device, wire),
        held=(plan.windows[first] if plan.method.keeps_graph(first) else 1) + QUEUED * (wire.type == "cuda"),
        batches=plan.facts.train_batches * plan.parts,
        timeline=observers.timeline,
    )
