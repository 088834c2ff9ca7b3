"""Raises an error of a programmer at one block in one batch. Usage: torchrun ... failing.py BLOCK BATCH [key=value ...]."""

import sys
from collections.abc import Iterator
from typing import Any

from fgpipe.train import main
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch

if __name__ == "__main__":
    block, batch = map(int, sys.argv[1:3])
    run = Stage.run

    def failing(self: Stage, given: Any) -> Iterator[Message]:
        if isinstance(given, Batch) and given.training and (self.index, given.id) == (block, batch):
            raise KeyError("a mistake of ours")
        return run(self, given)

    Stage.run = failing  # type: ignore[method-assign] # of this program's own process
    sys.exit(main(sys.argv[3:]))
