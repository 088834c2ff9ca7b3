"""Runs fgpipe.train with several configurations in one set of processes, and writes what no summary holds.

Usage: [torchrun ... | python] recording.py FOLDER, where FOLDER/runs.json maps a name to a list of overrides, among
which `net=KIND` takes a net of `tests.nets`. For each run and process: NAME-RANK.npz with every loss and the final
weights, and NAME-RANK.json with the process's TCP connections and their bytes as the kernel counts them, taken when
training is over; NAME-RANK-listening.json with the addresses on which it listened at an epoch's end.
"""

import gc
import json
import os
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fgpipe.trainers.session
from fgpipe.cluster.process import Cluster
from fgpipe.config import compose_config
from fgpipe.observe.events import Scored, StepEvent
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.plan import Plan
from fgpipe.trainers.worker import Worker
from tests.integration.launching import listening
from tests.nets import KINDS

RANK = os.environ.get("RANK", "0")
BYTES_ACKED, BYTES_RECEIVED = 120, 128
"""Offsets of two 64-bit counters in Linux's `struct tcp_info`."""


class Recorded(Metrics):
    """Keeps the mean loss of every batch, and where the process listens."""

    last: "Recorded"

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.losses: dict[str, list[float]] = {}
        self.listening: list[str] = []
        Recorded.last = self

    def observe(self, event: StepEvent) -> None:
        super().observe(event)
        if isinstance(event, Scored):
            self.losses.setdefault(f"loss/{event.training}/{event.block}", []).append(event.loss / event.samples)

    def take(self) -> Tensor:
        self.listening = listening(os.getpid())
        return super().take()


def connections() -> list[dict[str, int]]:
    """Local and remote port, bytes acknowledged by the peer and bytes received, of this process's TCP connections."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if not re.match("socket:", os.readlink(f"/proc/self/fd/{descriptor}")):
                continue
            with socket.socket(fileno=os.dup(int(descriptor))) as each:
                information = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                local, remote = each.getsockname()[1], each.getpeername()[1]
        except OSError:
            continue  # not TCP, or not connected
        sent, received = (struct.unpack_from("Q", information, at)[0] for at in (BYTES_ACKED, BYTES_RECEIVED))
        found.append({"local": local, "remote": remote, "sent": sent, "received": received})
    return found


def record(folder: Path, name: str, overrides: list[str]) -> None:
    trainers: list[Worker] = []
    build = fgpipe.trainers.session.build_trainer

    def remember(plan: Plan, cluster: Cluster, *rest: Any) -> Worker:
        trainers.append(trainer := build(plan, cluster, *rest))
        close = trainer.close

        def count() -> None:
            close()
            cluster.barrier()
            (folder / f"{name}-{RANK}.json").write_text(json.dumps(connections()))
            (folder / f"{name}-{RANK}-listening.json").write_text(json.dumps(Recorded.last.listening))

        trainer.close = count  # type: ignore[method-assign] # seen by this run alone
        return trainer

    setattr(fgpipe.trainers.session, "build_trainer", remember)  # noqa: B010 - of this run alone
    torch.manual_seed(0)
    own = [KINDS[each.removeprefix("net=")]() for each in overrides if each.startswith("net=")]
    overrides = [each for each in overrides if not each.startswith("net=")]
    try:
        fgpipe.trainers.session.run(compose_config([*overrides, f"run_dir={folder / name}"]), *own)
    finally:
        fgpipe.trainers.session.build_trainer = build
    arrays = {key: np.array(values) for key, values in Recorded.last.losses.items()}
    for j, parts in trainers[0].trained().items():
        for kind in ("block", "head"):
            for key, tensor in (parts[kind].module.state_dict() if kind in parts else {}).items():
                arrays[f"{kind}/{j}/{key}"] = tensor.to(torch.float64).numpy()
    np.savez(folder / f"{name}-{RANK}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    gc.freeze()  # as the command does
    setattr(fgpipe.trainers.session, "Metrics", Recorded)  # noqa: B010 - of this process alone
    for name, overrides in json.loads((Path(sys.argv[1]) / "runs.json").read_text()).items():
        record(Path(sys.argv[1]), name, overrides)
