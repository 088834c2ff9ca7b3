"""Random generators named by a key, so that any process can redraw any number.

Nothing in fgpipe draws from a global generator, and layers of others that do, such as dropout, find it seeded by such
a name. A draw is named by the run's seed, its purpose and its
counters (block, batch, epoch ...); a random guess is therefore stored as its key, two processes that need the
same numbers draw them apart, and a resumed run needs no generator state.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its arguments alone.

    The key is hashed to 64 bits, so that neighbouring counters give unrelated streams. CPU and GPU generators
    give different numbers for the same key.
    """
    key = ":".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


def states() -> tuple[Any, ...]:
    """States of the global generators of Python, numpy and PyTorch's CPU, which compare equal if nobody drew between them."""
    numbers = np.random.get_state(legacy=False)
    key, position = numbers["state"]["key"].tobytes(), numbers["state"]["pos"]
    numpys = numbers["bit_generator"], key, position, numbers["has_gauss"], numbers["gauss"]
    return random.getstate(), numpys, torch.get_rng_state().numpy().tobytes()


def restore(before: tuple[Any, ...]) -> None:
    """Put back what `states` gave."""
    python, (name, key, *rest), torchs = before
    random.setstate(python)
    np.random.set_state((name, np.frombuffer(key, np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray(torchs), dtype=torch.uint8))


@contextmanager
def drawing(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Have PyTorch's global generators give the numbers of a name; afterwards they are as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(generator(seed, purpose, *counters).initial_seed())
        yield
