"""An error's message in a line of ours: never more than one line, and never nothing."""

import errno
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fgpipe.config import compose_config
from fgpipe.config.arguments import own_keys
from fgpipe.errors import UserError, one_line, reason, typed_line
from fgpipe.gradients.optim import Trained
from fgpipe.saving.checkpoint import CheckpointError, Checkpoints, Manifest, read_block
from fgpipe.study.common.arguments import StudyOptions
from fgpipe.study.paper.options import parse_options
from fgpipe.study.paper.profile import Profile
from fgpipe.trainers.session import run
from fgpipe.trainers.stage import Stage

MESSAGES = {
    "plain": ("it broke", "it broke"),
    "begins with a new line": ("\nit broke\n   here  and\r\n\tthere\n", "it broke here  and there"),
    "empty": ("", "ValueError"),
    "blank": (" \n ", "ValueError"),
}


@pytest.mark.parametrize("message, line", MESSAGES.values(), ids=MESSAGES.keys())
def test_one_line(message: str, line: str) -> None:
    assert one_line(ValueError(message)) == line
    assert typed_line(ValueError(message)) == (line if line == "ValueError" else f"ValueError: {line}")


def test_reason() -> None:
    assert reason(OSError(errno.ENOSPC, "No space left on device", "file")) == "No space left on device"
    assert reason(OSError("raw write() returned invalid length")) == "raw write() returned invalid length"
    assert reason(BrokenPipeError()) == "BrokenPipeError"


@pytest.mark.parametrize("message, line", MESSAGES.values(), ids=MESSAGES.keys())
def test_what_ends_a_run(
    message: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line on stderr and the cause in the verdict."""

    def fail(*arguments: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(Stage, "run", fail)
    small = ["epochs=1", "data.train_samples=16", "batch_size=16", "data.test_samples=16", "model.width=0.07"]
    with pytest.raises(ValueError):
        run(compose_config([f"run_dir={tmp_path / 'run'}", *small, "observe.tensorboard=false", "device=cpu"]))
    cause = line if line == "ValueError" else f"ValueError: {line}"
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        f"[blocks 0-7] error: {cause}", f"fgpipe: {tmp_path / 'run' / 'verdict.json'} says why, and how to go on"
    ]  # fmt: skip
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["cause"] == " ".join(cause.split())


@pytest.mark.parametrize("message, line", MESSAGES.values(), ids=MESSAGES.keys())
def test_checkpoint(message: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest, and a block's files, that cannot be read."""

    def fail(*arguments: object) -> None:
        raise ValueError(message)

    monkeypatch.setattr(Manifest, "parse", fail)
    folder = Checkpoints(tmp_path).folder(1)
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).manifest(1)
    assert str(error.value) == f"{folder / 'manifest.json'} is damaged: {line}"
    monkeypatch.setattr("safetensors.torch.load", fail)
    (folder / "block-0.safetensors").touch()
    with pytest.raises(CheckpointError) as error:
        read_block(folder, 0, dict[str, Trained]())
    assert str(error.value) == f"{folder / 'block-0.safetensors'} does not fit block 0: {line}"


@pytest.mark.parametrize("message, line", MESSAGES.values(), ids=MESSAGES.keys())
def test_keys_of_studies(message: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError(message)

    with monkeypatch.context() as patch:
        patch.setattr(OmegaConf, "from_dotlist", fail)
        for parse in (lambda each: own_keys(each, StudyOptions()), parse_options):
            with pytest.raises(UserError) as error:
                parse(["out=[x]"])
            assert str(error.value) == f"out=[x]: {line}"


@pytest.mark.parametrize(
    "argument, expected", [
        ("seeds=[0,", "seeds=[0,: expected the node content, but found '<stream end>'"),
        ("jobs=${nothing}", "jobs=${nothing}: Interpolation key 'nothing' not found"),
        ("jobs=many", "jobs=many: allowed: a whole number"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_read(argument: str, expected: str) -> None:
    """Half a list, and what refers to nothing, are bad input too."""
    with pytest.raises(UserError) as error:
        parse_options([argument])
    assert str(error.value) == expected


def test_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that a profile cannot have."""
    monkeypatch.setattr(OmegaConf, "load", lambda path: OmegaConf.create({"nothing": 1}))
    with pytest.raises(UserError, match=r"scaled\.yaml: Key 'nothing' not in 'Profile'") as error:
        Profile.load("scaled")
    assert "\n" not in str(error.value)
