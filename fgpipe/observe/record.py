"""The run folder: the resolved configuration, one line of metrics per epoch, TensorBoard events, the summary."""

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fgpipe import durable
from fgpipe.config import Config
from fgpipe.observe.metrics import PHASES, Score

COSINES = "cosine.jsonl"
Scores = Mapping[str, Mapping[int, Score]]
"""Phase -> block -> score."""


class RunFolder:
    """The one folder of a run; only the reporting process writes to it."""

    def __init__(self, config: Config, path: Path, epochs: Sequence[Mapping[str, Any]] = (), step: int = 0) -> None:
        """Create the folder, or go on in one that `fgpipe.resume` allows.

        Args:
            path: from `folder_for`.
            epochs: the lines of those that are done; whatever else `metrics.jsonl` holds is dropped.
            step: training steps that are done; what `cosine.jsonl` holds of later ones is dropped.
        """
        self.path = path
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
        if (self.path / COSINES).exists():
            lines = (self.path / COSINES).read_text().splitlines(keepends=True)
            (self.path / COSINES).write_text("".join(line for line in lines if _step(line) < step))
        self._config = config
        self.epochs: list[dict[str, Any]] = list(map(dict, epochs))
        """The lines of `metrics.jsonl`."""
        self._events = None
        if config.observe.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self._events = SummaryWriter(str(self.path), purge_step=len(self.epochs))

    def epoch(self, epoch: int, scores: Scores, train_seconds: float) -> None:
        """Add one epoch to `metrics.jsonl` and to the events."""
        line: dict[str, Any] = {"epoch": epoch, "train_seconds": train_seconds}
        for phase, blocks in scores.items():
            line[phase] = {str(block): dataclasses.asdict(score) for block, score in blocks.items()}
        self.epochs.append(line)
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for phase, blocks in scores.items():
                for block, score in blocks.items():
                    self._events.add_scalar(f"loss/{phase}/block{block}", score.loss, epoch)
                    self._events.add_scalar(f"accuracy/{phase}/block{block}", score.accuracy, epoch)

    def cosines(self, step: int, cosines: Sequence[float]) -> None:
        """Add the cosines of one training step, block 0 first, to `cosine.jsonl`."""
        line = {"step": step, "cosine": {str(block): cosine for block, cosine in enumerate(cosines)}}
        with (self.path / COSINES).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Write `summary.json`: the configuration, the commit, all epochs, and the given figures."""
        content = {
            "config": dataclasses.asdict(self._config),
            "seed": self._config.seed,
            "commit": commit(),
            "machine": machine(),
            "epochs": self.epochs,
            **figures,
        }
        durable.write(self.path / "summary.json", f"{json.dumps(content, indent=2)}\n".encode())
        if self._events is not None:
            self._events.close()


def _step(line: str) -> float:
    """Of a line of `cosine.jsonl`; infinite for one that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def machine() -> str:
    """Processor or GPU, number of cores, and the version of PyTorch, for a person to read."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}"


def folder_for(config: Config) -> Path:
    """The run folder that a configuration asks for, or a new name."""
    settings = OmegaConf.to_yaml(OmegaConf.structured(config))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return Path(config.run_dir) if config.run_dir else Path("runs") / name


def scores_of(line: Mapping[str, Any]) -> dict[str, dict[int, Score]]:
    """The scores in a line of `metrics.jsonl`."""
    return {phase: {int(block): Score(**score) for block, score in line[phase].items()} for phase in PHASES}


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` if it was changed; None outside a checkout."""
    where = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
