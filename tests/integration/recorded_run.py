"""Runs fgpipe.train and writes what no summary holds: every loss and the final weights, one npz per process.

Usage: [torchrun ... | python] recorded_run.py FOLDER key=value ...
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

import fgpipe.assembly
import fgpipe.observe.metrics
from fgpipe.config import compose_config
from fgpipe.observe.metrics import Metrics
from fgpipe.runtime.stage import Stage
from fgpipe.train import run

stages: list[Stage] = []
losses: dict[str, list[float]] = {}


class RecordedStage(Stage):
    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        stages.append(self)


class RecordedMetrics(Metrics):
    def record(self, block, training, values, logits, labels) -> None:
        super().record(block, training, values, logits, labels)
        losses.setdefault(f"loss/{block}/{'train' if training else 'test'}", []).append(values.double().mean().item())


if __name__ == "__main__":
    fgpipe.assembly.Stage = RecordedStage
    sys.modules["fgpipe.train"].Metrics = RecordedMetrics
    folder = Path(sys.argv[1])
    run(compose_config(sys.argv[2:]))
    arrays = {name: np.array(values) for name, values in losses.items()}
    for stage in stages:
        for kind, module in (("block", stage.block), ("head", stage.head)):
            for name, tensor in (module.state_dict() if module is not None else {}).items():
                arrays[f"{kind}/{stage.index}/{name}"] = tensor.to(torch.float64).numpy()
    np.savez(folder / f"rank{os.environ.get('RANK', 0)}.npz", **arrays)
