"""Headers on arrival: whatever is not a batch of the plan is refused by name, before anything is allocated for it."""

import pytest
import torch

from fgpipe.observe.timeline import Timeline
from fgpipe.wire.links.distributed import MAGIC, LinkError, Receiver

SHAPE, LANES = (32, 16, 8, 8), (0, 1, 2)
TRAINING = [MAGIC, 5, 1, 1, 3, 4, 32, 16, 8, 8, 0]
TESTING = [MAGIC, 0, 1, 0, 0, 4, 7, 16, 8, 8, 0]


def receiver() -> Receiver:
    wire = {"dtype": torch.float32, "device": torch.device("cpu")}
    return Receiver(3, 2, shape=SHAPE, lanes=LANES, held=1, batches=9, pinned=False, timeline=Timeline(), **wire)


def test_accepted() -> None:
    assert receiver()._check(TRAINING, SHAPE) == (5, 1, 1, 32)
    assert receiver()._check(TESTING, SHAPE) == (0, 1, 0, 7)


@pytest.mark.parametrize("good", [TRAINING, TESTING], ids=["training", "testing"])
@pytest.mark.parametrize(
    "field, value, named",
    [
        (0, MAGIC + 1, "magic"),
        (1, -1, "batch id"),
        (2, -1, "epoch"),
        (3, 2, "flags"),
        (3, -1, "flags"),
        (3, 4, "flags"),
        (4, 1, "lanes"),
        (4, -3, "lanes"),
        (5, 3, "shape"),
        (6, 0, "shape"),
        (6, -7, "shape"),
        (6, 33, "shape"),
        (6, 2**62, "shape"),
        (7, 17, "shape"),
        (8, 2**40, "shape"),
        (9, 0, "shape"),
        (10, 1, "shape"),
    ],
)
def test_refused(good: list[int], field: int, value: int, named: str) -> None:
    header = list(good)
    header[field] = value
    with pytest.raises(LinkError, match=rf"block 2 \(rank 2\) sent a header with a wrong {named}"):
        receiver()._check(header, SHAPE)


def test_a_training_batch_is_whole() -> None:
    with pytest.raises(LinkError, match="shape"):
        receiver()._check([*TRAINING[:6], 31, *TRAINING[7:]], SHAPE)
