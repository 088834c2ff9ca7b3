"""Random generators named by a key, so that any process can redraw any number.

Nothing in fgpipe draws from a global generator, and layers of others that do, such as dropout, find it seeded by such
a name. A draw is named by the run's seed, its purpose and its
counters (block, batch, epoch ...); a random guess is therefore stored as its key, two processes that need the
same numbers draw them apart, and a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on its arguments alone.

    The key is hashed to 64 bits, so that neighbouring counters give unrelated streams. CPU and GPU generators
    give different numbers for the same key.
    """
    key = ":".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


@contextmanager
def drawing(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Have PyTorch's global generators give the numbers of a name; afterwards they are as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(generator(seed, purpose, *counters).initial_seed())
        yield
