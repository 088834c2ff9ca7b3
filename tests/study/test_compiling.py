"""Compiled code computes the same, and the study's table."""

from pathlib import Path

import pytest
import torch

from fgpipe.errors import UserError
from fgpipe.study.probes import compiling

TINY = ["widths=[0.0625]", "lanes=[2]", "blocks=[7]", "batch=4", "pixels=8", "seconds=0"]


def test_compiled_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is timed is compared, compiled beside not; without PyTorch's last step, code in C++, which takes long."""
    compared = []

    def compare(graph: compiling.Graph, use: compiling.Use, at_least: float) -> compiling.Seconds:
        want, got = use(graph), use(torch.compile(graph, backend="aot_eager", fullgraph=True))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        compared.append(graph)
        return compiling.Seconds(3.0, 2.0, 1.0)

    monkeypatch.setattr(compiling, "measure", compare)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    out = tmp_path / "table.md"
    assert compiling.main([*TINY, f"out={out}"]) == 0
    assert len(compared) == 3
    printed = capsys.readouterr().out
    assert printed in out.read_text()
    for what in ("step of block and head", "forward", "primal and 2 lanes"):
        assert (
            f"| compiling | {what}, width 0.0625 |  | 1.5 | 1.5 to 1.5 |  |  | together 1.50; compiled in 1 s |"
            in printed
        )


def test_both_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, fullgraph: lambda: graph())
    calls: list[None] = []
    seconds = compiling.measure(lambda: calls.append(None), lambda graph: graph(), 0.0)
    assert len(calls) == 1 + 2 * (1 + 3), "the first compiled call, then a round of both to warm up and three rounds"
    assert min(seconds.as_it_is, seconds.compiled, seconds.compiling) > 0


@pytest.mark.parametrize(
    "argument, expected", [
        ("blocks=[8]", "blocks=[8]: allowed: a list of blocks from 0 to 7"),
        ("widths=[]", "widths=[]: allowed: a list of numbers above 0"),
        ("lanes=[0]", "lanes=[0]: allowed: a list of numbers above 0"),
        ("batch=1", "batch=1: allowed: at least 2"),
        ("pixels=1", "pixels=1: allowed: at least 8"),
        ("out=/nowhere/there.md", "out=/nowhere/there.md: allowed: a file in a folder that exists"),
        ("x=3", "x=3: no such key; allowed: widths | lanes | "),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        compiling.main([argument])
    assert str(refused.value).startswith(expected)
