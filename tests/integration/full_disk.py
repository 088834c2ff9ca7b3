"""Trains on a disk without room for one file. Usage: torchrun ... full_disk.py FILE [key=value ...]."""

import errno
import os
import sys
from pathlib import Path

from fgpipe.saving import durable
from fgpipe.train import main

if __name__ == "__main__":
    name, write = sys.argv[1], durable.write

    def fill(path: Path, content: bytes) -> None:
        if str(path).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    durable.write = fill
    sys.exit(main(sys.argv[2:]))
