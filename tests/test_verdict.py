"""The verdict's parts: one writer, nothing half-written, and the command for each way to start a run."""

import errno
import json
import os
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

from fgpipe.saving import durable, verdict


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


def write(run: Path, cause: str = "because", resumed: str | None = None) -> bool:
    return verdict.write(run, cause, 1, [2, 3], reported_by=0, last_batch=17, resumed=resumed)


def test_first_writer_wins(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, TRAIN, ["train.py"])
    assert write(run, "the root\n  cause") and not write(run, "a consequence")
    found = json.loads((run / "verdict.json").read_text())
    resume = found.pop("resume")
    assert found == {
        "cause": "the root cause", "rank": 1, "blocks": [2, 3], "reported_by": 0, "last_batch": 17, "last_checkpoint": None,
        "note": None,
    }  # fmt: skip
    assert resume.endswith("resume=auto")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "verdict.json"]
    assert capsys.readouterr().err.count("says why") == 1


def test_one_of_many_creates(tmp_path: Path) -> None:
    """Sixteen at once: one succeeds, the file is its own and whole, and no temporary file is left."""
    start, created = threading.Barrier(16), []

    def create(index: int) -> None:
        start.wait()
        if durable.create(tmp_path / "file", bytes([index]) * 100_000):
            created.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert (tmp_path / "file").read_bytes() == bytes(created) * 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_without_a_run(tmp_path: Path) -> None:
    """A folder that holds a verdict alone could neither be resumed nor started in."""
    assert not write(tmp_path) and not list(tmp_path.iterdir())


def test_newest_complete_checkpoint(run: Path) -> None:
    for step, complete in ((9, True), (10, True), (11, False)):
        folder = run / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").touch()
    assert write(run)
    assert json.loads((run / "verdict.json").read_text())["last_checkpoint"] == str(run / "checkpoints" / "step-10")


def test_history(run: Path) -> None:
    verdict.retire(run)
    for cause in ("first", "second"):
        assert write(run, cause)
        verdict.retire(run)
    assert not (run / "verdict.json").exists()
    causes = [json.loads((run / f"verdict-{number}.json").read_text())["cause"] for number in (1, 2)]
    assert causes == ["first", "second"]


ONE_HOST = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "0"}
TWO_HOSTS = {
    "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3",
    "MASTER_ADDR": "node7",
}  # fmt: skip


@pytest.mark.parametrize(
    "environment, arguments, afresh, expected",
    [
        ({}, ["epochs=3"], False, "python -m fgpipe.train epochs=3 run_dir=runs/a resume=auto"),
        ({}, ["run_dir=b c", "resume=auto"], False, "python -m fgpipe.train 'run_dir=b c' resume=auto"),
        ({}, ["resume=other", "run_dir=b", "seed=1"], False, "python -m fgpipe.train run_dir=b seed=1 resume=auto"),
        ({}, ["resume=other", "run_dir=b", "seed=1"], True, "python -m fgpipe.train resume=other seed=1"),
        (ONE_HOST, [], False, "torchrun --standalone --nproc_per_node=4 -m fgpipe.train run_dir=runs/a resume=auto"),
        (
            TWO_HOSTS, [], False,
            ("torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=node7 --nproc_per_node=4 --max-restarts=3 "
             "-m fgpipe.train run_dir=runs/a resume=auto"),
        ),
    ],
)  # fmt: skip
def test_command(
    environment: dict[str, str], arguments: list[str], afresh: bool, expected: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    started(monkeypatch, TRAIN, ["/where/it/is/fgpipe/train.py", *arguments])
    line = verdict.resume_command(Path("runs/a"), verdict.sys.argv, environment, afresh=afresh)
    assert line == f"cd {tmp_path} && {expected}"


def test_a_program_of_keys_goes_on_like_the_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that calls `fgpipe.main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    main = SimpleNamespace(__spec__=None, __file__="/home/me/keyed.py")
    started(monkeypatch, main, ["keyed.py", "epochs=3", f"run_dir={run}"])
    verdict.takes_keys("keyed.py")
    assert write(run, resumed=None)
    found = json.loads((run / "verdict.json").read_text())
    assert found["resume"] == f"cd {tmp_path} && python keyed.py epochs=3 run_dir={run} resume=auto"
    assert found["note"] is None


def started(patch: pytest.MonkeyPatch, main: SimpleNamespace, argv: list[str]) -> None:
    """Have this process look like one that another program was started in."""
    patch.setitem(sys.modules, "__main__", main)
    patch.setattr(sys, "argv", argv)


TRAIN = SimpleNamespace(__spec__=ModuleSpec("fgpipe.train", None), __file__="/where/it/is/fgpipe/train.py")
SCRIPT = SimpleNamespace(__spec__=None, __file__="/home/me/script.py")
MODULE = SimpleNamespace(__spec__=ModuleSpec("mine.training", None), __file__="/home/me/mine/training.py")
FOLDER = SimpleNamespace(__spec__=ModuleSpec("__main__", None), __file__="/home/me/mine.zip/__main__.py")
STDIN = SimpleNamespace(__spec__=None, __file__="<stdin>")
NO_FILE = SimpleNamespace(__spec__=None)
MUST = "the program goes on with run_dir=RUN resume=auto, which must be set in it first"
NONE = "no command starts a program from standard input, -c or a prompt again; it goes on with run_dir=RUN resume=auto"
PROGRAMS = {
    "a script": (SCRIPT, ["script.py", "--lr", "a b", "resume=me"], None, "python script.py --lr 'a b' resume=me", MUST),
    "a script that resumes": (SCRIPT, ["script.py", "5"], "auto", "python script.py 5", None),
    "a module": (MODULE, ["/home/me/mine/training.py", "5"], None, "python -m mine.training 5", MUST),
    "a zip file": (FOLDER, ["mine.zip", "5"], None, "python mine.zip 5", MUST),
    "from another run": (
        SCRIPT, ["script.py"], "other", "python script.py",
        "the program goes on with another run_dir, or none, which must be set in it first",
    ),
    "standard input": (STDIN, [""], None, None, NONE),
    "standard input, named": (STDIN, ["-", "5"], "auto", None, NONE),
    "-c": (NO_FILE, ["-c", "5"], None, None, NONE),
    "a notebook": (NO_FILE, ["/usr/lib/ipykernel_launcher.py", "-f", "x.json"], None, None, NONE),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_other_programs(case, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of a program that calls `run` are its own: the command has them as they are, and a note says more."""
    main, argv, resumed, command, note = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    started(monkeypatch, main, argv)
    assert write(run, resumed=resumed)
    found = json.loads((run / "verdict.json").read_text())
    assert found["resume"] == (command and f"cd {tmp_path} && {command}")
    assert found["note"] == (note and note.replace("RUN", str(run)))


def test_no_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_dir=null` is no folder to go on in."""
    started(monkeypatch, TRAIN, ["train.py", "run_dir=null"])
    assert write(run)
    assert json.loads((run / "verdict.json").read_text())["resume"].endswith(f"fgpipe.train run_dir={run} resume=auto")


def test_history_with_a_gap(run: Path) -> None:
    """No verdict is written over, whichever of the older ones are gone."""
    for number in (2, 10):
        (run / f"verdict-{number}.json").write_text(str(number))
    (run / "verdict-old.json").write_text("not ours")
    assert write(run)
    verdict.retire(run)
    assert sorted(path.name for path in run.glob("verdict*")) == [
        "verdict-10.json", "verdict-11.json", "verdict-2.json", "verdict-old.json"
    ]  # fmt: skip
    assert json.loads((run / "verdict-11.json").read_text())["cause"] == "because"


def test_full_disk(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and whatever ended the run is still what ended it."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "create", full)
    assert not write(run)
    assert capsys.readouterr().err == f"fgpipe: {run / 'verdict.json'} cannot be written: No space left on device\n"
