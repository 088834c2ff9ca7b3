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


TINY = ["model.width=0.07", "batch_size=8", "data.train_samples=64", "data.test_samples=16", "threads=1", "device=cpu"]


def test_precision(capsys: pytest.CaptureFixture[str]) -> None:
    """float32 is near the float64 oracle in every block, and the formats of fewer bits are further from it, in order."""
    assert main(["precision", *TINY, "scope=block"]) == 0
    rows = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(range(8))
    for _, single, alike, wire, _, eight, *_ in rows:
        assert single < 1e-3 < min(wire, eight) and alike > 0.99999


def test_per_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """The two sums of scalars differ by rounding alone; the scalars themselves differ."""
    assert main(["per_sample", *TINY, "epochs=1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()[-8:]
    assert head.endswith("sums differ by") and [line.split()[0] for line in lines] == list("0123456")
    for alike, _, _, difference in (map(float, line.split()[1:]) for line in lines):
        assert difference < 1e-3 and alike < 0.9999
