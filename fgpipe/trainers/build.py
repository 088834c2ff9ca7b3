"""Puts a run together: the only file, with `session.py`, that chooses concrete classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from fgpipe.cluster.interface import Interface
from fgpipe.cluster.process import Cluster
from fgpipe.cluster.replicas import Replicas
from fgpipe.config.rng import generator
from fgpipe.gradients.optim import Optimizer, Trained, learning_rate
from fgpipe.models.init import materialize
from fgpipe.models.net import deep_copy
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.timeline import Timeline
from fgpipe.plan.plan import Plan, trains_head
from fgpipe.plan.precision import DTYPES, Precision
from fgpipe.trainers.oracle import OracleTrainer
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.straggler import Straggler
from fgpipe.trainers.worker import Node, Source, Worker, never
from fgpipe.wire.feedback.base import FeedbackPlane
from fgpipe.wire.feedback.memory import MemoryFeedback
from fgpipe.wire.feedback.zmq import ZmqFeedback
from fgpipe.wire.inbox import Inbox
from fgpipe.wire.links.base import Link
from fgpipe.wire.links.distributed import DistributedLink, Receiver
from fgpipe.wire.links.memory import MemoryLink
from fgpipe.wire.mailbox import Mailbox
from fgpipe.wire.replay import Replay, copied
from fgpipe.wire.slow import SlowLinks

MakeOptimizer = Callable[[int, list[nn.Module]], Optimizer]
"""From a block and modules of it to an optimizer of their parameters."""


class Trainer(Protocol):
    """What `fgpipe.train` drives: a pipeline's worker, or a reference."""

    def train(
        self,
        epoch: int,
        batches: int,
        source: Source | None,
        indices: range | None = None,
        stop: Callable[[], bool] = never,
    ) -> int: ...

    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None: ...

    def trained(self) -> dict[int, dict[str, Trained]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Modules:
    """One block with what it trains on, ready to run."""

    block: nn.Module
    head: Any
    guess_head: Any


def build_trainer(
    plan: Plan,
    cluster: Cluster,
    device: torch.device,
    metrics: Metrics,
    ledger: Ledger,
    timeline: Timeline | None = None,
    replicas: Replicas | None = None,
) -> Trainer:
    """The trainer that the configuration asks for; collective, as sockets are made."""
    timeline, replicas = timeline or Timeline(), replicas or Replicas()
    config = plan.config
    make_optimizer = _optimizers(plan, ledger, replicas)
    if config.tangents == "oracle":
        return _reference(plan, device, make_optimizer, metrics)
    if config.guess_name == "end_to_end":
        return _pipelined(plan, cluster, device, make_optimizer, metrics, ledger, timeline, replicas)
    stages = build_stages(plan, device, metrics, ledger, timeline, replicas, cluster.run)
    return _connect(plan, stages, cluster, device, metrics, ledger, timeline)


def _optimizers(plan: Plan, ledger: Ledger, replicas: Replicas) -> MakeOptimizer:
    config = plan.config.optim
    rate = learning_rate(config, batches=plan.facts.train_batches, epochs=plan.config.epochs)
    return lambda block, modules: Optimizer(modules, config, rate, partial(replicas.average, ledger, block))


def build_stages(
    plan: Plan,
    device: torch.device,
    metrics: Metrics,
    ledger: Ledger,
    timeline: Timeline,
    replicas: Replicas,
    run: int = 0,
) -> dict[int, Stage]:
    """The stages of this process, by block, connected to nothing."""
    make_optimizer = _optimizers(plan, ledger, replicas)
    return {
        j: Stage(
            j,
            each.block,
            each.head,
            each.guess_head,
            method=plan.method,
            lanes=plan.lanes,
            make_optimizer=partial(make_optimizer, j),
            metrics=metrics,
            seed=plan.config.seed,
            window=plan.windows[j],
            run=run,
            replica=plan.topology.replica,
            replicas=plan.topology.replicas,
            phases=_phases(plan, j, timeline, device),
            precision=Precision.of(plan.config),
        )
        for j, each in _all_modules(plan, device).items()
    }


def _all_modules(plan: Plan, device: torch.device) -> dict[int, Modules]:
    return {j: _modules(plan, j, device) for j in plan.topology.local}


def _reference(plan: Plan, device: torch.device, make_optimizer: MakeOptimizer, metrics: Metrics) -> OracleTrainer:
    modules = _all_modules(plan, device).values()
    blocks, heads, guess_heads = ([getattr(each, name) for each in modules] for name in ("block", "head", "guess_head"))
    return OracleTrainer(
        blocks,
        heads,
        guess_heads,
        method=plan.method,
        lanes=plan.lanes,
        make_optimizer=partial(make_optimizer, 0),
        metrics=metrics,
        seed=plan.config.seed,
        cosine=plan.config.observe.cosine,
    )


def _phases(plan: Plan, j: int, timeline: Timeline, device: torch.device) -> Phases:
    return Phases(j, timeline, Straggler.of(plan.config.slow, plan.config.seed, j), device=device)


def _modules(plan: Plan, j: int, device: torch.device) -> Modules:
    config, method, net = plan.config, plan.method, plan.net

    def make(module: nn.Module, purpose: str) -> nn.Module:
        return materialize(module, generator(config.seed, purpose, j), dtype=DTYPES[config.dtype], device=device)

    untrained = method.guesses_by_untrained_head and j != method.last
    guess_head = make(deep_copy(net.heads[j]), "guess_head") if untrained else None
    head = make(net.heads[j], "head") if trains_head(config, method, j) else None
    return Modules(make(net.blocks[j], "block"), head, guess_head)


def _connect(
    plan: Plan,
    stages: dict[int, Stage],
    cluster: Cluster,
    device: torch.device,
    metrics: Metrics,
    ledger: Ledger,
    timeline: Timeline,
) -> Worker:
    config, method, topology = plan.config, plan.method, plan.topology
    wire = cluster.place.wire_device(device)
    samples = config.share if method.scope == "sample" else 1
    mailboxes = {
        j: Mailbox(
            j,
            method.target(j),
            plan.lanes.counts[j],
            samples,
            cluster.run,
            plan.step,
            window=plan.windows[j],
            lost=config.feedback.lost,
            metrics=metrics,
        )
        for j in stages
        if method.waits(j)
    }
    first = topology.local[0]
    receiver = _receiver(plan, device, wire, timeline) if first else None
    replays = {}
    if receiver is not None and config.replay.size is not None:
        replays[first] = Replay(first, config.replay, config.seed, metrics, receiver.taken)
    inbox = Inbox(stages, mailboxes, timeline, replays)
    feedback: FeedbackPlane = MemoryFeedback(inbox.deliver_feedback)
    if cluster.store is not None:
        most = max(1, *plan.lanes.counts)
        feedback = ZmqFeedback(
            topology,
            cluster.store,
            ledger,
            metrics,
            address=Interface.find(config.interface, cluster.place.several_hosts).address,
            deadline=config.deadline,
            largest=(most, most * samples),
            kept=plan.windows if config.feedback.lost == "retry" else [0] * method.blocks,
            links=SlowLinks.of(config.link, len(topology.pipeline)),
            deliver=inbox.deliver_feedback,
            fail=inbox.fail,
        )
    if receiver is not None:
        deliver = partial(inbox.deliver_batch, first)
        keep = (lambda batch: deliver(copied(batch))) if replays else deliver
        receiver.start(plan.batches, keep, inbox.fail)
    nodes = [
        Node(
            stage,
            plan.windows[j],
            waits=j in mailboxes,
            link=_link(plan, j, inbox, wire, ledger),
            taken=receiver.taken if receiver is not None and j == first and not replays else None,
        )
        for j, stage in stages.items()
    ]
    return Worker(
        nodes,
        inbox,
        feedback,
        eager=config.feedback.policy == "eager",
        fixed_order=topology.replicas > 1,
        deadline=config.deadline,
        timeline=timeline,
    )


def _receiver(plan: Plan, device: torch.device, wire: torch.device, timeline: Timeline) -> Receiver:
    first = plan.topology.local[0]
    return Receiver(
        first,
        plan.topology.rank_of(first - 1),
        shape=(plan.config.share, *plan.forward.shapes[first]),
        lanes=plan.lanes.on_link(first - 1),
        held=plan.windows[first] if plan.method.keeps_graph(first) else 1,
        batches=plan.facts.train_batches,
        dtype=Precision.of(plan.config).wire,
        device=wire,
        pinned=device.type != wire.type,
        timeline=timeline,
    )


def _link(plan: Plan, j: int, inbox: Inbox, wire: torch.device, ledger: Ledger) -> Link | None:
    if j == plan.method.last:
        return None
    if j + 1 in plan.topology.local:
        return MemoryLink(partial(inbox.deliver_batch, j + 1))
    topology = plan.topology
    links, position = SlowLinks.of(plan.config.link, len(topology.pipeline)), topology.position
    delay = links.delay(position, position + 1, inbox.fail)
    return DistributedLink(j, topology.rank_of(j + 1), plan.config.share, ledger, wire, delay)


def _pipelined(
    plan: Plan,
    cluster: Cluster,
    device: torch.device,
    make_optimizer: MakeOptimizer,
    metrics: Metrics,
    ledger: Ledger,
    timeline: Timeline,
    replicas: Replicas,
) -> Trainer:
    from fgpipe.trainers.backpropagation import PipelinedBackpropagation  # imports half of PyTorch, for a second

    config, topology, modules = plan.config, plan.topology, _all_modules(plan, device)
    host = cluster.place.wire_device(device)
    first, last = topology.local[0], topology.local[-1]
    straggler, share = _backward_share(plan)
    above = None
    if last < plan.method.last:
        above = DistributedLink(last, topology.rank_of(last + 1), config.share, ledger, host)
    return PipelinedBackpropagation(
        topology,
        [each.block for each in modules.values()],
        [each.head for each in modules.values()],
        shapes=(plan.forward.shapes[first], plan.forward.shapes[last + 1]),
        schedule=config.schedule,
        microbatches=config.microbatches,
        batch_size=config.share,
        precision=Precision.of(config),
        device=device,
        host=host,
        receiver=_receiver(plan, device, host, timeline) if first else None,
        link=above,
        make_optimizer=make_optimizer,
        metrics=metrics,
        ledger=ledger,
        group=replicas.pipeline,
        phases=[_phases(plan, j, timeline, device) for j in topology.local],
        backward=Phases(first, timeline, straggler, share, device),
    )


def _backward_share(plan: Plan) -> tuple[Straggler | None, float]:
    """The slow block, if it is here, and its share of the FLOPs of this process's backward pass."""
    slow, local = plan.config.slow, plan.topology.local
    if slow.block not in local:
        return None, 1.0
    flops = plan.forward.flops
    return Straggler.of(slow, plan.config.seed, slow.block), flops[slow.block] / sum(flops[j] for j in local)
