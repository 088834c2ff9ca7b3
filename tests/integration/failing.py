"""Raises an error of a programmer at one block in one batch. Usage: torchrun ... failing.py BLOCK BATCH [key=value ...]."""

import sys

from fgpipe.train import main
from fgpipe.trainers.stage import Stage

if __name__ == "__main__":
    block, batch = map(int, sys.argv[1:3])
    train = Stage.train

    def failing(self, given, send, reply):
        if (self.index, given.id) == (block, batch):
            raise KeyError("a mistake of ours")
        return train(self, given, send, reply)

    Stage.train = failing
    sys.exit(main(sys.argv[3:]))
