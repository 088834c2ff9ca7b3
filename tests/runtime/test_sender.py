"""A link that does not get rid of its batches says which one, to whom, and for how long."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fgpipe.errors import LinkError
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import IN_FLIGHT, Layout
from fgpipe.wire.links.sender import Sender
from fgpipe.wire.streams import Streams

LINE = r"lost block 4 \(rank 2\) on the forward plane; (test )?batch 7 was on its way to it for \d\.\d s: Timed out"

LAYOUT = Layout((2, 4), (), torch.float32, torch.device("cpu"))


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("Timed out\nand a trace of it")


def batch(training: bool) -> Batch:
    return Batch(7, 0, training, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_refused_at_once(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "isend", refuse)
    link = Sender(3, 2, LAYOUT, Ledger(8), Streams())
    with pytest.raises(LinkError, match=f"^{LINE}$") as caught:
        link.send(batch(training))
    assert caught.value.rank == 2 and bool(re.search("test batch", str(caught.value))) != training


def test_the_oldest_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches leave, as many as may be in flight; the next one, and closing, wait for the first."""
    monkeypatch.setattr(dist, "isend", lambda *_, **__: SimpleNamespace(wait=refuse))
    for end in ("send", "close"):
        link = Sender(3, 2, LAYOUT, Ledger(8), Streams())
        for _ in range(IN_FLIGHT):
            link.send(batch(True))
        with pytest.raises(LinkError, match=f"^{LINE}$"):
            link.close() if end == "close" else link.send(batch(True))
