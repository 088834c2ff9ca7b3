"""Output that cannot be written: one line, before the work where that can be known; after it no result is lost."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fgpipe.doctor
import fgpipe.export
import fgpipe.study.__main__
import fgpipe.train
from fgpipe.config import compose_config
from fgpipe.errors import OutputError, UserError
from fgpipe.observe.metrics import Score
from fgpipe.observe.record import RunFolder
from fgpipe.observe.timeline import Event
from fgpipe.observe.trace import write as write_trace
from fgpipe.saving import durable
from fgpipe.study.bench import command as bench
from fgpipe.study.bench.table import BenchRow
from fgpipe.study.card import report
from fgpipe.study.common.arguments import claim
from fgpipe.study.paper import grid
from fgpipe.study.simulator import command as simulate
from fgpipe.study.simulator.calibration import METHODS, Calibration
from fgpipe.trainers.session import run
from tests.integration.launching import ROOT, fork
from tests.study.results import key, write_run

SMALL = [
    "epochs=2", "data.train_samples=64", "batch_size=16", "data.test_samples=16", "model.width=0.07", "device=cpu",
    "threads=1", "scope=block",
]  # fmt: skip
SAVING = [*SMALL, "resume=auto", "checkpoint.every_steps=4"]
FULL = "No space left on device"
LONG = "x" * 300

Main = Callable[[list[str]], int]


def full_for(what: Callable[[Path], bool], patch: pytest.MonkeyPatch) -> None:
    """Have no room for some files."""
    write = durable.write

    def fill(path: Path, content: bytes) -> None:
        if what(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    patch.setattr(durable, "write", fill)


def in_one_line(main: Main, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Text printed on stdout."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "warning" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"fgpipe: {expected}"), captured.err
    return captured.out


FOLDERS = {
    "a file system that takes none": ("/proc/run", "No such file or directory"),
    "below a device": ("/dev/null/run", "Not a directory"),
    "a name that is too long": (LONG, "File name too long"),
    "the same, further down": (f"a/b/{LONG}", "File name too long"),
}


@pytest.mark.parametrize("resume", [[], ["resume=auto"]], ids=["new", "auto"])
@pytest.mark.parametrize("folder, reason", FOLDERS.values(), ids=FOLDERS.keys())
def test_run_folder(folder: str, reason: str, resume: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    """Before training, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    expected = f"run_dir={folder}: allowed: a folder to write in: {reason}"
    assert in_one_line(fgpipe.train.main, [f"run_dir={folder}", *SMALL, *resume], 2, expected, capsys) == ""
    assert not list(tmp_path.iterdir())


def test_current_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where `runs` cannot be made."""
    monkeypatch.chdir("/proc")
    assert in_one_line(fgpipe.train.main, SMALL, 2, "run_dir=runs/", capsys) == ""


def test_file_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        for more in ([], ["resume=auto"]):
            in_one_line(
                fgpipe.train.main, [f"run_dir={folder}", *SMALL, *more], 2, f"run_dir={folder}: allowed: ", capsys
            )
    in_one_line(
        fgpipe.train.main, [f"run_dir={tmp_path / 'run'}", *SMALL, f"resume={LONG}"], 2, f"resume={LONG}: ", capsys
    )
    assert (tmp_path / "file").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "cosine.jsonl", "summary.json"])
def test_folder_in_place_of_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unfinished run's folder."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    in_one_line(
        fgpipe.train.main, [f"run_dir={tmp_path}", *SAVING], 2, f"run_dir={tmp_path}: allowed: a folder ", capsys
    )


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_full_before_training(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Files that an unfinished run has written are still there."""
    (tmp_path / "config.yaml").write_text("old")
    (tmp_path / "metrics.jsonl").write_text("old")
    full_for(lambda path: path.name == name, monkeypatch)
    expected = f"run_dir={tmp_path}: allowed: a folder to write in: {FULL}"
    assert in_one_line(fgpipe.train.main, [f"run_dir={tmp_path}", *SAVING], 2, expected, capsys) == ""
    assert (tmp_path / "metrics.jsonl").read_text() == "old"


@pytest.mark.parametrize("processes", [1, 2])
def test_several_processes(processes: int, tmp_path: Path) -> None:
    done = fork(processes, "-m", "fgpipe.train", "run_dir=/dev/null/run", *SMALL, cwd=tmp_path)
    assert done.stderr == "fgpipe: run_dir=/dev/null/run: allowed: a folder to write in: Not a directory\n"
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())


AFTER = {
    "summary.json": (["observe.tensorboard=false"], "summary.json"),
    "trace.json": (["trace=true"], "trace.json"),
    "the last checkpoint": (["checkpoint.every_steps=1000"], "checkpoints/step-8/block-0.safetensors"),
}


@pytest.mark.parametrize("more, name", AFTER.values(), ids=AFTER.keys())
def test_full_after_training(more: list[str], name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Table and accuracy are printed, everything else is written, no verdict says otherwise; then one line and code 1."""
    run_dir = tmp_path / "run"
    full_for(lambda path: path == run_dir / name, monkeypatch)
    printed = in_one_line(
        fgpipe.train.main,
        [f"run_dir={run_dir}", *SMALL, *more],
        1,
        f"{run_dir / name} cannot be written: {FULL}",
        capsys,
    )
    assert "block   train loss" in printed and "test accuracy" in printed.splitlines()[-1]
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2
    left = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json"} - {name} <= left
    assert not (run_dir / name).exists() and not (run_dir / "verdict.json").exists()


def test_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` raises when all is printed and the folder is free again; the same command then finishes the run."""
    with monkeypatch.context() as patch:
        full_for(lambda path: path.name == "summary.json", patch)
        with pytest.raises(OutputError, match=r"summary\.json cannot be written: No space left on device$"):
            run(compose_config([f"run_dir={tmp_path / 'run'}", *SAVING]))
    assert run(compose_config([f"run_dir={tmp_path / 'run'}", *SAVING]))["resumed_at_step"] == 8


SCORES = {phase: {0: Score(1.0, 0.5, 10), 7: Score(2.0, 0.25, 10)} for phase in ("train", "test")}


@pytest.mark.parametrize("pattern", ["metrics.jsonl", "cosine.jsonl", "*tfevents*"])
def test_full_while_training(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once; when there is room again, nothing is missing."""
    folder = RunFolder(compose_config(["observe.tensorboard=true"]), tmp_path)
    folder.cosines(0, [0.5])
    folder.epoch(0, SCORES, 1.0)
    (file,) = tmp_path.glob(pattern)
    kept = file.rename(tmp_path / "kept")
    file.symlink_to("/dev/full")
    for epoch in (1, 2):
        folder.cosines(epoch, [0.5])
        folder.epoch(epoch, SCORES, 1.0)
    assert capsys.readouterr().err == f"fgpipe: warning: {file} cannot be written: {FULL}; training goes on\n"
    assert folder.summary({}) == [f"{file} cannot be written: {FULL}"]
    file.unlink()
    kept.rename(file)
    folder.cosines(3, [0.5])
    folder.epoch(3, SCORES, 1.0)
    assert folder.summary({}) == [] and capsys.readouterr().err == ""
    for name, which in (("metrics.jsonl", "epoch"), ("cosine.jsonl", "step")):
        assert [json.loads(line)[which] for line in (tmp_path / name).read_text().splitlines()] == [0, 1, 2, 3]
    assert scalars(tmp_path)["loss/train/block7"] == [(epoch, 2.0) for epoch in range(4)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_events(tmp_path: Path) -> None:
    """Every score; a run that goes on from its second epoch replaces what came later."""
    config = compose_config(["observe.tensorboard=true"])
    first = RunFolder(config, tmp_path)
    for epoch in range(3):
        first.epoch(epoch, SCORES, 1.0)
    again = RunFolder(config, tmp_path, first.epochs[:1])
    assert len(list(tmp_path.glob("*tfevents*"))) == 2, "a file of its own"
    again.epoch(1, {"train": {0: Score(3.0, 0.75, 10)}}, 1.0)
    found = scalars(tmp_path)
    assert sorted(found) == [
        f"{what}/{phase}/block{block}"
        for what in ("accuracy", "loss")
        for phase in ("test", "train")
        for block in (0, 7)
    ]
    assert found["loss/train/block0"] == [(0, 1.0), (1, 3.0)] and found["accuracy/train/block0"] == [
        (0, 0.5),
        (1, 0.75),
    ]


def test_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills within a line: half of it does not stay."""
    folder = RunFolder(compose_config(["observe.tensorboard=false"]), tmp_path)
    folder.cosines(0, [0.5])
    whole = (tmp_path / "cosine.jsonl").read_bytes()
    opening, left = Path.open, [5]

    class Filling:
        """A disk with room for a few bytes."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str):
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, FULL)
            room, left[0] = left[0], 0
            return self.file.write(content[:room])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *rest, **more: Filling(opening(path, *rest, **more)))
        folder.cosines(1, [0.5])
    assert (tmp_path / "cosine.jsonl").read_bytes() == whole
    folder.cosines(2, [0.5])
    assert [json.loads(line)["step"] for line in (tmp_path / "cosine.jsonl").read_text().splitlines()] == [0, 1, 2]


FULL_DISK = str(ROOT / "tests" / "integration" / "full_disk.py")


@pytest.mark.slow
@pytest.mark.parametrize("step, when", [(4, "in mid-training"), (8, "at the end")])
def test_checkpoint_of_one_of_two_processes(step: int, when: str, tmp_path: Path) -> None:
    """Rank 0 has no room, rank 1 reports. The one says so in one line; the results are lost in mid-training alone."""
    run_dir = tmp_path / "run"
    block = f"step-{step}/block-0.safetensors"
    done = fork(2, FULL_DISK, block, f"run_dir={run_dir}", "partition=[4,4]", *SAVING)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    line = f"{run_dir / 'checkpoints' / block} cannot be written: {FULL}"
    if when == "at the end":
        assert lines == [f"fgpipe: {line}"], done.stderr
        assert "test accuracy" in done.stdout and json.loads((run_dir / "summary.json").read_text())["epochs"]
        assert not (run_dir / "verdict.json").exists()
    else:
        assert lines[-1] == f"fgpipe: rank 0: {line}" and len(lines) == 2, done.stderr
        assert json.loads((run_dir / "verdict.json").read_text())["cause"] == line
        assert "test accuracy" not in done.stdout
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*/manifest.json")] == ["manifest.json"] * (
        step > 4
    )


BEFORE: dict[str, tuple[Main, list[str], str]] = {
    "grid": (grid.main, ["table=3", "profile=scaled", "out=/proc/grid"], "out=/proc/grid: allowed: a folder to write in: "),
    "grid in a file": (grid.main, ["table=3", "profile=scaled", "out=FILE/a"], "out=FILE/a: allowed: a folder to write in: "),
    "report": (report.main, ["RESULTS"], "FOLDER=RESULTS/report: allowed: a folder to write in: Not a directory"),
    "report of nowhere": (report.main, [LONG], f"{LONG}: allowed: one folder that exists"),
    "bench": (bench.main, ["quick=true", "out=/proc/speed.md"], "out=/proc/speed.md: allowed: a file that can be written: "),
    "bench, too long": (bench.main, ["quick=true", f"out={LONG}"], f"out={LONG}: allowed: a file that can be written: "),
    "bench below a file": (bench.main, ["out=FILE/a"], "out=FILE/a: allowed: a file in a folder that exists"),
    "bench, a folder": (bench.main, ["out=RESULTS"], "out=RESULTS: allowed: a file in a folder that exists"),
    "simulate": (simulate.main, ["calibration=/proc/a"], "calibration=/proc/a: allowed: a file that can be written: "),
    "export": (fgpipe.export.main, ["RESULTS", "/proc/a"], "FILE=/proc/a: allowed: a file that can be written: "),
    **{
        f"study {name}": (
            fgpipe.study.__main__.main, [name, "NEW", "out=/proc/out"], "out=/proc/out: allowed: a folder to write in: "
        )
        for name in (
            "lanes", "unlocking", "throughput", "memory", "straggler", "slowdown", "simulation", "staleness"
        )
    },
    **{
        f"study {name} in a device": (
            fgpipe.study.__main__.main, [name, "/dev/null/a"], "FOLDER=/dev/null/a: allowed: a folder to write in: "
        )
        for name in ("lanes", "unlocking", "throughput", "memory", "straggler", "slowdown", "staleness")
    },
    "study compiling": (
        fgpipe.study.__main__.main, ["compiling", "out=/proc/a"], "out=/proc/a: allowed: a file that can be written: "
    ),
    "study timeline": (
        fgpipe.study.__main__.main, ["timeline", "TRACE", "/proc/a.png"], "PICTURE=/proc/a.png: allowed: a file that can "
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BEFORE.values(), ids=BEFORE.keys())
def test_other_commands(case, tmp_path: Path, monkeypatch, capsys) -> None:
    """Before anything is measured."""
    main, arguments, expected = case
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    write_run(Path("RESULTS"), key("local", "mlp", "weight"), 70)
    Path("RESULTS/report").touch()
    write_trace(Path("TRACE"), {0: [Event("forward", 0, batch, -1, 0, 1) for batch in range(9)]}, {0: "block 0"}, {})
    before = sorted(tmp_path.rglob("*"))
    in_one_line(main, arguments, 2, expected, capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder that cannot be is a finding, not an end."""
    for folder, reason in FOLDERS.values():
        found = fgpipe.doctor.run_folder(Path(folder))
        assert found.status == fgpipe.doctor.FAILED and reason in found.what and "another run_dir=" in found.what


def test_report_after_all(tmp_path: Path, monkeypatch, capsys) -> None:
    """The figures are printed, the page is not written."""
    write_run(tmp_path, key("local", "mlp", "weight"), 70)
    full_for(lambda path: path.name == "index.html", monkeypatch)
    page = tmp_path / "report" / "index.html"
    printed = in_one_line(report.main, [str(tmp_path)], 1, f"{page} cannot be written: {FULL}", capsys)
    assert printed.startswith("1 runs, 1 of 462 published cells\n") and "Local guesses beat" in printed


def test_bench_after_all(tmp_path: Path, monkeypatch, capsys) -> None:
    """The table is printed, and the file has what it had."""
    out = tmp_path / "speed.md"
    out.write_text("What is measured how.\n")
    monkeypatch.setitem(bench.SECTIONS, "tangents", lambda sizes: [BenchRow("tangents", "it", [1.0])])
    full_for(lambda path: path == out, monkeypatch)
    monkeypatch.setattr("builtins.print", progress_apart(print))
    printed = in_one_line(bench.main, ["only=tangents", f"out={out}"], 1, f"{out} cannot be written: {FULL}", capsys)
    assert "| tangents | it |" in printed and out.read_text() == "What is measured how.\n"


def progress_apart(show: Callable[..., None]) -> Callable[..., None]:
    """Printing, without the lines that say what is measured now."""
    return lambda *what, **how: None if str(what[0]).startswith("measuring") else show(*what, **how)


def test_simulate_after_all(tmp_path: Path, monkeypatch, capsys) -> None:
    """Measurements of minutes are lost, simulations are not."""
    costs, file = [{"forward": 0.01} for _ in range(8)], tmp_path / "calibration.json"
    pieces = [(4, costs), (2, costs)]
    made = Calibration(
        [], "a machine", "abc", 2, dict.fromkeys(METHODS, costs), pieces, costs, costs, 1.0, 0.0, 0.0, 0.0, 0.0
    )
    monkeypatch.setattr(Calibration, "measure", lambda arguments, folder: made)
    full_for(lambda path: path == file, monkeypatch)
    printed = in_one_line(simulate.main, [f"calibration={file}"], 1, f"{file} cannot be written: {FULL}", capsys)
    assert "| local target |" in printed
    monkeypatch.undo()
    monkeypatch.setattr(Calibration, "measure", lambda arguments, folder: made)
    assert simulate.main([f"calibration={file}"]) == 0 and Calibration.load(file, []).costs == made.costs


def test_export_after_all(tmp_path: Path, monkeypatch, capsys) -> None:
    run(compose_config([f"run_dir={tmp_path / 'run'}", *SAVING]))
    capsys.readouterr()
    file = tmp_path / "net.safetensors"
    full_for(lambda path: path == file, monkeypatch)
    in_one_line(fgpipe.export.main, [str(tmp_path / "run"), str(file)], 1, f"{file} cannot be written: {FULL}", capsys)


def test_note_that_was_cut_off(tmp_path: Path) -> None:
    """A study's folder on a file system without hard links, left by a call that was killed as it claimed it."""
    (tmp_path / "arguments.json").touch()
    with pytest.raises(UserError, match=r"arguments\.json: no list of arguments: allowed: none, if no study is in"):
        claim(tmp_path, [])
