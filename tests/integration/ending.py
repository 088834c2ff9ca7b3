"""A program of a user's own, which goes on after its run: what threads it has then."""

import os
import sys
from pathlib import Path

import fgpipe


def threads() -> list[str]:
    """Names of all threads of this process, those that Python does not know among them."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


if __name__ == "__main__":
    fgpipe.run(fgpipe.compose(sys.argv[1:]))
    print(f"rank {os.environ['RANK']}: {' '.join(threads())}", flush=True)
