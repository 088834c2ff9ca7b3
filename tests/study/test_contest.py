"""Contests: turns, medians, ratios and tables by hand count, what is run again and what not, and one real study."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from fgpipe.config import compose_config
from fgpipe.data import load
from fgpipe.errors import UserError
from fgpipe.study.__main__ import main
from fgpipe.study.common.arguments import read
from fgpipe.study.common.runs import command_line, page
from fgpipe.study.common.split import times
from fgpipe.study.common.synthetic import write_images
from fgpipe.study.contests import contest, throughput
from fgpipe.study.contests.contest import (
    Contest,
    Contestant,
    ContestOptions,
    Spread,
    described,
    ratios,
    speed,
    speed_table,
    stages,
    turns,
)

A, B, ALONE = Contestant("a (1)", ("target=local",)), Contestant("b", ("lanes=1",)), Contestant("c", ("seed=3",), 1)


def summary(*seconds: float, samples: int = 100) -> dict:
    """Summary of a run whose epochs took so long; block 3 has fewer samples than the last, as its head would not."""
    scores = {"3": {"samples": samples - 1}, "7": {"samples": samples}}
    epochs = [{"train_seconds": each, "train": scores} for each in seconds]
    config = {"model": {"width": 0.5}, "batch_size": 128}
    return {"epochs": epochs, "machine": "a machine", "commit": "abc", "config": config, "test_accuracy": 0.1}


def test_turns() -> None:
    """Everybody once in each round, and everybody first once in as many rounds."""
    found = [[each.name[0] for each in turns((A, B, ALONE), round)] for round in range(4)]
    assert found == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_speed() -> None:
    """The first epoch, ten times as slow, does not count: 200 images in 2.5 seconds."""
    assert speed(summary(10.0, 1.0, 1.5)) == pytest.approx(80.0)


def test_ratios_are_paired() -> None:
    """Ratios of each round, not of the medians: 2, 3 and 1 over 1, 6 and 2, where the medians would give 1."""
    assert ratios([2.0, 3.0, 1.0], [1.0, 6.0, 2.0]) == Spread(0.5, 0.5, 2.0)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_table_and_page() -> None:
    table = speed_table({"ours": [120.0, 100.0, 300.0], "1F1B": [100.0, 200.0, 150.0]}, "1F1B")
    assert table.splitlines() == [
        "| | images/s, median | range | over 1F1B, median | range |",
        "|---|---|---|---|---|",
        "| ours | 120.0 | 100.0 to 300.0 | 1.20 | 0.50 to 2.00 |",
        "| 1F1B | 150.0 | 100.0 to 200.0 | 1.00 | 1.00 to 1.00 |",
    ]
    other = {**summary(1.0), "commit": "def"}
    setting = described(other["config"], [3, 5], ContestOptions(repeats=2))
    text = page("Title", "command", setting, [summary(1.0), other], table)
    assert text.startswith("# Title\n\n```bash\ncommand\n```\n\n") and text.endswith(f"\n\n{table}")
    assert "Width 0.5, batch 128, blocks per process [3, 5], rounds: 2, with 2 epochs of 32 batches" in text
    assert "On a machine; commit abc, def." in text


def test_command_of_a_page() -> None:
    """For any machine, and for a shell."""
    line = command_line("race", ["data.root=data/mine", "rates=[0.1,0.2]", "out=results"])
    assert line == "python -m fgpipe.study race FOLDER data.root=DIR 'rates=[0.1,0.2]'"
    assert command_line("memory", []) == "python -m fgpipe.study memory FOLDER"


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of the passes after the warm-up, by a clock that only blocks move; each gets what the last one gave."""
    now = [0.0]

    class Slow(nn.Module):
        def __init__(self, seconds: Sequence[float]) -> None:
            super().__init__()
            self.seconds = iter(seconds)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += next(self.seconds)
            assert self.training and len(x) == 2
            return torch.cat([x, x])[: len(x)]

    monkeypatch.setattr("fgpipe.study.common.split.time.perf_counter", lambda: now[0])
    blocks: list[nn.Module] = [Slow([90, 90, 1, 7, 3, 9, 2, 4, 8]), Slow([50, 50, *[6] * 7])]
    assert times(blocks, torch.zeros(2, 3)) == [4, 6]


def test_images(tmp_path: Path) -> None:
    """Enough of each part, of the size of CIFAR-10's, every class; and made once."""
    root = tmp_path / "images"
    write_images(root, 203, 7)
    made = (root / "test" / "0" / "000000.bmp").stat().st_mtime_ns
    write_images(root, 203, 7)
    assert (root / "test" / "0" / "000000.bmp").stat().st_mtime_ns == made
    dataset = load(compose_config(["data=cifar10_jpeg", f"data.root={root}", "data.train_samples=203"]).data)
    assert dataset.train_images.shape == (203, 3, 32, 32) and dataset.test_images.shape == (7, 3, 32, 32)
    assert set(dataset.train_labels.tolist()) == set(range(10))
    assert dataset.train_images.float().std() > 70, "noise: 256 levels, all as likely, deviate by 73.9"


def test_runs_what_is_missing(tmp_path: Path) -> None:
    """Rounds in turns, one launch for each number of processes, all with one split and batch; a failed run again."""
    launches: list[tuple[int, list[dict[str, str]]]] = []

    def start(runs: Sequence[Sequence[str]], processes: int, file: Path) -> None:
        launches.append((processes, [dict(each.split("=", 1) for each in run) for run in runs]))
        for run in launches[-1][1]:
            path = Path(run["run_dir"].strip('"'))
            path.mkdir(parents=True)
            if len(launches) == 3 and run.get("lanes") == "1":
                raise KeyboardInterrupt
            (path / "summary.json").write_text(json.dumps(summary(9.0, 2.0 if "lanes" in run else 1.0)))

    def made() -> Contest:
        options = ContestOptions(split=[3, 5], repeats=2, batches=4)
        return Contest(tmp_path / "study", options, ["batch_size=16", "model.width=0.07"], [A, B, ALONE])

    with pytest.raises(KeyboardInterrupt):
        made().run(start)
    assert [(processes, len(runs)) for processes, runs in launches] == [(2, 2), (1, 1), (2, 2)]
    assert [run.get("lanes") for run in launches[2][1]] == ["1", None], "the second round begins one further on"
    again = made()
    again.run(start)
    assert [(processes, len(runs)) for processes, runs in launches[3:]] == [(2, 2), (1, 1)]
    count = len(launches)
    again.run(start)
    assert len(launches) == count, "all are done"
    (again.path(A, 0) / "summary.json").unlink()
    again.run(start)
    assert [(processes, len(runs)) for processes, runs in launches[count:]] == [(2, 2), (1, 1)], "a round is a whole"
    runs = [(processes, run) for processes, of in launches for run in of]
    assert {(processes, run["partition"]) for processes, run in runs} == {(2, "[3,5]"), (1, "counted")}
    for key, value in (("threads", "1"), ("data.train_samples", "64"), ("epochs", "2")):
        assert {run[key] for _, run in runs} == {value}
    assert again.speeds(A) == [100.0, 100.0] and again.speeds(B) == [50.0, 50.0]
    file = again.write("table", "Title", ["name", "a/b", "x=1"], "| |\n")
    assert file.name == "table.md" and "python -m fgpipe.study name FOLDER x=1\n" in file.read_text()
    with pytest.raises(UserError, match="allowed: a new folder, or its study's arguments: .*batches=4"):
        Contest(tmp_path / "study", ContestOptions(split=[3, 5], batches=5), ["batch_size=16"], [A])


def test_measures_the_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "measured_split", lambda config, facts, processes: [1, 7])
    arguments = (tmp_path, ContestOptions(batches=2), ["batch_size=4", "model.width=0.07"], [A])
    assert Contest(*arguments).split == [1, 7]
    monkeypatch.setattr(contest, "measured_split", None)
    assert Contest(*arguments).split == [1, 7]


def test_windows_of_stages() -> None:
    """Warm-up of PipeDream's three stages, block by block."""
    assert stages([3, 1, 4]) == [3, 3, 3, 2, 1, 1, 1, 1]
    assert stages([3, 1, 4], 3) == [7, 7, 7, 4, 1, 1, 1, 1]


@pytest.mark.parametrize("processes, microbatches", [(2, 4), (3, 6), (5, 5), (8, 8)])
def test_contestants_can_be_run(processes: int, microbatches: int, tmp_path: Path) -> None:
    """None is refused, no two have the same folder, and all peers of the issue are there."""
    wanted = throughput.contestants(processes)
    options = ContestOptions(processes=processes, split=[1] * (processes - 1) + [9 - processes], batches=2)
    Contest(tmp_path, options, ["batch_size=120"], wanted)
    assert len({each.folder for each in wanted}) == len(wanted)
    schedules = {each for contestant in wanted for each in contestant.overrides if each.startswith("schedule=")}
    assert schedules == {f"schedule={each}" for each in ("gpipe", "1f1b", "zero_bubble", "async_1f1b")}
    found = {each for one in wanted for each in one.overrides if each.startswith("microbatches=")}
    assert found == {f"microbatches={microbatches}"}


def test_arguments() -> None:
    folder, options, rest = read(
        ["folder", "repeats=3", "model.width=0.25", "split=[2,6]", "out=docs"], ContestOptions()
    )
    assert (folder, rest) == (Path("folder"), ["model.width=0.25"])
    assert options == ContestOptions(repeats=3, split=[2, 6], out="docs")


@pytest.mark.parametrize(
    "arguments, expected", [
        ([], "no argument: allowed: FOLDER [key=value ...]"),
        (["repeats=1"], "repeats=1: allowed: FOLDER [key=value ...]"),
        (["{folder}", "repeats=0"], "repeats=0: allowed: a whole number of at least 1"),
        (["{folder}", "repeats=many"], "repeats=many: "),
        (["{folder}", "epochs=1"], "epochs=1: allowed: a whole number of at least 2"),
        (["{folder}", "processes=9"], "processes=9: allowed: 2 to model.blocks=8"),
        (["{folder}", "split=[8]"], "split=[8]: allowed: one number of blocks, at least 1, for each process (2)"),
        (["{folder}", "split=[4,5]"], "split=[4, 5]: allowed: numbers that add up to model.blocks=8"),
        (["{folder}", "widht=2"], "widht=2: no such key"),
        (["{folder}", "batch_size=6"], "batch_size=6: allowed: a multiple of the peers' 4 microbatches"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    assert main(["throughput", *(each.format(folder=folder) for each in arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
    assert not folder.exists()


def test_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, and exit code 1."""
    monkeypatch.setattr(sys, "executable", "false")
    arguments = ["split=[4,4]", "batches=2", "batch_size=8", "model.width=0.07"]
    assert main(["throughput", str(tmp_path), *arguments]) == 1
    message = capfd.readouterr().err
    assert message.startswith("fgpipe: a run has failed") and message.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_throughput(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole study of a tiny net: a row of positive figures for everybody, on one split; a second call runs nothing."""
    small = ["model.width=0.07", "batch_size=16", "batches=3", "repeats=1", "head=linear", f"out={tmp_path / 'out'}"]
    assert main(["throughput", str(tmp_path / "study"), *small]) == 0
    text = (tmp_path / "out" / "throughput-2-0.07.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [each.name for each in throughput.contestants(2)]
    by_name = {row[0]: row for row in rows}
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in rows) and by_name["1F1B"][3] == "1.00"
    split = json.loads((tmp_path / "study" / "split.json").read_text())
    for each in throughput.contestants(2):
        figures = json.loads((tmp_path / "study" / "0" / each.folder / "summary.json").read_text())
        assert figures["blocks_per_process"] == (split if each.processes is None else [8])
        assert figures["threads_per_process"] == (2 if each.name.endswith("2 threads") else 1)
        assert [epoch["train"]["7"]["samples"] for epoch in figures["epochs"]] == [48, 48]
        one = 48 / figures["epochs"][1]["train_seconds"]
        assert float(by_name[each.name][1]) == pytest.approx(one, abs=0.06)
    capfd.readouterr()
    assert main(["throughput", str(tmp_path / "study"), *small]) == 0
    assert capfd.readouterr().err == ""
