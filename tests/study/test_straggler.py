"""The study of slow blocks: rates and shares by hand count, its contestants, and what it refuses."""

from pathlib import Path

import pytest

from fgpipe.observe.timeline import Event
from fgpipe.study.__main__ import main
from fgpipe.study.contests.contest import Contest
from fgpipe.study.contests.straggler import StragglerOptions, StragglerRow, contestants, others, table, update_rate

SECOND = 10**9


def test_update_rate() -> None:
    """Epochs of 2 batches that take 8, 2 and 4 seconds after the first one, from a wait of block 1 to the last update of
    block 0, in each of which block 1 makes 3 updates, one of them an extra step's, and block 0 makes 2; the medians are
    3 and 2 in 4 seconds. A send that ends later does not count."""
    events = [Event("forward", 1, 0, -1, 0, 1), Event("update", 1, 0, -1, 1, 2), Event("update", 0, 1, -1, 2, 3)]
    for epoch, (began, seconds) in enumerate([(100, 8), (200, 2), (300, 4)], start=1):
        at, end = began * SECOND, (began + seconds) * SECOND
        first, second = 2 * epoch, 2 * epoch + 1
        events += [Event("wait for input", 1, first, 0, at, at + 5), Event("forward", 0, first, -1, at + 1, at + 2)]
        events += [Event("update", 1, batch, -1, at + 6, at + 7) for batch in (first, second, second)]
        events += [Event("update", 0, first, -1, at + 6, at + 7), Event("update", 0, second, -1, end - 1, end)]
        events += [Event("send", 0, second, 1, end - 1, end + SECOND)]
    assert update_rate(events, 1, 2) == pytest.approx(0.75)
    assert update_rate(events, 0, 2) == pytest.approx(0.5)
    assert update_rate(reversed(events), 1, 2) == pytest.approx(0.75), "in any order"


def test_others() -> None:
    """Blocks 0 1 2 | 3 | 4 5 6 7."""
    assert others([3, 1, 4], 0) == others([3, 1, 4], 2) == [3, 4, 5, 6, 7]
    assert others([3, 1, 4], 3) == [0, 1, 2, 4, 5, 6, 7]
    assert others([3, 1, 4], 4) == others([3, 1, 4], 7) == [0, 1, 2, 3]


def test_shares() -> None:
    """Over the same contestant's figures with factor 1, round by round: 0.5 and 0.9, of images 0.25 and 0.5."""
    rows = [
        StragglerRow("ours", 1, [2.0, 3.0], [4.0, 10.0], [80.0, 60.0]),
        StragglerRow("ours", 4, [1.0, 1.5], [2.0, 9.0], [20.0, 30.0]),
        StragglerRow("1F1B", 1, [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
    ]
    lines = table(rows).splitlines()
    assert lines[3] == "| ours | 4 | 1.25 | 5.50 | 0.70 | 0.50 to 0.90 | 25.0 | 0.38 | 0.25 to 0.50 |"
    assert lines[4].endswith("| 1.0 | 1.00 | 1.00 to 1.00 |")
    assert {line.count("|") for line in lines} == {10}


@pytest.mark.parametrize("processes, jitter", [(2, 0.0), (8, 0.5)])
def test_contestants_can_be_run(processes: int, jitter: float, tmp_path: Path) -> None:
    """Every method with every factor, all recorded; factor 1 is the block as it is."""
    options = StragglerOptions(processes=processes, split=[8 // processes] * processes, batches=2, jitter=jitter)
    wanted = contestants(options)
    Contest(tmp_path, options, [], list(wanted.values()))
    assert len({each.folder for each in wanted.values()}) == len(wanted) == 6 * 4
    for (_, factor), each in wanted.items():
        slow = [key for key in each.overrides if key.startswith("slow.")]
        assert slow == ([] if factor == 1 else ["slow.block=0", f"slow.factor={factor:g}", f"slow.jitter={jitter:g}"])
        assert "trace=true" in each.overrides


@pytest.mark.parametrize(
    "argument, expected", [
        ("block=-1", "block=-1: allowed: a block's number"),
        ("block=8", "slow.block=8: allowed: 0 to 7 with 8 blocks"),
        ("block=8 factors=[1]", "block=8: allowed: 0 to 7"),
        ("factors=[2,4]", "factors=[2.0, 4.0]: allowed: 1, then larger factors"),
        ("factors=[1,4,4]", "factors=[1.0, 4.0, 4.0]: allowed: 1, then larger factors"),
        ("factors=slow", "factors=slow: "),
        ("jitter=-0.1", "jitter=-0.1: allowed: a finite number of at least 0"),
        ("jitter=nan", "jitter=nan: allowed: a finite number of at least 0"),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["straggler", str(tmp_path / "study"), "split=[4,4]", "batches=2", *argument.split()]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
