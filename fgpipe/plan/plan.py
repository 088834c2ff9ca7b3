"""The plan of a run: everything that every process works out alike, before any module has weights."""

from dataclasses import dataclass

import torch

from fgpipe.config import Config
from fgpipe.data import Batches, Dataset
from fgpipe.errors import bad_value
from fgpipe.gradients.check import check_net, fails_alone
from fgpipe.gradients.guesses import make
from fgpipe.gradients.method import Method
from fgpipe.gradients.optim import trainable
from fgpipe.gradients.probes import Lanes, plan_lanes
from fgpipe.models.net import Net, may_draw, resnet
from fgpipe.models.twins import Twin, with_twins
from fgpipe.plan.costs import ForwardPass, block_costs
from fgpipe.plan.precision import DTYPES, Precision
from fgpipe.plan.schedule import windows
from fgpipe.plan.several import as_one
from fgpipe.plan.topology import Topology, balanced


@dataclass(frozen=True)
class DataFacts:
    """Facts about the data that processes without images know."""

    train_batches: int
    test_batches: int
    classes: int
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, dataset: Dataset, batches: Batches, size: int) -> "DataFacts":
        channels = dataset.train_images.shape[1]
        return cls(batches.train_batches, batches.test_batches, dataset.classes, channels, size, size)


@dataclass(frozen=True)
class Plan:
    """Everything about a run that every process works out alike, before any module has weights."""

    config: Config
    facts: DataFacts
    net: Net
    method: Method
    lanes: Lanes
    windows: tuple[int, ...]
    topology: Topology
    forward: ForwardPass
    """Shapes and FLOPs of two samples."""
    step: int = 0
    """Training batches that were done before this process began."""

    @classmethod
    def make(
        cls,
        config: Config,
        facts: DataFacts,
        net: Net | None = None,
        rank: int = 0,
        world_size: int = 1,
        step: int = 0,
        placement: tuple[tuple[int, ...], ...] = (),
    ) -> "Plan":
        """Work out the plan of a process: of the only one, unless `rank` and `world_size` say otherwise.

        Args: placement: of each replica, the ranks along the pipeline; if empty, there is one, in order.

        Raises:
            UserError: the configuration does not fit the net or the data.
        """
        theirs, net = (
            net is not None,
            net or of_config(config, facts.channels, facts.classes),
        )
        image = (facts.channels, facts.height, facts.width)
        if theirs:
            net = as_one(net, image)
        tensors = [len(trainable(block)) for block in net.blocks]
        if make(config.guess).second_head is not None and not net.beside and len(net.blocks) > 1:
            raise bad_value(
                "guess", config.guess_name, "one without a second head, as the net has none beside (Net.beside)"
            )
        if (shape := make(config.guess).twin) is not None:
            if any(map(may_draw, net.blocks)):
                allowed = "another one with blocks that may draw numbers, as a twin would draw others"
                raise bad_value("guess", config.guess_name, allowed)
            net = with_twins(net, shape)
        method = Method.of(config, facts.classes, idle=frozenset(j for j, count in enumerate(tensors) if not count))
        lanes = plan_lanes(method, tensors, config.lanes, config.code, config.seed)
        if theirs:
            used = [head if uses_head(config, method, j) else None for j, head in enumerate(net.heads)]
            beside = net.beside if method.guess.second_head is not None else ()
            check_net(net.blocks, used, beside, method, lanes, image, facts.classes)
        forward = ForwardPass.of(net, (2, *image))
        failure = None
        if (config.pipelined or config.parts > 1) and config.microbatches == config.share:
            failure = fails_alone(net.blocks, net.heads[-1], image, DTYPES[config.dtype])
        if failure:
            allowed = f"at most {config.share // 2} here, as of one sample {failure}"
            raise bad_value("microbatches", config.microbatches, allowed)
        if config.partition == "counted":
            sizes = balanced(block_costs(forward.flops, method, lanes), world_size // config.replicas)
        else:
            sizes = tuple(config.partition)
        topology = Topology(sizes, rank, placement)
        in_flight = windows(method, config.window)
        if config.asynchronous and config.stash == "two" and config.microbatches < max(in_flight):
            allowed = f"at least the largest window ({max(in_flight)}) with stash=two"
            raise bad_value("microbatches", config.microbatches, allowed)
        return cls(config, facts, net, method, lanes, in_flight, topology, forward, step)

    @property
    def pipelined(self) -> bool:
        """Tell whether blocks are trained by `torch.distributed.pipelining`, all of a process as one."""
        return self.config.pipelined

    @property
    def has_readings(self) -> bool:
        """Tell whether readings travel: not where gradients do, or where blocks learn by the oracle."""
        return not (self.pipelined or self.method.returns_gradients or self.config.tangents == "oracle")

    @property
    def parts(self) -> int:
        """Parts of a training batch that go up one by one; wherever batches are counted in flight, these are."""
        return self.config.parts

    @property
    def link_bytes(self) -> list[int]:
        """Most bytes of a training batch in one replica, activation and tangents, upwards from each block but the last."""
        precision, samples = Precision.of(self.config), self.config.share
        one = [precision.bytes_of(torch.Size([samples, *shape])) for shape in self.forward.shapes[1:-1]]
        return [(1 + len(self.lanes.on_link(j))) * each for j, each in enumerate(one)]

    def weights_from(self, block: int) -> dict[int, int]:
        """Source -> how many weights travel down to the twin of a block at a time; sources without any are left out."""
        sources = self.method.sources(block)
        if not sources:
            return {}
        twin = self.net.beside[block]
        assert isinstance(twin, Twin), "copied weights are a twin's"
        sizes = [sum(each.numel() for each in piece) for piece in twin.pieces()]
        return {source: size for source, size in zip(sources, sizes, strict=True) if size}

    @property
    def test_batches(self) -> int:
        """Batches that this replica tests."""
        return len(range(self.topology.replica, self.facts.test_batches, self.topology.replicas))

    @property
    def batches(self) -> int:
        """Batches, or their parts, that are still to come, test ones included."""
        tests = self.config.epochs - self.step // self.facts.train_batches
        return self.training_parts + tests * self.test_batches

    @property
    def training_parts(self) -> int:
        """Training batches, or their parts, that are still to come."""
        return (self.config.epochs * self.facts.train_batches - self.step) * self.parts

    @property
    def gradients(self) -> range:
        """Training batches, or their parts, that are still to come and whose gradients come back."""
        first = self.step * self.parts
        return range(first, first + self.training_parts)


def of_config(config: Config, channels: int, classes: int) -> Net:
    """The ResNet of a configuration, on the meta device, for images of so many channels."""
    beside = make(config.guess).second_head
    return resnet(config.model, config.head, in_channels=channels, classes=classes, beside=beside)


def trains_head(config: Config, method: Method, block: int) -> bool:
    """Tell whether the head of a block is trained: a guess or target uses it, or it observes."""
    return method.trains_head(block) or config.observe.heads


def uses_head(config: Config, method: Method, block: int) -> bool:
    """Tell whether the head of a block is used at all, trained or not."""
    return trains_head(config, method, block) or (method.guesses_by_untrained_head and block != method.last)
