"""The shell of all commands: an interrupt, a reader that goes away, a full disk; one line, and what was begun is done."""

import builtins
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fgpipe.command import command
from fgpipe.errors import OutputError, UserError
from tests.integration.launching import ROOT, Job, environment, wait_until

MAINS = {
    "train": "fgpipe.train",
    "export": "fgpipe.export",
    "show": "fgpipe.show",
    "doctor": "fgpipe.doctor",
    "grid": "fgpipe.study.paper.grid",
    "report": "fgpipe.study.card.report",
    "bench": "fgpipe.study.bench.command",
    "simulate": "fgpipe.study.simulator.command",
    "advise": "fgpipe.study.race.advise",
    "study": "fgpipe.study.__main__",
    "status": "fgpipe.status",
    "store": "fgpipe.store",
}
"""Module of each command's `main`."""


@pytest.fixture(params=MAINS.values(), ids=list(MAINS))
def main(request: pytest.FixtureRequest) -> Callable[[list[str]], int]:
    return import_module(request.param).main


def once(raised: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Have the first print fail."""
    show, left = builtins.print, [raised]

    def fail(*what: Any, **how: Any) -> None:
        if left:
            raise left.pop()
        show(*what, **how)

    patch.setattr(builtins, "print", fail)


ENDS = {
    "an interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "an interrupt with a hint": (KeyboardInterrupt("do it again"), 130, "interrupted; do it again"),
    "bad input": (UserError("\nx=1: allowed:\n2"), 2, "x=1: allowed: 2"),
    "output": (OutputError("a cannot be written: b"), 1, "a cannot be written: b"),
    "a run": (subprocess.CalledProcessError(1, "it"), 1, "a run has failed, as said above"),
    "a package": (
        ModuleNotFoundError("No module named 'scipy'", name="scipy"), 2,
        "scipy is not installed: pip install 'fgpipe[report]'",
    ),
    "a full disk": (OSError(28, "No space left on device", "some/file"), 1, "some/file: No space left on device"),
}  # fmt: skip


@pytest.mark.parametrize("raised, code, line", ENDS.values(), ids=ENDS.keys())
def test_ends(raised, code: int, line: str, main, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command says it in one line."""
    once(raised, monkeypatch)
    assert main(["--help"]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"fgpipe: {line}") and err.count("\n") == 1


@pytest.mark.parametrize(
    "raised", [KeyError("a"), ModuleNotFoundError(name="fgpipe.nothing"), FileNotFoundError(2, "")]
)
def test_mistakes_of_ours(raised: Exception, main, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their traceback."""
    once(raised, monkeypatch)
    with pytest.raises(type(raised)):
        main(["--help"])


RANKS = {
    "rank 0": ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
    "first of another host": ({"RANK": "4", "LOCAL_RANK": "0"}, True, False),
    "started by another command": ({"FGPIPE_STARTED": "1"}, True, False),
}


@pytest.mark.parametrize("variables, bad_input, interrupt", RANKS.values(), ids=RANKS.keys())
def test_who_speaks(variables: dict[str, str], bad_input: bool, interrupt: bool, monkeypatch, capsys) -> None:
    """Bad input is said on each host, an interrupt once."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for raised, says in ((UserError("bad"), bad_input), (KeyboardInterrupt(), interrupt)):

        @command
        def main(arguments: list[str], raised: BaseException = raised) -> int:
            raise raised

        main([])
        assert bool(capsys.readouterr().err) == says


SLOW = {
    "importing": "print('begun', flush=True)\nimport time\ntime.sleep(60)",
    "working": """
import time
from fgpipe.command import command
@command
def main(arguments):
    try:
        print('begun', flush=True)
        time.sleep(60)
    finally:
        print('tidied up')
""",
    "leaving": """
import atexit, time
def main(arguments):
    atexit.register(lambda: (print('begun', flush=True), time.sleep(60)))
    return 0
""",
    "printing": """
from fgpipe.command import command
@command
def main(arguments):
    for number in range(100_000):
        print(number)
    open('done', 'w').close()
    return 3
""",
    "refused": """
from fgpipe.command import command
from fgpipe.errors import UserError
@command
def main(arguments):
    print('begun')
    raise UserError('bad')
""",
}
"""Commands that need no PyTorch."""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start one of `SLOW`, in `tmp_path`."""
    started = []

    def start(name: str, **options: Any) -> subprocess.Popen[str]:
        (tmp_path / f"{name}.py").write_text(SLOW[name])
        variables = environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        program = [sys.executable, "-c", f"from fgpipe.command import start; start('{name}')"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        started.append(subprocess.Popen(program, env=variables, cwd=tmp_path, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize("name", ["importing", "working", "leaving"])
def test_interrupt(name: str, begin) -> None:
    """In imports, in the work, which is left in good order, and on the way out."""
    process = begin(name)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err, out) == (130, "fgpipe: interrupted\n", "tidied up\n" if name == "working" else "")


def test_ignored_interrupt(begin) -> None:
    """A shell has its background commands ignore Ctrl-C."""
    process = begin("importing", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None


@pytest.mark.parametrize("lines", [0, 1])
def test_reader_goes_away(lines: int, tmp_path: Path, begin) -> None:
    """The command ends its work and has its exit code, without a word."""
    process = begin("printing")
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(20) == 3
    assert (tmp_path / "done").exists()


def test_reader_of_errors_goes_away(begin) -> None:
    process = begin("refused")
    process.stderr.close()
    assert process.stdout.read() == "begun\n" and process.wait(20) == 2


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams(closed: tuple[int, ...], tmp_path: Path, begin) -> None:
    """Nothing that is opened later gets their numbers, so that nothing is written into it."""
    SLOW["opening"] = (
        "import sys\ndef main(arguments):\n"
        "    with open('file', 'w') as file: numbers = file.fileno() > 2\n"
        "    print('a'); print('b', file=sys.stderr)\n    return 4 if numbers else 5"
    )

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    process = begin("opening", preexec_fn=close)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 4 and (tmp_path / "file").read_text() == ""
    assert (out, err) == ("" if 1 in closed else "a\n", "" if 2 in closed else "b\n")


def test_full_disk(tmp_path: Path, begin) -> None:
    """What is printed goes to a file: a line says that it is not whole, and the exit code that not all is well."""
    SLOW["fine"] = SLOW["printing"].replace("return 3", "return 0")
    for name, code in (("fine", 1), ("printing", 3)):
        with open("/dev/full", "w") as full:
            process = begin(name, stdout=full)
        assert process.stderr.read() == "fgpipe: stdout cannot be written: No space left on device\n"
        assert process.wait(20) == code and (tmp_path / "done").exists()


def test_terminal_goes_away(tmp_path: Path, begin) -> None:
    """As when a connection breaks: its writes fail with another error than those of a pipe."""
    ours, theirs = pty.openpty()
    process = begin(
        "printing", stdout=theirs, stderr=theirs, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    assert process.wait(20) == 3 and (tmp_path / "done").exists()


SMALL = [
    "batch_size=16", "data.train_samples=64", "data.test_samples=16", "model.width=0.07", "threads=1", "device=cpu",
    "observe.tensorboard=false", "scope=block",
]  # fmt: skip


@pytest.mark.parametrize("name", ["train", "doctor", "study"])
def test_help_for_nobody(name: str) -> None:
    """The real commands, and nobody who reads."""
    done = subprocess.run(
        f"({sys.executable} -m fgpipe.{name} --help; echo code $? >&2) | true",
        shell=True, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "code 0\n"


def test_another_python(tmp_path: Path) -> None:
    """One without the packages, as where nobody has activated the environment."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "fgpipe.train"],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"fgpipe: {sys.executable} has no ") and "activate the environment" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_training_for_a_reader_of_one_line(processes: int, tmp_path: Path) -> None:
    """Training goes on, and is saved; stderr is closed, which the progress bar would use."""
    run = tmp_path / "run"
    program = f"{sys.executable} -m " + (
        "torch.distributed.run --standalone --nproc_per_node=2 -m " if processes > 1 else ""
    )
    line = (
        f"({program}fgpipe.train run_dir={run} epochs=3 {' '.join(SMALL)} 2>&-; echo $? > {tmp_path}/code) | head -n 1"
    )
    done = subprocess.run(line, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("epoch 1/3: ") and done.stdout.count("\n") == 1 and not done.stderr
    assert (tmp_path / "code").read_text() == "0\n"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3 and (run / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_interrupted_training(processes: int, tmp_path: Path) -> None:
    """One line of ours; torchrun adds its own. The folder is free again, and the next command goes on."""
    saving = [*SMALL, "resume=auto", "checkpoint.every_steps=4", "window=auto"]
    with Job(tmp_path / "run", processes, *saving, "epochs=5000") as job:
        assert wait_until((job.run / "checkpoints" / "step-8" / "manifest.json").exists, 100), job.text
        job.process.send_signal(signal.SIGINT)
        code = job.process.wait(60)
        said = re.findall(r"fgpipe: interrupted; saved up to batch (\d+): run_dir=(.*) resume=auto goes on\n", job.text)
        assert [run for _, run in said] == [str(job.run)], job.text
        steps = [int(path.parent.name.partition("-")[2]) for path in job.run.glob("checkpoints/*/manifest.json")]
        assert int(said[0][0]) in steps
        assert "fgpipe/" not in job.text.replace(str(job.run), ""), job.text
        if processes == 1:
            assert code == 130 and job.text.endswith("goes on\n")
        assert not (job.run / "verdict.json").exists()
    with Job(job.run, 1, *saving, "epochs=5000") as again:
        assert wait_until((job.run / "checkpoints" / f"step-{max(steps) + 8}").is_dir, 100), again.text
        assert f"goes on from batch {max(steps)} of " in again.text


@pytest.mark.slow
def test_interrupted_study(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal: what a study has started ends without a line of its own."""
    out, command_line = tmp_path / "out", [sys.executable, "-m", "fgpipe.simulate", "model.width=0.07", "batch_size=16"]
    with out.open("w") as file:
        process = subprocess.Popen(
            command_line, stdout=file, stderr=file, cwd=ROOT, env=environment(), start_new_session=True
        )
    try:
        assert wait_until(lambda: "epoch 1/1" in out.read_text(), 100)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        text = out.read_text()
        assert text.endswith("\nfgpipe: interrupted\n") and text.count("fgpipe: interrupted") == 1, text
        assert "Traceback" not in text
    finally:
        process.kill()
        process.wait()


def test_every_command_starts_alike() -> None:
    """Each module that is run by `python -m` does nothing but `start`, before it imports what takes long."""
    found = []
    for path in (ROOT / "fgpipe").rglob("*.py"):
        _, begun, rest = path.read_text().partition('if __name__ == "__main__":\n')
        if begun:
            block = rest.partition("\n\n\n")[0].replace("    from fgpipe.command import start\n\n", "").strip()
            start = re.fullmatch(r"start\(\"([\w.]+)\"\)(\n\n(import|from) .*)?", block, re.DOTALL)
            assert start, path
            found.append(start[1])
    assert sorted(found) == sorted([*MAINS.values(), "fgpipe.study.common.series"])
