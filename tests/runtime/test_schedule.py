"""The schedule and the split against literal tables and exhaustive search."""

import itertools
from collections import deque
from dataclasses import replace

import pytest

from fgpipe.gradients.guesses import make
from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import plan_lanes
from fgpipe.plan.schedule import Action, Apply, Forward, actions, kept, turn, windows
from fgpipe.plan.topology import balanced


def method(guess: str = "local", depth: int | None = None, blocks: int = 4) -> Method:
    return Method(blocks, make(guess), "weight", "tensor", depth)


def text(batches: int, window: int, waits: bool = True, every: int = 1) -> str:
    """Actions as `a0 f4`: apply the scalars of batch 0, forward batch 4."""
    found = actions(range(batches), window, waits, every)
    return " ".join(f"{'a' if isinstance(each, Apply) else 'f'}{each.batch}" for each in found)


def test_actions() -> None:
    assert text(3, 1) == "f0 a0 f1 a1 f2 a2"
    assert text(4, 2) == "f0 f1 a0 f2 a1 f3 a2 a3"
    assert text(6, 4) == "f0 f1 f2 f3 a0 f4 a1 f5 a2 a3 a4 a5"
    assert text(2, 4) == "f0 f1 a0 a1", "fewer batches than the window: all in flight, then drained"
    assert text(3, 1, waits=False) == "f0 f1 f2"
    assert text(6, 2, every=3) == "f0 f1 a0 f2 f3 f4 a3 f5"
    assert text(5, 4, every=4) == "f0 f1 f2 f3 a0 f4 a4", (
        "readings of a batch that asks are applied before the epoch ends"
    )


def test_kept() -> None:
    """The readings that are dropped when new ones are sent were sent, whatever the window."""
    assert kept((8, 3, 1), 1) == (8, 3, 1) and kept((8, 3, 1), 3) == (9, 3, 3)


@pytest.mark.parametrize(
    "blocks, depth, window", [(4, None, "auto"), (5, None, 2), (5, 2, "auto"), (4, 1, 3), (3, 0, 1)]
)
def test_fixed_order(blocks: int, depth: int | None, window: int | str) -> None:
    """In the order of their turns no action of any block comes before one that it waits for."""
    one = method(depth=depth, blocks=blocks)
    sizes = windows(one, window)
    pending = {j: deque(actions(range(7), sizes[j], one.waits(j))) for j in range(blocks)}
    done: set[tuple[int, Action]] = set()
    turns = []
    while busy := [j for j in pending if pending[j]]:
        j = min(busy, key=lambda j: turn(pending[j], j))
        turns.append(turn(pending[j], j))
        action = pending[j].popleft()
        if isinstance(action, Forward):
            assert j == 0 or (j - 1, action) in done, "the block below has sent it"
        else:
            assert (one.target(j), Forward(action.batch)) in done, "its scalars were evaluated"
        done.add((j, action))
    assert turns == sorted(turns), "one order for all processes, however they divide the blocks"


def test_turns_in_full() -> None:
    """Two blocks, windows 2 and 1: batch by batch, updates with the batch that they come before."""
    pending = {0: deque(actions(range(3), 2, True)), 1: deque(actions(range(3), 1, False))}
    order = []
    while busy := [j for j in pending if pending[j]]:
        j = min(busy, key=lambda j: turn(pending[j], j))
        action = pending[j].popleft()
        order.append(f"{'f' if isinstance(action, Forward) else 'a'}{action.batch}/{j}")
    assert " ".join(order) == "f0/0 f0/1 f1/0 f1/1 a0/0 f2/0 f2/1 a1/0 a2/0"


@pytest.mark.parametrize(
    "guess, depth, auto, three",
    [
        ("local", None, (4, 3, 2, 1), (3, 3, 3, 1)),
        ("local", 0, (1, 1, 1, 1), (1, 1, 1, 1)),
        ("local", 1, (2, 2, 2, 1), (3, 3, 3, 1)),
        ("gaussian", 2, (3, 3, 2, 1), (3, 3, 3, 1)),
        ("twins", None, (4, 3, 2, 1), (3, 3, 3, 1)),
        ("twins", 0, (2, 2, 2, 1), (3, 3, 3, 1)),
        ("end_to_end", None, (1, 1, 1, 1), (1, 1, 1, 1)),
    ],
)
def test_windows(guess: str, depth: int | None, auto: tuple[int, ...], three: tuple[int, ...]) -> None:
    assert windows(method(guess, depth), "auto") == auto
    assert windows(method(guess, depth), 3) == three
    assert windows(method(guess, depth), 1) == (1, 1, 1, 1)
    own = tuple(w if a > 1 else 1 for w, a in zip((9, 5, 2, 7), auto, strict=True))
    assert windows(method(guess, depth), [9, 5, 2, 7]) == own, "a block that nothing comes down to has 1"


def test_windows_of_asynchronous_backpropagation() -> None:
    """Those of 1F1B, J - j: the warm-up of PipeDream's stage j."""
    found = windows(replace(method("end_to_end"), returns_gradients=True), "auto")
    assert found == (4, 3, 2, 1)
    assert [text(5, window) for window in found[:3]] == [
        "f0 f1 f2 f3 a0 f4 a1 a2 a3 a4", "f0 f1 f2 a0 f3 a1 f4 a2 a3 a4", "f0 f1 a0 f2 a1 f3 a2 f4 a3 a4",
    ]  # fmt: skip


def test_targets() -> None:
    assert [method(depth=1).target(j) for j in range(4)] == [1, 2, 3, 3]
    lanes = plan_lanes(method(depth=None), [1] * 4, "exact", "hadamard", 0)
    assert [lanes.asking(j) for j in range(4)] == [(), (), (), (0, 1, 2)]
    assert [method("gaussian", 0).trains_head(j) for j in range(4)] == [True] * 4
    assert [method("gaussian", None).trains_head(j) for j in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_balanced_is_the_best_split(parts: int) -> None:
    """Against every split of 7 blocks."""
    costs = (5, 1, 4, 4, 9, 2, 6)
    splits = [(0, *cuts, 7) for cuts in itertools.combinations(range(1, 7), parts - 1)]
    best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise(cuts)) for cuts in splits)
    sizes = balanced(costs, parts)
    bounds = list(itertools.accumulate(sizes, initial=0))
    assert len(sizes) == parts and bounds[-1] == 7
    assert max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds)) == best
