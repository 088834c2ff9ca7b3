"""`python -m fgpipe.study`: every study can be started and explains itself; bad input is one line."""

import importlib

import pytest

from fgpipe.study.__main__ import STUDIES, main


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(importlib.import_module(f"fgpipe.study.{STUDIES[name][0]}.{name}").main)
    assert main([name, "--help"]) == 0
    assert f"python -m fgpipe.study {name}" in capsys.readouterr().out
    assert main([]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, expected", [
        (["psychic"], "fgpipe: psychic: allowed: first | lanes | "),
        (["per_sample", "model.blocks=9"], "fgpipe: model.blocks=9: allowed: 8 | 16"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(expected) and message.count("\n") == 1
