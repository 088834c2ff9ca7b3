"""The public face: what `import fgpipe` gives, at no cost, and a guess of one's own in a file of 40 lines."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fgpipe
from tests.integration.launching import ROOT, environment, fork, launch

EXAMPLE = ROOT / "docs" / "examples" / "own_guess.py"


def test_every_name_is_there() -> None:
    for name in fgpipe.__all__:
        assert callable(getattr(fgpipe, name)) and name in dir(fgpipe)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fgpipe.nothing  # noqa: B018


def test_names_are_no_modules() -> None:
    """A module of the name would take its place once anybody imports it."""
    for name in fgpipe.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"fgpipe.{name}")


def test_importing_imports_nothing() -> None:
    """Neither PyTorch nor Hydra, until a name is used."""
    program = "import sys, fgpipe; print('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], env=environment(), text=True).strip() == "False"


@pytest.mark.slow
def test_a_guess_of_ones_own(tmp_path: Path) -> None:
    """In two processes, with a key of its own, better than chance; its file is short."""
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    small = ["epochs=2", "model.width=0.1", "scope=block", "guess.blend=0.5", f"run_dir={tmp_path / 'run'}"]
    done = fork(2, str(EXAMPLE), *small, "observe.tensorboard=false", timeout=280)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["config"]["guess"] == {"name": "signs", "blend": 0.5} and summary["world_size"] == 2
    assert summary["test_accuracy"] > 0.2, "twice as good as chance"


def test_its_bad_input_is_one_line(tmp_path: Path) -> None:
    done = launch(1, str(EXAMPLE), "guess.blend=much", f"run_dir={tmp_path / 'run'}")
    assert done.stderr == "fgpipe: guess.blend=much: Value 'much' of type 'str' could not be converted to Float\n"
    assert done.returncode == 2 and not (tmp_path / "run").exists()


OWN_NET = """
import fgpipe
from torch import nn
blocks = [nn.Sequential(nn.Flatten(), nn.Linear(256, 8)), nn.Linear(8, 8)]
fgpipe.main(["epochs=1"], fgpipe.Net(blocks, [fgpipe.Head(nn.Linear(8, 10)) for _ in blocks]))
"""


def test_what_a_program_prints_is_kept(tmp_path: Path) -> None:
    """In order, in a pipe, and in a stream that it has put in stdout's place; a finished run is no error."""
    teed = """
import sys
class Tee:
    def __init__(self, *streams): self.streams = streams
    def write(self, text): return [each.write(text) for each in self.streams][0]
    def flush(self): [each.flush() for each in self.streams]
sys.stdout = Tee(sys.stdout, open("log", "w"))
"""
    keys = ["resume=auto", f"run_dir={tmp_path / 'run'}", "data.test_samples=50", "observe.tensorboard=false"]
    for first, said in (("", "test accuracy"), (teed, "is finished: test accuracy")):
        program = tmp_path / "program.py"
        program.write_text(
            OWN_NET.replace("fgpipe.main", f'{first}\nprint("before")\nfgpipe.main').replace("64", "128")
        )
        done = subprocess.run(
            [sys.executable, str(program), *keys], env={**environment(), "PYTHONUNBUFFERED": ""}, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("before\n") and said in done.stdout
    assert said in (tmp_path / "log").read_text()


ELASTIC = "target=local replay.size=8 checkpoint.every_steps=20 elastic.store=localhost:29400"


@pytest.mark.parametrize(
    "arguments, code, out, error",
    [
        ("--help", 0, "usage: [torchrun", ""),
        ("--cfg", 0, "\nepochs: 1\n", ""),
        ("epochs=0", 2, "", "fgpipe: epochs=0: allowed: a whole number of at least 1\n"),
        ("model.width=2", 2, "", "fgpipe: model.width=2: allowed: nothing, with a net of your own\n"),
        (f"{ELASTIC} elastic.block=0", 2, "", "fgpipe: elastic.block=0: allowed: null with a net of your own\n"),
    ],
)
def test_a_program_ends_as_the_command_does(arguments: str, code: int, out: str, error: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(OWN_NET)
    done = launch(1, str(program), *arguments.split(), f"run_dir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (code, error) and out in done.stdout
    assert not (tmp_path / "run").exists()
