"""The picture of a trace: what is in it, and what is refused."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from fgpipe.errors import UserError
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.study.probes import timeline

MS = 1_000_000
EVENTS = {
    0: [event for batch in range(4) for event in (
        Event("forward", 0, batch, -1, 10 * batch * MS, (10 * batch + 2) * MS),
        Event("send", 0, batch, 1, (10 * batch + 2) * MS, (10 * batch + 3) * MS),
        Event("scalars", 0, batch, 1, (10 * batch + 7) * MS, (10 * batch + 7) * MS),
        Event("update", 0, batch, -1, (10 * batch + 7) * MS, (10 * batch + 8) * MS),
    )],
    1: [event for batch in range(4) for event in (
        Event("receive", 1, batch, 0, (10 * batch + 3) * MS, (10 * batch + 4) * MS),
        Event("forward", 1, batch, -1, (10 * batch + 4) * MS, (10 * batch + 6) * MS),
        Event("reply", 1, batch, 0, (10 * batch + 6) * MS, (10 * batch + 7) * MS),
    )],
}  # fmt: skip


def test_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two in the middle; up and back for the first of them, on an axis of milliseconds."""
    figures: list[Figure] = []
    monkeypatch.setattr(plt, "close", figures.append)
    trace.write(tmp_path / "trace.json", EVENTS, {0: "block 0", 1: "block 1"}, {})
    assert timeline.main([str(tmp_path / "trace.json"), str(tmp_path / "picture.png"), "2"]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert axes.get_xlim() == (0, 18), "from batch 1's forward pass at 10 ms to batch 2's update, which ends at 28"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["block 0", "block 1"]
    arrows = [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]
    assert arrows == [((3, 0), (3, 1)), ((7, 1), (7, 0))], "sent at 13 ms, the scalars back at 17"
    figures[0].clear()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.json", "a.png"], "TRACE=nowhere.json: allowed: the trace.json of a run with trace=true"),
        (["a"], "arguments=a: allowed: TRACE PICTURE.png"),
        (["trace.json", "a.png", "5"], "BATCHES=5: allowed: 1 to 4, as many as the trace has"),
        (["trace.json", "a.png", "none"], "BATCHES=none: allowed: a whole number of at least 1"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace.write(tmp_path / "trace.json", EVENTS, {0: "block 0", 1: "block 1"}, {})
    with pytest.raises(UserError, match=message):
        timeline.main(arguments)
    assert not (tmp_path / "a.png").exists()
