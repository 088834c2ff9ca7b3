"""The core of a run, for `python` and `python -O`: usage: optimised.py FOLDER, which gets what `recording` writes.

Printed as JSON: whether asserts are there, and the batches in flight at a block before and after one is skipped.
"""

import json
import sys
from pathlib import Path

import torch

import fgpipe.trainers.session
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Lost
from tests.integration.recording import Recorded, record
from tests.test_transparency import BATCH, Pipeline, configuration

COMMON = [
    "epochs=1", "data.train_samples=48", "batch_size=8", "data.test_samples=10", "model.width=0.07", "threads=1", "device=cpu",
    "observe.tensorboard=false",
]  # fmt: skip
RUNS = {
    "lock-step": ["window=1"],
    "pipelined": ["window=auto", "scope=block", "checkpoint.every_steps=4"],
    "activity": ["window=auto", "space=activity", "guess=gaussian", "optim.lr=0.01"],
    "coded": ["window=2", "lanes=2", "decode=predicted", "step=normalised", "target=intermediate", "target.depth=3"],
    "local": ["target=local"],
    "oracle": ["tangents=oracle", "window=1", "guess=ntk"],
    "end-to-end": ["guess=end_to_end", "microbatches=2"],
}


def skipped() -> list[list[int]]:
    pipeline = Pipeline(configuration("local", "mlp", "weight", "block", "global", 8))
    stage, flight = pipeline.stages[0], []
    for number in range(3):
        x, labels = torch.randn(BATCH, 3, 16, 16, dtype=torch.float64), torch.zeros(BATCH, dtype=torch.int64)
        list(stage.run(Batch(number, 0, True, x, labels)))
    for lost in (None, 0, 1):
        if lost is not None:
            list(stage.run(Lost(0, lost, 7, 0)))
        flight.append([entry.batch for entry in stage.in_flight])
    return flight


if __name__ == "__main__":
    setattr(fgpipe.trainers.session, "Metrics", Recorded)  # noqa: B010 - of this process alone
    for name, overrides in RUNS.items():
        record(Path(sys.argv[1]), name, [*COMMON, *overrides])
    print(json.dumps({"asserts": __debug__, "in flight": skipped()}))
