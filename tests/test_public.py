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
    assert "guess.blend=much: Value 'much' of type 'str' could not be converted to Float" in done.stderr
    assert not (tmp_path / "run").exists()
