"""Headers on arrival: whatever is not a batch of the plan is refused by name, before anything is allocated for it."""

import pytest
import torch

from fgpipe.errors import LinkError
from fgpipe.wire.links.header import MAGIC, Layout

SHAPE, LANES = (32, 16, 8, 8), (0, 1, 2)
TRAINING = [MAGIC, 5, 1, 1, 3, 4, 32, 16, 8, 8, 0]
TESTING = [MAGIC, 0, 1, 0, 0, 4, 7, 16, 8, 8, 0]


def check(header: list[int]) -> tuple[int, int, int, int]:
    return Layout(SHAPE, LANES, torch.float32, torch.device("cpu")).check(header, "block 2 (rank 2)", 2)


def test_accepted() -> None:
    assert check(TRAINING) == (5, 1, 1, 32)
    assert check(TESTING) == (0, 1, 0, 7)


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
        check(header)


def test_a_training_batch_is_whole() -> None:
    with pytest.raises(LinkError, match="shape"):
        check([*TRAINING[:6], 31, *TRAINING[7:]])
