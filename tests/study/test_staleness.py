"""The study of staleness: histograms and tables by hand count, what is run again and what not, and two real runs."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from fgpipe.config import check_world, compose_config
from fgpipe.errors import UserError
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies import staleness as study
from fgpipe.study.accuracies.scaled import chosen, diverged, mean_accuracy, settings
from fgpipe.study.accuracies.staleness import PEERS, POLICIES, StalenessCell, StalenessRow, cells, staleness, tables

SMALL = ["data=digits", "model.width=0.07", "head=linear", "scope=block", "batch_size=32", "epochs=1"]
SMALL += ["data.train_samples=384", "data.test_samples=32", "optim.lr=0.01"]


def events(order: str, block: int = 0) -> list[Event]:
    """From `f0 f1 a0 a1`: forward pass of batch 0, ..., update for batch 0, ..."""
    kinds = {"f": "forward", "a": "update"}
    return [Event(kinds[each[0]], block, int(each[1:]), -1, 10 * i, 10 * i + 5) for i, each in enumerate(order.split())]


def test_histogram() -> None:
    """Window 2 has one update in between, but for the first batch; lock-step none; other slices and blocks are apart."""
    found = staleness([*events("f0 f1 a0 f2 a1 f3 a2 a3"), *events("f0 a0 f1 a1", 5), Event("push", 0, 0, -1, 6, 7)])
    assert found == {0: Counter({0: 1, 1: 3}), 5: Counter({0: 2})}
    assert staleness(reversed(events("f0 f1 f2 a0 a1 a2"))) == {0: Counter({0: 1, 1: 1, 2: 1})}


def test_cells() -> None:
    """Windows times policies but for one, and asynchronous backpropagation; a multiple of auto is that of each block."""
    every = cells([*POLICIES, *PEERS])
    assert len(every) == 14 and len({cell.name for cell in every}) == 14
    assert [cell.window for cell in cells(["async 1F1B"])] == ["auto", "2 x auto", "1"]
    assert StalenessCell("2 x auto", "eager").overrides((3, 2, 1), 0.1) == [
        "window=[6,4,2]",
        "feedback=eager",
        "trace=true",
    ]
    assert StalenessCell("auto", "in_order").overrides((3, 2, 1), 0.1) == [
        "window=auto",
        "feedback=in_order",
        "trace=true",
    ]
    assert "optim.lr=0.5" in StalenessCell("auto", "async 1F1B, look-ahead").overrides((3, 2, 1), 0.05)
    setting = settings(["data=digits", "scope=block"])
    for cell in every:
        check_world(compose_config([*setting, *cell.overrides(range(8, 0, -1), 0.1)]), 8)
    with pytest.raises(UserError, match=r"window=\[3, 2, 1\]: allowed: one number for each block \(8\)"):
        check_world(compose_config(["window=[3,2,1]"]), 8)


def test_policies_are_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="policies=.*: allowed: a list of in_order, eager, async 1F1B"):
        study.main([str(tmp_path), "policies=[late]"])


def test_setting() -> None:
    """That of the grid, by forward mode; arguments win."""
    config = compose_config(settings(["epochs=1"]))
    assert (config.data.size, config.model.width, config.batch_size, config.epochs) == (32, 0.25, 64, 1)
    assert (config.guess_name, config.target.name, config.scope, config.tangents) == (
        "local",
        "global",
        "tensor",
        "forward",
    )
    assert config.data.train_samples == 6400 and config.optim.lr == 0.1


def test_tables() -> None:
    rows = [
        StalenessRow(StalenessCell("auto", "eager"), [0.5, 0.6], {0: Counter({0: 1, 7: 3})}),
        StalenessRow(StalenessCell("4 x auto", "eager"), [None, 0.4], {}),
        StalenessRow(StalenessCell("4 x auto", "in_order"), [None], {}),
    ]
    lines = tables(rows).splitlines()
    assert lines[2] == "| auto | eager | 55.0% | 50.0% to 60.0% |"
    assert lines[3] == "| 4 x auto | eager | 40.0% and 1 diverged | 40.0% to 40.0% |"
    assert lines[4] == "| 4 x auto | in_order | 1 diverged |  |"
    assert lines[-1] == "| auto | eager | 0 | 0: 25.0%, 7: 75.0% |"
    assert [mean_accuracy(row.accuracies) for row in rows] == [pytest.approx(0.55), None, None]


def test_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Done and diverged runs stay; an interrupted and a failed one are run again."""
    ran: list[str] = []

    def run(command: Sequence[str]) -> None:
        path = Path(next(each for each in command if each.startswith("run_dir=")).split("=", 1)[1].strip('"'))
        path.mkdir()
        ran.append(path.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        if path.name.startswith("4-x-auto-eager") or len(ran) == 5:
            cause = "the loss is not finite" if len(ran) != 5 else "rank 1 is gone"
            (path / "verdict.json").write_text(json.dumps({"cause": cause}))
            raise subprocess.CalledProcessError(1, "torchrun")
        (path / "summary.json").write_text(json.dumps({"test_accuracy": 0.5, "machine": "a machine", "commit": "1f"}))
        trace.write(path / "trace.json", {0: events("f0 f1 a0 a1")}, {0: "rank 0"}, {})

    monkeypatch.setattr("fgpipe.study.accuracies.scaled.call", run)
    command = ["staleness", str(tmp_path / "study"), *SMALL]
    assert main(command) == 130 and capsys.readouterr().err == "fgpipe: interrupted\n"
    assert main(command) == 1 and "a run has failed" in capsys.readouterr().err
    assert main(command) == 0
    assert len(ran) == 14 + 2 and ran[2] == ran[3] and ran[4] == ran[5]
    assert main(command) == 0 and len(ran) == 16
    text = (tmp_path / "study" / "staleness.md").read_text()
    assert "1 epochs of 384 images, 8 processes, 1 seed. On a machine; commit 1f." in text
    assert "| 4 x auto | eager | 1 diverged |" in text and "| auto | in_order | 50.0% | 50.0% to 50.0% |" in text
    assert "| 2 | eager | 0 | 0: 50.0%, 1: 50.0% |" in text
    assert (
        "| auto | async 1F1B | 0 | 0: 50.0%, 1: 50.0% |" in text
        and "| auto | async 1F1B, two versions | 0 |" not in text
    )
    assert (tmp_path / "study" / "staleness.png").stat().st_size > 1000
    capsys.readouterr()
    other = {"test_accuracy": 0.5, "machine": "a machine", "commit": "1f", "config": {"optim": {"lr": 9.0}}}
    (tmp_path / "study" / "auto-in_order-0" / "summary.json").write_text(json.dumps(other))
    assert main(command) == 2 and len(ran) == 16
    assert "it is finished with optim.lr=9.0 (here 0.01)" in capsys.readouterr().err


def test_learning_rate_is_chosen() -> None:
    """The best of 3,000 images; the setting's own where the best is not ahead by a standard error, 0.9 points here."""
    assert chosen({0.05: 0.46, 0.1: 0.44, 0.2: 0.468}, 0.05) == 0.05
    assert chosen({0.05: 0.46, 0.1: 0.44, 0.2: 0.470}, 0.05) == 0.2
    assert chosen({0.1: 0.44, 0.2: 0.441}, 0.05) == 0.2, "the setting's was not tried"
    assert chosen({0.05: 0.0, 0.1: 0.1}, 0.05) == 0.1, "one that diverged counts as 0"


@pytest.mark.parametrize(
    "arguments, expected", [
        (["seeds=0"], "seeds=0: allowed: a whole number of at least 1"),
        (["processes=9"], "processes=9: allowed: at most 8 with these methods"),
        (["epochs=0"], "epochs=0: allowed: a whole number of at least 1"),
        (["data.root=nowhere"], "data.root=nowhere"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["staleness", str(tmp_path / "study"), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms off the timeline agree with what each block counts itself; in order they are what the windows say."""
    wanted = [StalenessCell("auto", "in_order"), StalenessCell("2 x auto", "eager")]
    monkeypatch.setattr(study, "cells", lambda policies: wanted)
    assert main(["staleness", str(tmp_path), "processes=2", *SMALL]) == 0
    for cell in wanted:
        folder = tmp_path / f"{cell.name}-0"
        found = staleness(trace.events(folder / "trace.json"))
        counted = json.loads((folder / "summary.json").read_text())
        assert not diverged(folder) and len(found) == 8
        for block, histogram in found.items():
            own = counted["staleness"][str(block)]
            assert (min(histogram), max(histogram)) == (own["min"], own["max"])
            mean = sum(each * count for each, count in histogram.items()) / histogram.total()
            assert histogram.total() == 12 and mean == pytest.approx(own["mean"])
            if cell.policy == "in_order":
                late = 7 - block
                assert histogram == Counter({**dict.fromkeys(range(late), 1), late: 12 - late})
    assert counted["windows"] == [16, 14, 12, 10, 8, 6, 4, 1]
