"""Rank 0 makes the group of its replicas, and rank 1 does not come. Usage: torchrun --nproc_per_node=2 peerless.py SECONDS."""

import os
import sys
import time

import torch
import torch.distributed as dist

from fgpipe.cluster.replicas import Replicas
from fgpipe.errors import LinkError
from fgpipe.plan.topology import Topology

if __name__ == "__main__":
    dist.init_process_group("gloo")
    began, deadline = time.monotonic(), float(sys.argv[1])
    if dist.get_rank() == 0:
        try:
            Replicas.connect(Topology((8,), 0, ((0,), (1,))), torch.device("cpu"), deadline, pipelined=False)
        except LinkError as error:
            print(f"{time.monotonic() - began:.1f} {error}", flush=True)
    else:
        time.sleep(2 * deadline)
    os._exit(0)
