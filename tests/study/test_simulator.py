"""The simulator's model against closed forms and the real worker, and what it is fed with by hand count."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgpipe.cluster.process import Cluster, Place
from fgpipe.config import compose_config
from fgpipe.gradients.guesses import make
from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import plan_lanes
from fgpipe.observe.events import Worked
from fgpipe.observe.observers import Observers
from fgpipe.observe.timeline import COMPUTE, Event
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.schedule import Forward, actions, windows
from fgpipe.study.simulator.calibration import exchange, pieces, slices
from fgpipe.study.simulator.engine import Job, Message, Simulation
from fgpipe.study.simulator.forecast import Forecast, epoch_seconds, forecast
from fgpipe.study.simulator.machine import Machine
from fgpipe.study.simulator.nets import equal_blocks
from fgpipe.study.simulator.programs import (
    AsynchronousBackpropagation,
    Backpropagation,
    Costs,
    ForwardGradients,
    Orders,
    microbatches,
)
from fgpipe.trainers.build import build_trainer, local_stages
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Lost
from fgpipe.wire.slow import SlowLinks

IDEAL = Machine()


def links(processes: int, rate: float | None = None, rtt: float = 0.0) -> SlowLinks:
    """Between all neighbours; rate in bits per second."""
    sites = tuple(range(processes)) if rate or rtt else (0,) * processes
    return SlowLinks(rate, rtt / 2, sites)


@cache
def plan(depth: int | None, window: int | str = "auto") -> Plan:
    """Local guesses in one lane, for any target, of a narrow ResNet."""
    target = "global" if depth is None else "local" if depth == 0 else "intermediate"
    lanes = "exact" if depth == 0 else 1
    keys = [
        f"target={target}",
        f"window={window}",
        f"lanes={lanes}",
        "scope=block",
        "model.width=0.07",
        "batch_size=2",
        "optim.lr=0.001",
    ]
    keys += [f"target.depth={depth}"] if target == "intermediate" else []
    return Plan.make(compose_config(keys), DataFacts(7, 1, 10, 3, 16, 16))


def net(costs: Costs, depth: int | None = None, window: int | str = "auto", activation: int = 0) -> ForwardGradients:
    """A net of any length, whose steps are those of `plan`."""
    method = Method(len(costs), make("local"), "weight", "block", depth)
    lanes = plan_lanes(method, [1] * len(costs), "exact" if depth == 0 else 1, "hadamard", 0)
    activations = [activation] * (len(costs) - 1)
    orders = Orders.of(plan(depth))
    return ForwardGradients(method, lanes, windows(method, window), costs, activations, batch_size=0, orders=orders)


def equal(stages: int, seconds: float = 1.0) -> Costs:
    return [{"forward": seconds}] * stages


def steady(of: ForwardGradients, rate: float | None = None, rtt: float = 0.0, machine: Machine = IDEAL) -> Forecast:
    """With a process for each block."""
    stages = len(of.costs)
    return forecast(of, [1] * stages, links(stages, rate, rtt), machine)


@pytest.mark.parametrize("stages", [1, 2, 5, 16])
def test_equal_stages_are_all_busy(stages: int) -> None:
    """A batch per stage time with the window of `auto`; as many batches in flight as stages."""
    found = steady(net(equal(stages, 0.5)))
    assert found.seconds == pytest.approx(0.5)
    assert found.busy == pytest.approx([1.0] * stages)
    assert (found.in_flight, found.held) == (stages, stages)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rtt", [0.0, 3.0])
def test_window_over_round_trip(window: int, rtt: float) -> None:
    """W batches in each round trip of block 0: six stages up with five hops, and half an rtt back; at most one a second."""
    round_trip = 6 + 5 * rtt / 2 + (rtt / 2)
    found = steady(net(equal(6), window=window), rtt=rtt)
    assert 1 / found.seconds == pytest.approx(min(1.0, window / round_trip))


def test_lock_step_is_the_sum_of_the_path() -> None:
    """Unequal stages: forward pass, guess and push below, then the head at the target, then the slowest update."""
    costs = [{"forward": 1.0, "guess": 2.0, "push": 3.0, "update": 4.0}] * 3
    costs = [*costs, {"forward": 1.0, "loss": 0.5, "push": 0.25, "read": 0.125, "update": 9.0}]
    found = steady(net(costs, window=1), rtt=1.0)
    path = 3 * 6.0 + 1.875 + 3 * 0.5  # up
    assert found.seconds == pytest.approx(path + 0.5 + 4.0), "scalars leave before block 3's own update"
    assert found.held == 1


@pytest.mark.parametrize("rtt", [0.0, 0.1, 40.0])
def test_local_target_knows_no_round_trip(rtt: float) -> None:
    """The slowest stage's rate."""
    costs = [{"forward": 1.0, "update": 0.5}, {"forward": 2.0, "update": 1.0}, {"forward": 0.25}]
    assert steady(net(costs, depth=0), rtt=rtt).seconds == pytest.approx(3.0)


def test_intermediate_target() -> None:
    """Window 2 of depth 1 keeps equal stages busy; window 1 waits for the block above: two stages a batch."""
    assert steady(net(equal(6), depth=1)).seconds == pytest.approx(1.0)
    assert steady(net(equal(6), depth=1)).held == 2
    assert steady(net(equal(6), depth=1, window=1)).seconds == pytest.approx(2.0)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("stages, count", [(1, 4), (4, 4), (4, 8), (3, 32)])
def test_bubble(schedule: str, stages: int, count: int) -> None:
    """(J - 1) / (m + J - 1) of the time nobody works, in either schedule (Huang et al. 2019, Narayanan et al. 2019)."""
    costs = [{"forward": 1.0, "backward": 2.0}] * stages
    found = forecast(Backpropagation(schedule, count, costs, [0] * (stages - 1)), [1] * stages, links(stages), IDEAL)
    assert found.seconds == pytest.approx(3.0 * (count + stages - 1))
    assert [1 - busy for busy in found.busy] == pytest.approx([(stages - 1) / (count + stages - 1)] * stages)
    assert found.in_flight == 1


@pytest.mark.parametrize(
    "window, rtt, seconds",
    [("auto", 0.0, 3.5), (1, 0.0, 12.5), (1, 2.0, 18.5), ([10, 7, 4, 1], 2.0, 3.5)],
)
def test_asynchronous_backpropagation(window: int | str | list[int], rtt: float, seconds: float) -> None:
    """Without a drain all stages are busy, if as many batches are in flight as it takes; in lock-step a batch takes the way up
    and down, 4 stages and 3 hops each, and the last update: the gradient leaves before it."""
    costs = [{"forward": 1.0, "backward": 2.0, "update": 0.5}] * 4
    method = replace(Method(4, make("end_to_end"), "weight", "block", None), returns_gradients=True)
    of = AsynchronousBackpropagation(windows(method, window), costs, [0] * 3, batch_size=0)
    found = forecast(of, [1] * 4, links(4, rtt=rtt), IDEAL)
    assert found.seconds == pytest.approx(seconds)
    assert found.held == of.windows[0]


def test_two_blocks_of_asynchronous_backpropagation() -> None:
    """In a process each and drained at the end: f0 f1 b0 f2 b1 b2 below, where b0 waits for 1 + 2 s above, and each pass above
    for what is there: 1 + 3 x 3 + 2 s."""
    of = AsynchronousBackpropagation((2, 1), [{"forward": 1.0, "backward": 2.0}] * 2, [100], batch_size=0)
    assert epoch_seconds(of, [1, 1], links(2), IDEAL, 3) == pytest.approx(12.0)
    assert (of.up(0), of.back(0)) == (100, 100)


def test_graphs_that_are_kept_cost_more() -> None:
    """Those of blocks whose window is above 1: both passes of the lower block, not of the upper one."""
    costs = [{"forward": 1.0, "backward": 2.0}] * 2
    of = AsynchronousBackpropagation((2, 1), costs, [100], 0, kept=[{"forward": 2.0, "backward": 4.0}] * 2)
    seconds = [[sum(each for each, _ in job.steps) for job in block] for block in of.programs([2], 1)[0]]
    assert seconds == [[2.0, 4.0], [3.0]]


def test_orders_of_backpropagation() -> None:
    """Orders by hand, of 2 stages and 3 microbatches: 1F1B holds two at stage 0 and one at the last."""

    def text(schedule: str, process: int) -> str:
        order = Backpropagation(schedule, 3, equal(2), [0]).order(process, 2)
        return " ".join(f"{kind[0]}{i}" for kind, i in order)

    assert text("gpipe", 0) == text("gpipe", 1) == "f0 f1 f2 b0 b1 b2"
    assert (text("1f1b", 0), text("1f1b", 1)) == ("f0 f1 b0 f2 b1 b2", "f0 b0 f1 b1 f2 b2")


def test_order_is_the_schedules() -> None:
    """Each block does the actions of `plan.schedule`, in their order, however processes divide the blocks."""
    of = net([{"forward": 1.0, "update": 0.5}] * 4, window=2)
    done = Simulation(of.programs([2, 2], 7), links(2), IDEAL).run().done
    for j in range(4):
        found = [(each.job.kind, each.job.batch) for each in done if each.job.block == j]
        wanted = actions(range(7), of.windows[j], of.method.waits(j))
        assert found == [("forward" if isinstance(a, Forward) else "apply", a.batch) for a in wanted]


def test_a_batch_without_lanes() -> None:
    """Its steps are those of the real stages, for every block; only activations and labels go up with it."""
    made = Plan.make(
        compose_config(["model.width=0.0625", "lanes=1", "decode=smoothed", "feedback.every=2"]), plan(None).facts
    )
    orders, costs = Orders.of(made), [dict.fromkeys(COMPUTE, 1.0)] * 8
    of = ForwardGradients(made.method, made.lanes, made.windows, costs, [100] * 7, batch_size=0, orders=orders)
    stages, batch = local_stages(made), Batch(1, 0, True, torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    for j, block in enumerate(of.programs([1] * 8, 2)):
        jobs = [job for job in block[0] if (job.kind, job.batch) == ("forward", 1)]
        seconds = sum(each for each, _ in jobs[0].steps)
        kinds = list(stages[j].run(batch))
        batch = next((each for each in kinds if isinstance(each, Batch)), batch)
        assert seconds == sum(isinstance(each, Worked) for each in kinds)
    assert [of.up(3, batch) for batch in range(3)] == [200, 100, 200]


@pytest.mark.parametrize("depth, window", [(None, "auto"), (None, 1), (None, 3), (1, "auto"), (2, 2), (0, 1)])
def test_order_is_the_workers(depth: int | None, window: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, the jobs come in the order in which the real worker does them."""
    simulated = Simulation(net(equal(8), depth, window).programs([8], 7), links(1), IDEAL)
    order, run = [], Stage.run

    def recording(self: Stage, given: Batch | Feedback | Lost) -> Iterator[object]:
        what = ("forward", given.id) if isinstance(given, Batch) else ("apply", given.batch)
        order.append((*what, self.index))
        return run(self, given)

    monkeypatch.setattr(Stage, "run", recording)
    of = plan(depth, window)
    trainer = build_trainer(of, Cluster(Place(0, 1, 0, 1)), torch.device("cpu"), Observers.of(8))
    source = torch.Generator().manual_seed(0)
    trainer.train(0, 7, lambda *_: (torch.randn(2, 3, 16, 16, generator=source), torch.zeros(2, dtype=torch.int64)))
    done = simulated.run().done
    assert [(each.job.kind, each.job.batch, each.job.block) for each in done] == order


def test_steps_are_the_stages() -> None:
    """Read off the stages; by hand for a global target: a block below sends its lanes last, the last one its readings
    before it learns."""
    steps = Orders.of(plan(None)).steps
    assert set(steps[:-1]) == {("forward", "loss", "guess", "push", "send", "head")}
    assert steps[-1] == ("forward", "loss", "push", "read", "reply", "update")
    assert set(Orders.of(plan(0)).steps[:-1]) == {("forward", "send", "loss", "update")}
    assert set(Orders.of(plan(1)).steps[1:-1]) == {
        ("forward", "loss", "guess", "push", "send", "read", "reply", "head")
    }


@pytest.mark.parametrize("depth, lanes", [(0, 1), (None, 2)])
def test_a_slow_link_bounds_the_rate(depth: int | None, lanes: int) -> None:
    """A batch for each time that its activation and its tangent take; rtt only matters to windows."""
    of = net(equal(3), depth=depth, window=40, activation=1000)
    assert of.up(0) == 1000 * lanes
    assert steady(of, rate=2000.0, rtt=1.0).seconds == pytest.approx(4.0 * lanes)


def test_gradients_cross_the_link_too() -> None:
    """One microbatch, two stages: up, and down again, half a round trip each, with nothing else going on."""
    of = Backpropagation("gpipe", 1, [{"forward": 1.0, "backward": 2.0, "update": 0.5}] * 2, [1000])
    found = forecast(of, [1, 1], links(2, rate=4000.0, rtt=3.0), IDEAL)
    assert found.seconds == pytest.approx(3.0 + 3.0 + 2 * (2.0 + 1.5) + 0.5)


def test_processes_share_cores() -> None:
    """One core does the sum of all work; two cores half of it each; contention makes busy ones slower."""
    of = net(equal(4))
    assert steady(of, machine=Machine(cores=1)).seconds == pytest.approx(4.0)
    assert steady(of, machine=Machine(cores=2)).seconds == pytest.approx(2.0)
    assert steady(of, machine=Machine(cores=2, contention=1.5)).seconds == pytest.approx(3.0)
    assert steady(net(equal(4), window=1), machine=Machine(cores=2, contention=1.5)).seconds == pytest.approx(4.0)


def test_sharing_is_even() -> None:
    """Work of 1 and of 3 on one core: the first ends at 2, and the second, alone from then on, at 4."""
    one, three = (Job("forward", j, 0, None, ((seconds, None),)) for j, seconds in ((0, 1.0), (1, 3.0)))
    done = Simulation([[[one]], [[three]]], links(2), Machine(cores=1)).run().done
    assert [each.ended for each in done] == pytest.approx([2.0, 4.0])


def test_what_a_message_costs() -> None:
    """Copied by the sender, received beside the receiver's work; scalars take their own time."""
    of = net(equal(2), depth=0, activation=100)
    assert epoch_seconds(of, [1, 1], links(2), Machine(copy=0.01, receive=0.02), 1) == pytest.approx(5.0)
    assert steady(of, machine=Machine(copy=0.01, receive=0.02)).seconds == pytest.approx(2.0), "copy and work add up"
    assert steady(net(equal(2), window=1), machine=Machine(scalars=0.5)).seconds == pytest.approx(2.5)


def test_room() -> None:
    """Before a slow block four batches wait, two at either end, and the fast one works on the sixth or waits to send it."""
    of = net([{"forward": 0.01}, {"forward": 1.0}], depth=0)
    assert steady(of).in_flight == 1 + 4 + 1


def test_what_never_comes() -> None:
    waiting = Job("forward", 0, 0, "nothing", ((1.0, None),))
    with pytest.raises(RuntimeError, match="stands still"):
        Simulation([[[waiting]]], links(1), IDEAL).run()
    sent = Job("forward", 0, 0, None, ((1.0, Message("it", 0, 8, "scalars")),))
    assert Simulation([[[sent], [Job("apply", 1, 0, "it", ((1.0, None),))]]], links(1), IDEAL).run().done[-1].ended == 2


seconds = st.floats(0.1, 2.0)


@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(seconds, min_size=1, max_size=5),
    depth=st.sampled_from([None, 0, 1, 2]),
    window=st.sampled_from(["auto", 1, 2, 4]),
    rtts=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    cores=st.sampled_from([1, 2, math.inf]),
)
def test_bounds(
    times: list[float], depth: int | None, window: int | str, rtts: tuple[float, float], cores: float
) -> None:
    """Never faster than the slowest stage, nor than the cores; of an epoch never faster with a longer round trip.

    The last only with a core for each stage: where they are shared, order matters, and a delay may help.
    """
    of, stages = net([{"forward": each} for each in times], depth, window), len(times)
    bound = max(*times, sum(times) / cores) if cores < math.inf else max(times)
    both = [epoch_seconds(of, [1] * stages, links(stages, rtt=rtt), Machine(cores), 12) for rtt in sorted(rtts)]
    assert min(both) >= 12 * bound * (1 - 1e-9)
    if cores == math.inf:
        assert both[0] <= both[1] * (1 + 1e-9)


def test_slices() -> None:
    """Medians by block and kind, each from the end of the one before it; batches 0 and 1 are warm-up, waits no work."""
    ms = 1_000_000
    events = [
        Event(kind, block, batch, -1, ms * (10 * batch + began), ms * (10 * batch + ended))
        for batch in range(5)
        for kind, block, began, ended in (
            ("forward", 0, 1, 3),
            ("send", 0, 3, 4),
            ("forward", 1, 4, 6),
            ("update", 1, 6, 9),
        )
    ]
    events = [*events[::-1], Event("wait for input", 0, 3, 0, 0, 99 * ms)]
    found = slices(events)
    assert found == [
        {"forward": pytest.approx(0.004)},
        {"forward": pytest.approx(0.003), "update": pytest.approx(0.003)},
    ]


def test_pieces_of_pipelined_backpropagation() -> None:
    """The one backward pass of a process, 9 s, is divided among its blocks as passes of each by itself, 4 and 2 s."""
    found = pieces(
        [{"forward": 1.0, "backward": 9.0}, {"forward": 2.0, "loss": 0.5}], [{"backward": 4.0}, {"backward": 2.0}]
    )
    assert found == [
        {"forward": 1.0, "backward": pytest.approx(6.0)},
        {"forward": 2.0, "loss": 0.5, "backward": pytest.approx(3.0)},
    ]


def test_exchange() -> None:
    """Between a microbatch's backward pass and the next one's forward pass; not between batches, nor in the first two, nor
    where the next one is late."""
    ms, events = 1_000_000, []
    for batch in range(4):
        for i in range(3):
            start = 1000 * batch + 10 * i
            events.append(Event("forward", 3, batch, i, ms * start, ms * (start + 3)))
            late = 4 * (batch == 3 and i == 1)  # that the forward pass of microbatch 2 waits for
            events.append(Event("backward", 3, batch, i, ms * (start + 3), ms * (start + 8 - late + (batch < 2))))
    assert exchange(events) == pytest.approx(0.002)


def test_messages_of_pipelined_backpropagation() -> None:
    """Beside its bytes' 0.1 s a message takes 0.5 s, at both ends at once: one up and one down for each of two batches."""
    of = Backpropagation("gpipe", 1, [{"forward": 1.0, "backward": 2.0}] * 2, [1000])
    assert epoch_seconds(of, [1, 1], links(2), Machine(receive=0.0001, message=0.5), 2) == pytest.approx(
        2 * (6.0 + 2 * 0.6)
    )


def test_equal_blocks() -> None:
    costs = [{"forward": 1.0, "guess": 1.0}, {"forward": 2.0, "push": 4.0}, {"forward": 4.0, "push": 4.0}, {"forward": 5.0, "push": 5.0, "update": 10.0}]  # fmt: skip
    found = equal_blocks(costs, 5)
    assert found[0] == {"forward": 3.0, "guess": 3.0}
    assert found[1] == found[3] == pytest.approx({"forward": 3.0, "push": 4.0})
    assert found[4] == {"forward": 3.0, "push": 3.0, "update": 6.0}
    assert equal_blocks(costs, 1) == [{"forward": 3.0, "update": 6.0}]


def test_microbatches() -> None:
    assert [microbatches(128, least) for least in (4, 5, 64, 100, 200)] == [4, 8, 64, 128, 128]
