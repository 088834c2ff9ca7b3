"""Prints what `cluster.clock` finds; ranks above 0 claim to be on another host, with a clock that is NANOSECONDS ahead.

Usage: torchrun ... clocks.py NANOSECONDS.
"""

import json
import os
import sys
import time
from dataclasses import asdict

import torch.distributed as dist
from torch import Tensor

from fgpipe.cluster.clock import offsets

RANK = int(os.environ["RANK"])


def total(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def clock() -> int:
    return time.monotonic_ns() + int(sys.argv[1]) * (RANK > 0)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = offsets(RANK, [0, *[1] * (dist.get_world_size() - 1)], total, clock)
    if RANK == 0:
        print(json.dumps([asdict(each) for each in found]))
    dist.barrier()
    dist.destroy_process_group()
