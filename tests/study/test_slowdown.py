"""The study of accuracy beside a slow block: what it runs, its table by hand count, and real runs."""

import json
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies import scaled
from fgpipe.study.accuracies.slowdown import SlowdownOptions, SlowdownRow, SlowedWay, extra, table, ways

SMALL = ["data=digits", "model.width=0.07", "head=linear", "batch_size=32", "epochs=2", "data.train_samples=384"]
SMALL += ["data.test_samples=32", "optim.lr=0.01", "partition=[2,6]"]


def summary(accuracy: float, seconds: float, *counts: int) -> dict:
    """Two epochs of 10 batches of 32; the extra steps of each block."""
    replay = {str(block): {"extra": count, "reused": 9} for block, count in enumerate(counts)}
    epochs = [{"train": {"0": {"samples": 320}, "7": {"samples": 300}}}] * 2
    config = {"batch_size": 32}
    return {"test_accuracy": accuracy, "train_seconds": seconds, "replay": replay, "epochs": epochs, "config": config}


@pytest.mark.parametrize("processes", [2, 8])
def test_ways(processes: int) -> None:
    """With buffers once for each factor, slowed by it; the others once."""
    split = [8 // processes] * processes
    found = ways(SlowdownOptions(processes=processes, block=3, factors=[1.0, 2.5], jitter=0.5), split)
    assert [(way.method, way.factor) for way in found] == [
        ("local target, buffers", 1.0),
        ("local target, buffers", 2.5),
        ("local target", None),
        ("global target, lock-step", None),
        ("global target", None),
        ("1F1B", None),
        ("async 1F1B", None),
    ]
    assert found[1].name == "local-target-buffers-2-5" and len({way.name for way in found}) == 7
    for way in found:
        config = compose_config([*scaled.settings(SMALL[:-1]), *way.overrides])
        check_world(config, processes)
        slow = (config.slow.block, config.slow.factor, config.slow.jitter)
        assert slow == ((3, 2.5, 0.5) if way.factor == 2.5 else (None, 1.0, 0.0))
        assert (config.replay.size is not None) == (way.factor is not None)
    late = compose_config(found[-1].overrides)
    assert late.window == ([2] * 4 + [1] * 4 if processes == 2 else list(range(8, 0, -1))), "as straggler times it"


def test_table() -> None:
    """5 beside 20 steps at the second buffer, the one with the most; one may make more than the epochs have."""
    assert extra(summary(0.5, 1, 0, 30, 5)) == pytest.approx(1.5)
    assert extra(summary(0.5, 1, 0, 3, 5)) == pytest.approx(0.25)
    rows = [
        SlowdownRow.of(SlowedWay("ours", 4.0, ()), [summary(0.5, 10, 0, 4), summary(0.6, 20, 0, 8)]),
        SlowdownRow.of(SlowedWay("theirs", None, ()), [None, summary(0.4, 5, 0, 0)]),
        SlowdownRow.of(SlowedWay("neither", None, ()), [None]),
    ]
    assert table(rows).splitlines()[2:] == [
        "| ours | 4 | 55.0% | 50.0% to 60.0% | 15 | 30% |",
        "| theirs | any | 40.0% and 1 diverged | 40.0% to 40.0% | 5 | 0% |",
        "| neither | any | 1 diverged |  | nan | nan% |",
    ]


@pytest.mark.parametrize(
    "arguments, expected", [
        (["processes=1"], "processes=1: allowed: a whole number of at least 2"),
        (["factors=[2]"], "factors=[2.0]: allowed: 1, then larger factors, as in [1,2,4]"),
        (["jitter=-0.5"], "jitter=-0.5: allowed: a finite number of at least 0"),
        (["block=8"], "block=8: allowed: 0 to 7"),
        (["slow.factor=2"], "slow.factor=2: allowed: 1 unless slow.block or slow.process is given"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slowdown", str(tmp_path / "study"), *SMALL, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a slow block there are extra steps, and the table says how many; every run is in it."""
    found = ways(SlowdownOptions(factors=[1.0, 40.0]), [2, 6])
    chosen = [way for way in found if way.method == "local target, buffers"]
    monkeypatch.setattr("fgpipe.study.accuracies.slowdown.ways", lambda options, split: chosen[1:])
    assert main(["slowdown", str(tmp_path), "factors=[1,40]", *SMALL]) == 0
    made = json.loads((tmp_path / f"{chosen[1].name}-0" / "summary.json").read_text())
    share = made["replay"]["2"]["extra"] / 24
    assert share > 0.2
    expected = f"| local target, buffers | 40 | {made['test_accuracy']:.1%} |"
    line = next(line for line in (tmp_path / "slowdown.md").read_text().splitlines() if line.startswith(expected))
    assert line.endswith(f"| {share:.0%} |")
