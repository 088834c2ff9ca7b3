"""`python -m fgpipe.bench`: it runs from end to end, its measures are right on what is known, bad input is one line."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from fgpipe.gradients import Tangent
from fgpipe.observe.timeline import Event
from fgpipe.study.bench import command, pipeline, tangents
from fgpipe.study.bench.measure import interleaved, peak_bytes
from fgpipe.study.bench.table import QUICK, BenchRow, at_least, at_most, table
from tests.integration.launching import launch


@pytest.mark.parametrize(
    "arguments, expected", [
        (["only=psychic"], "fgpipe: only=psychic: allowed: tangents | layers | pipeline | recording | cells | start | profile, or some"),
        (["quick=maybe"], "fgpipe: quick=maybe: allowed: true | false"),
        (["fast=true"], "fgpipe: fast=true: no such key; allowed: out | only | quick"),
        (["quick"], "fgpipe: quick: allowed: key=value"),
        (["out=no/such/folder/speed.md"], "fgpipe: out=no/such/folder/speed.md: allowed: a file in a folder that exists"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(expected) and message.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_end_to_end(tmp_path: Path) -> None:
    """A row for each figure of every section, and the file has what was printed."""
    out = tmp_path / "speed.md"
    out.write_text("What is measured how.\n\n## Results\n\nNone yet.\n")
    done = launch(1, "-m", "fgpipe.bench", "quick=true", f"out={out}")
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert out.read_text() == f"What is measured how.\n\n## Results\n\n{printed}"
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")][2:]
    sections = [cells[0] for cells in lines]
    widths, lanes = len(QUICK.widths), len(QUICK.lanes)
    expected = {
        "tangents": 4 * widths * lanes + 1,
        "pipeline": 2 * widths,
        "recording": 2,
        "cells": 3 * widths,
        "start": 2,
        "layers": 7 * lanes,
    }
    assert {name: sections.count(name) for name in command.SECTIONS} == expected | {"profile": 3 * widths}
    assert all(float(cells[3]) > 0 for cells in lines)
    assert f"torch {torch.__version__}" in printed
    assert f"OMP_NUM_THREADS=1 python -m fgpipe.bench quick=true out={out}`" in printed


def test_table() -> None:
    """The median is what is judged, whichever way the goal goes."""
    lines = table(
        [BenchRow("a", "x", [1.0, 4.0, 2.0], at_most(1.6)), BenchRow("a", "y", [1.0, 4.0, 2.0], at_least(1.6))]
    ).splitlines()
    assert lines[2] == "| a | x | at most 1.6 | 2 | 1 to 4 | 1.25 | missed |  |"
    assert lines[3] == "| a | y | at least 1.6 | 2 | 1 to 4 | 1.25 | met |  |"


def test_rounds_are_interleaved() -> None:
    """One round to warm up, then as many as asked for, each with every call once; none follows itself."""
    made: list[str] = []
    seconds = interleaved({name: partial(made.append, name) for name in "abc"}, rounds=100)
    rounds = ["".join(made[n : n + 3]) for n in range(0, len(made), 3)]
    assert len(rounds) == 101 and {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 100)
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert all(one != other for one, other in itertools.pairwise(made))


def test_peak_memory() -> None:
    """Bytes alive at once, and no more: a temporary of 3 MB is gone before 2 MB come on top of 1 MB."""

    def call() -> torch.Tensor:
        kept = torch.empty(1_000_000, dtype=torch.uint8)
        torch.empty(3_000_000, dtype=torch.uint8)
        return torch.cat([kept, kept])

    assert peak_bytes(call) == 4_000_000
    assert peak_bytes(lambda: None) == 0


def test_both_sides_compute_the_same() -> None:
    """Our lanes and those of `vmap(jvp)`, on every block, to float32's rounding."""
    with torch.no_grad():
        for block, x in tangents.blocks(0.125, QUICK):
            dx = torch.randn(2 * len(x), *x.shape[1:])
            y, dy = tangents.pushing(block, x, Tangent((0, 1), dx))()
            want_y, want_dy = tangents.by_torch(block, x, dx)()
            torch.testing.assert_close(y, want_y)
            torch.testing.assert_close(dy, want_dy.flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_efficiency() -> None:
    """A busy process that works 90 of every 100 ns, one that works 50; filling and draining are slow, and left out."""
    count, margin = 24, pipeline.MARGIN
    starts = [1000 * index for index in range(margin)]
    starts += [1000 * margin + 100 * index for index in range(count - 2 * margin)]
    starts += [starts[-1] + 5000 * (1 + index) for index in range(margin)]
    events = {
        rank: [Event("forward", rank, batch, -1, start, start + work) for batch, start in enumerate(starts)]
        for rank, work in enumerate((90, 50))
    }
    waiting = [Event("wait for input", 1, batch, 0, start + 50, start + 100) for batch, start in enumerate(starts)]
    assert pipeline.efficiency({0: events[0], 1: events[1] + waiting}) == pytest.approx(0.9)
