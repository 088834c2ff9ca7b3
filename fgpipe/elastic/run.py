"""One member's run, from configuration to its end: the place is claimed, the newest state taken, and the loop run."""

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from fgpipe.cluster.interface import Interface
from fgpipe.cluster.process import Place, follow_launcher
from fgpipe.config import Config, check_world
from fgpipe.config.elastic import block_of
from fgpipe.data import Batches, load
from fgpipe.elastic.assemble import finish, warn
from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.feedback import WAITING, FeedbackIn, FeedbackOut
from fgpipe.elastic.links import Downlink, Uplink
from fgpipe.elastic.member import Ending, Member
from fgpipe.elastic.outgoing import Outgoing
from fgpipe.elastic.places import Places
from fgpipe.elastic.presence import POLL, Presence, beat, claim
from fgpipe.elastic.saver import BlockSaver
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.sockets import Dialled
from fgpipe.elastic.store import StoreClient
from fgpipe.elastic.tally import Tally
from fgpipe.elastic.target import Target, own_plan
from fgpipe.errors import LinkError, OutputError, RunError, StalledError, UserError, bad_value, one_line, typed_line
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import DTYPES, Precision
from fgpipe.saving.outputs import needed
from fgpipe.trainers.learner import Learner
from fgpipe.trainers.saver import Preempted
from fgpipe.trainers.stage import Stage
from fgpipe.wire.feedback.mailbox import Due
from fgpipe.wire.links.header import IN_FLIGHT, Layout

CPU = torch.device("cpu")
LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts of a store that no other host can reach."""


def run_member(config: Config) -> None:
    """Be one block of an elastic run, until the run ends or another process has the block's place.

    Raises:
        UserError: bad input; another run is in the folder, or a living process has the place.
        RunError: the store does not come, a number is not finite, or a state cannot be read or written; a line on
            stderr says so.
        OutputError: the results cannot be written.
        Preempted: SIGTERM came, and the block is saved.
    """
    place = Place.from_environment()
    if place.world_size > 1:
        raise bad_value("nproc_per_node", place.world_size, "1 with elastic.block, as each block is a job of its own")
    check_world(config, 1)
    follow_launcher()
    block, places = block_of(config), Places(Path(config.run_dir or ""))
    places.begin()
    if places.summary.exists():
        print(f"{places.run} is finished", flush=True)
        return
    with needed("run_dir", places.run):
        secret = RunSecret.of(places.key)
    torch.set_num_threads(place.threads(config.threads))
    try:
        with ExitStack() as closing:
            closing.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
            ending = _Life(config, block, places, secret, closing).run()
    except (UserError, OutputError, Preempted):
        raise
    except Exception as error:
        cause = one_line(error) if isinstance(error, RunError) else typed_line(error)
        print(f"[block {block}] error: {cause}", file=sys.stderr, flush=True)
        raise
    if ending is Ending.PREEMPTED:
        raise Preempted(f"block {block} is saved on SIGTERM; the same command goes on")
    if ending in (Ending.STOPPED, Ending.SUPERSEDED):
        print(f"fgpipe: block {block} leaves: {ending.value}", file=sys.stderr, flush=True)


class _Life:
    """The parts of one member, put together in the order in which they can be.

    Args: closing: closes them in the end.
    """

    def __init__(self, config: Config, block: int, places: Places, secret: RunSecret, closing: ExitStack) -> None:
        self._config, self._block, self._places, self._secret, self._closing = config, block, places, secret, closing
        self._store = StoreClient(config.elastic.store, secret)
        depth, self._last = config.target.depth, config.blocks - 1
        self._target = self._last if depth is None else min(block + depth, self._last)
        self._downlink: Downlink | None = None
        self._readings: FeedbackIn | None = None

    def run(self) -> Ending:
        config, block, places = self._config, self._block, self._places
        source: Batches | Buffer
        if block == 0:  # it gives signs of life while it reads the data
            mine = self._claim(None)
            directory = self._directory(mine)
            dataset = load(config.data)
            source = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES[config.dtype])
            facts = DataFacts.of(dataset, source, config.data.size)
            places.agree(config, facts)
            plan = Plan.make(config, facts, rank=block, world_size=config.blocks)
        else:
            facts = self._await_facts()
            plan = Plan.make(config, facts, rank=block, world_size=config.blocks)
            source = Buffer(block, config.replay, config.seed)
            mine = self._claim(plan)
            directory = self._directory(mine)
        member = self._member(plan, mine, source, directory)
        signal.signal(signal.SIGTERM, lambda *_: member.preempt())
        directory.say = member.figures
        if self._downlink is not None and isinstance(source, Buffer):
            self._downlink.start(source, member.tally, lambda: directory.generation(block - 1), member.fail)
        if self._readings is not None:
            probes = plan.lanes.counts[block]
            due = Due(0, self._target, block, probes, plan.method.numbers(probes))
            self._readings.start(due, member.tally, lambda: directory.generation(self._target), member.fail)
        ending = member.run(places, directory)
        directory.say = lambda: {**member.figures(), "left": True}
        if ending is Ending.DONE and isinstance(source, Batches):
            finish(config, places, source, facts)
        return ending

    def _claim(self, plan: Plan | None) -> Presence:
        """Args: plan: None for block 0, to whom nobody sends batches."""
        several_hosts = self._config.elastic.store.rpartition(":")[0] not in LOOPBACK
        address = Interface.find(self._config.interface, several_hosts).address

        def listen(generation: int) -> tuple[str, str]:
            identity, forward, feedback = (self._block, generation), "", ""
            if plan is not None:
                shape = (self._config.batch_size, *plan.forward.shapes[self._block])
                layout = Layout(shape, plan.lanes.on_link(self._block - 1), Precision.of(self._config).wire, CPU)
                self._downlink = Downlink(identity, self._secret, address, layout)
                self._closing.callback(self._downlink.close)
                forward = self._downlink.address
            if self._target != self._block:
                self._readings = FeedbackIn(identity, self._target, self._secret, address)
                self._closing.callback(self._readings.close)
                feedback = self._readings.address
            return forward, feedback

        return claim(self._store, self._places, self._block, self._config.deadline, listen)

    def _directory(self, mine: Presence) -> Directory:
        """Block 0, which ends the run, looks for all others; these look for those whom they have to do with."""
        block, depth = self._block, self._config.target.depth
        reach = self._last if depth is None else max(1, depth)
        others = (j for j in range(self._config.blocks) if j != block and (block == 0 or abs(j - block) <= reach))
        directory = Directory(self._store, mine, others)
        self._closing.callback(directory.close)
        return directory

    def _await_facts(self) -> DataFacts:
        """Wait for block 0, as long as it gives signs of life.

        Raises:
            StalledError: it gave none for as long as the deadline.
        """
        beats, heard = None, time.monotonic()
        while not self._places.facts.exists():
            now = beats
            try:
                now = self._store.get(beat(0))
            except LinkError:
                if time.monotonic() - heard > self._config.deadline:
                    raise
            if now != beats:
                beats, heard = now, time.monotonic()
            if time.monotonic() - heard > self._config.deadline:
                raise StalledError(
                    f"start: block 0, which reads the data, was not here for {self._config.deadline:g} s"
                )
            time.sleep(POLL)
        return self._places.agreed(self._config)

    def _member(self, plan: Plan, mine: Presence, source: Batches | Buffer, directory: Directory) -> Member:
        config, places, block = self._config, self._places, self._block
        before, identity = places.tally(block), (block, mine.generation)
        tally = Tally(places.generation(*identity) / "tally", {**before, "restarts": before.get("restarts", -1) + 1})
        observers = Observers.of(plan.method.blocks)

        def dialled(other: int, plane: str, most: int) -> Dialled:
            return Dialled(identity, other, self._secret, directory, plane, most)

        uplink = None
        if block < self._last:
            above = dialled(block + 1, "forward", IN_FLIGHT)
            uplink = Uplink(identity, above, config.batch_size, tally, observers.ledger)
        post = Outgoing(uplink, FeedbackOut(lambda other: dialled(other, "feedback", WAITING), observers.ledger))
        self._closing.callback(post.close)
        learner = Learner.make(plan, block, CPU)
        stage, own = Stage(plan, learner, CPU, run=mine.generation), None
        if self._readings is not None and config.elastic.fallback == "local":
            own = Stage(own_plan(config, plan.facts, block), learner, CPU)
        target = Target(plan, stage, own, self._readings, directory, tally)
        saver = BlockSaver(places, *identity, config, plan.facts.train_batches)
        member = Member(plan, stage, target, tally, source, post, saver, observers)
        member.restore(places, warn)
        return member
