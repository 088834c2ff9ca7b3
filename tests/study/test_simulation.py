"""`python -m fgpipe.simulate`, from calibration to table, and the study that sets its predictions beside runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fgpipe.study import __main__
from fgpipe.study.contests import simulation
from fgpipe.study.simulator.calibration import METHODS, Calibration
from fgpipe.study.simulator.command import main
from fgpipe.study.simulator.nets import Setting
from fgpipe.wire.slow import SlowLinks

ARGUMENTS = ["model.width=0.07", "batch_size=16"]
NO_LINKS = SlowLinks(None, 0.0, (0, 0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A calibration of which forward passes take 10 ms, and everything else that a block does nothing."""
    costs = [{"forward": 0.010} for _ in range(8)]
    piece = [{"forward": 0.001, "backward": 0.002, "update": 0.0} for _ in range(8)]
    pieces = [(4, [{kind: 2 * of for kind, of in block.items()} for block in piece]), (2, piece)]
    made = Calibration(
        ARGUMENTS, "a machine", "abc", 2, dict.fromkeys(METHODS, costs), pieces, piece, piece, 1.0, 0.0, 0.0, 0.0, 0.0
    )
    path = tmp_path / "calibration.json"
    made.save(path)
    return path


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line of a table, by the first one."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


def test_pieces(file: Path) -> None:
    """On the line through two sizes; below them no less than a sample's share."""
    made = Calibration.load(file, ARGUMENTS)
    assert [made.of_piece(n)[0]["forward"] for n in (1, 2, 3, 4, 8)] == pytest.approx(
        [0.0005, 0.001, 0.0015, 0.002, 0.004]
    )


def test_pieces_of_several_sizes(file: Path) -> None:
    """Between two sizes on their own line, above all of them on that of the largest two."""
    made = Calibration.load(file, ARGUMENTS)
    made = replace(
        made, pieces=[(8, [{"forward": 0.007}]), *((n, [{"forward": piece[0]["forward"]}]) for n, piece in made.pieces)]
    )
    assert [made.of_piece(n)[0]["forward"] for n in (2, 3, 4, 6, 8, 12)] == pytest.approx(
        [0.001, 0.0015, 0.002, 0.0045, 0.007, 0.012]
    )


def test_median_of_calibrations(file: Path) -> None:
    """Of every number by itself; a machine that seems to get faster with work has no contention."""
    made = Calibration.load(file, ARGUMENTS)
    found = [
        replace(
            made,
            costs={"it": [{"forward": of}]},
            late=[{"forward": 5 * of}],
            kept=[{"backward": 2 * of}],
            pieces=[(4, [{"loss": 3 * of}])],
            contention=of,
        )
        for of in (0.5, 4.0, 0.75)
    ]
    middle = Calibration.median(found)
    assert (middle.costs, middle.late, middle.kept, middle.pieces) == (
        {"it": [{"forward": 0.75}]},
        [{"forward": 3.75}],
        [{"backward": 1.5}],
        [(4, [{"loss": 2.25}])],
    )
    assert middle.contention == 0.75 and middle.on(2).contention == 1.0 and middle.arguments == ARGUMENTS


def test_which_blocks(file: Path) -> None:
    """Stages as many as were measured are the measured blocks, unless equal ones are asked for."""
    made = Calibration.load(file, ARGUMENTS)
    costs = [{"forward": 0.001 * (1 + j)} for j in range(8)]
    made.costs.update(dict.fromkeys(METHODS, costs))
    assert Setting(made, 8, 2).nets(NO_LINKS)["local target"].costs == costs
    for stages in (8, 9):
        net = Setting(made, stages, 2, equal=True).nets(NO_LINKS)["local target"]
        assert [block["forward"] for block in net.costs] == pytest.approx([0.0045] * stages)
        assert len(set(net.activations)) == 1


def test_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16 images in 10 ms; backpropagation in 8 microbatches of 2; what it simulates comes first."""
    assert main([f"calibration={file}", *ARGUMENTS]) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("Simulated: the 8 measured blocks, in 8 processes on as many cores; ") and "commit abc" in text
    )
    assert "Error unknown" in text
    found = rows(text)
    assert list(found) == ["", *METHODS, "async 1F1B", "GPipe", "1F1B"]
    for name in METHODS:
        assert float(found[name][0]) == pytest.approx(1600)
    assert [found[name][4] for name in METHODS] == ["0", "7", "7"], "staleness"
    below = 8 * (9 + 6 + 9 + 6 + 9 + 6 + 9)  # scalars of 8 bytes for the tensors of blocks 0 to 6
    assert [found[name][6] for name in METHODS] == ["0", f"{below}", f"{below}"], "across the last boundary"
    piece = 16 / (0.003 * (8 + 7))
    assert float(found["1F1B"][0]) == pytest.approx(piece, abs=0.1)

    assert main([f"calibration={file}", *ARGUMENTS, "stages=12", "link.rtt=100ms", "window=4"]) == 0
    text = capsys.readouterr().out
    assert "12 equal blocks" in text
    found = rows(text)
    assert list(found) == ["", *METHODS, "async 1F1B"], "messages of GPipe and 1F1B are not modelled over a round trip"
    assert float(found["local target"][0]) == pytest.approx(1600)
    assert float(found["global target, local guess"][0]) == pytest.approx(4 * 16 / (0.12 + 11 * 0.05 + 0.05), abs=0.1)

    assert main([f"calibration={file}", *ARGUMENTS, "processes=4", "cores=1"]) == 0
    assert float(rows(capsys.readouterr().out)["local target"][0]) == pytest.approx(200)


@pytest.mark.parametrize(
    "argument, expected", [
        ("stages=0", "stages=0: allowed: 1 to 256"),
        ("stages=many", "stages=many: "),
        ("processes=9", "processes=9: allowed: 1 to stages=8"),
        ("cores=0", "cores=0: allowed: a whole number of at least 1"),
        ("window=[1,2]", "window=[1, 2]: allowed: one number for each block (stages=8)"),
        ("link.rate=fast", "link.rate=fast: allowed: a rate above 0"),
        ("lnk.rate=1Gbit", "lnk.rate=1Gbit: no such key; did you mean link.rate"),
        ("batch_size=32", "calibration={file}: allowed: a new file, or the arguments that it was made with: model.width"),
        ("calibration=no/file", "calibration=no/file: allowed: a file in a folder that exists"),
        ("calibration={folder}", "calibration={folder}: allowed: a file that `python -m fgpipe.study simulation`"),
        ("stages=12 lanes=exact", "lanes=exact: allowed: a number with stages=12, as lanes add up along the net"),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"file": file, "folder": file.parent}
    assert main([f"calibration={file}", *ARGUMENTS, *argument.format(**names).split()]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected.format(**names)}") and message.count("\n") == 1


def test_a_batch_that_cannot_be_divided(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.width=0.07", "batch_size=6", "head=linear"]) == 2
    assert capsys.readouterr().err.startswith("fgpipe: batch_size=6: allowed: a multiple of 4 or more microbatches")


def test_study(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that takes twice as long as simulated is an error of +100 %; both numbers of processes, and a slow link."""

    def start(runs: Sequence[Sequence[str]], processes: int, where: Path) -> None:
        for run in runs:
            path = Path(next(each for each in run if each.startswith("run_dir=")).split("=")[1].strip('"'))
            path.mkdir(parents=True)
            scores = {
                "train_seconds": 0.24,
                "train": {"7": {"samples": 32}},
            }
            config = {"model": {"width": 0.07}, "batch_size": 16}
            summary = {
                "epochs": [scores, scores],
                "machine": "m",
                "commit": "c",
                "config": config,
                "test_accuracy": 0.1,
            }
            (path / "summary.json").write_text(json.dumps(summary))

    run_round = simulation.Contest.run_round
    monkeypatch.setattr(simulation.Contest, "run_round", lambda self, round: run_round(self, round, start))
    monkeypatch.setattr(
        "fgpipe.study.contests.contest.measured_split", lambda config, facts, processes: [8 // processes] * processes
    )
    monkeypatch.setattr(simulation, "scaling", lambda made, of=simulation.scaling: of(made, (1, 8)))
    study = tmp_path / "study"
    study.mkdir()
    (study / "calibration-0.json").write_text(file.read_text())
    assert (
        __main__.main(
            [
                "simulation",
                str(study),
                "most=4",
                "batches=2",
                "epochs=2",
                "repeats=1",
                *ARGUMENTS,
                f"out={tmp_path / 'out'}",
            ]
        )
        == 0
    )
    text = (tmp_path / "out" / "simulation.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    validated = [line for line in lines if line[-1].endswith("%")]
    assert [line[0] for line in validated] == ["2"] * 10 + ["4"] * 6
    assert {line[1] for line in validated[6:10]} == {f"{name}, slow link" for name in [*METHODS, "async 1F1B"]}
    local = validated[0]
    assert float(local[4]) == pytest.approx(2 * 16 / 0.12, abs=0.1), "two batches of 40 ms, once more to fill"
    assert local[5] == "+100%"
    assert text.count("simulated") > 4 and "### wide area, 100 Mbit/s, 50 ms, simulated" in text
    heads = [line for line in text.splitlines() if line.startswith("| stages |")]
    assert [" | 1F1B" in head for head in heads] == [True, False, False]
    capsys.readouterr()
    assert main([f"calibration={study / 'calibration.json'}", *ARGUMENTS]) == 0
    within = sum(abs(float(line[-1].strip("+%"))) <= 15 for line in validated)
    assert "Error of 16 predictions of runs on that machine: " in (said := capsys.readouterr().out)
    assert f", {within} within 15%." in said


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_measures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real calibration of a tiny net, in two processes at most, kept, and used again as it is."""
    path = tmp_path / "calibration.json"
    small = ["model.width=0.07", "batch_size=8", "head=linear", f"calibration={path}"]
    assert main(["processes=2", *small]) == 0
    made = json.loads(path.read_text())
    assert all(len(blocks) == 8 and all(block["forward"] > 0 for block in blocks) for blocks in made["costs"].values())
    assert {"guess", "push", "update"} <= set(made["costs"]["global target, local guess"][3])
    assert "guess" not in made["costs"]["local target"][3] and "read" in made["costs"]["global target, local guess"][7]
    assert min(made[name] for name in ("contention", "copy", "receive", "scalars")) > 0
    assert Calibration.load(path, small[:3]).on(2).contention >= 1, "also if other work made the machine seem faster"
    first = rows(capfd.readouterr().out)
    assert all(float(first[name][0]) > 0 for name in [*METHODS, "GPipe", "1F1B"])
    assert main(["processes=2", *small]) == 0
    assert rows(capfd.readouterr().out) == first
    assert Setting(Calibration.load(path, small[:3]), 8, 2).split() in [[n, 8 - n] for n in range(1, 8)]
