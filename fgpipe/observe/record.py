"""The run folder: the resolved configuration, one line of metrics per epoch, TensorBoard events, the summary."""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fgpipe.config import Config
from fgpipe.errors import typed_line
from fgpipe.observe.growing import Events, Growing
from fgpipe.observe.metrics import PHASES, Score
from fgpipe.saving import durable
from fgpipe.saving.outputs import needed, unwritten

COSINES = "cosine.jsonl"
Scores = Mapping[str, Mapping[int, Score]]
"""Phase -> block -> score."""


class RunFolder:
    """The one folder of a run; only the reporting process writes to it.

    Training goes on when something cannot be written, as on a full disk. Lines are then written with the next one.
    """

    def __init__(self, config: Config, path: Path, epochs: Sequence[Mapping[str, Any]] = (), step: int = 0) -> None:
        """Begin in the folder, or go on in one that `fgpipe.saving.resume` allows.

        Args:
            path: from `fgpipe.saving.claim`.
            epochs: the lines of those that are done; whatever else `metrics.jsonl` holds is dropped.
            step: training steps that are done; what `cosine.jsonl` holds of later ones is dropped.

        Raises:
            UserError: the folder cannot be written.
        """
        self.path = path
        self._config = config
        self.epochs: list[dict[str, Any]] = list(map(dict, epochs))
        """The lines of `metrics.jsonl`."""
        self._metrics, self._cosines = Growing(path / "metrics.jsonl"), Growing(path / COSINES)
        self._events = None
        with needed("run_dir", path):
            path.mkdir(parents=True, exist_ok=True)
            durable.write(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
            durable.write(self._metrics.path, "".join(map(_json_line, epochs)).encode())
            if self._cosines.path.exists():
                lines = self._cosines.path.read_text().splitlines(keepends=True)
                durable.write(self._cosines.path, "".join(line for line in lines if _step(line) < step).encode())
        if config.observe.tensorboard:
            self._events = Events(path, len(self.epochs))

    def epoch(self, epoch: int, scores: Scores, train_seconds: float) -> None:
        """Add one epoch to `metrics.jsonl` and to the events."""
        line: dict[str, Any] = {"epoch": epoch, "train_seconds": train_seconds}
        for phase, blocks in scores.items():
            line[phase] = {str(block): dataclasses.asdict(score) for block, score in blocks.items()}
        self.epochs.append(line)
        self._metrics.add(_json_line(line).encode())
        if self._events is not None:
            scalars = {}
            for phase, blocks in scores.items():
                for block, score in blocks.items():
                    scalars[f"loss/{phase}/block{block}"] = score.loss
                    scalars[f"accuracy/{phase}/block{block}"] = score.accuracy
            self._events.add(epoch, scalars)

    def cosines(self, step: int, cosines: Sequence[float]) -> None:
        """Add the cosines of one training step, block 0 first, to `cosine.jsonl`."""
        line = {"step": step, "cosine": {str(block): cosine for block, cosine in enumerate(cosines)}}
        self._cosines.add(_json_line(line).encode())

    def summary(self, figures: Mapping[str, Any]) -> list[str]:
        """Write `summary.json`: the configuration, the commit, all epochs, and the given figures.

        Returns:
            A line about each file of the run that is not whole.
        """
        content = {
            "config": dataclasses.asdict(self._config),
            "seed": self._config.seed,
            "commit": commit(),
            "machine": machine(str(figures.get("device", "cpu"))),
            "epochs": self.epochs,
            **figures,
        }
        missing = []
        try:
            durable.write(self.path / "summary.json", f"{json.dumps(content, indent=2)}\n".encode())
        except OSError as error:
            missing.append(unwritten(self.path / "summary.json", error))
        for file in (self._metrics, self._cosines, *([self._events.file] if self._events is not None else [])):
            file.catch_up()
            missing += [] if file.missing is None else [file.missing]
        return missing

    def page(self) -> None:
        """Write `report.html` of what the folder has; what keeps it from that is a warning, as the run is done."""
        from fgpipe.observe.page import run  # for the end alone

        file = self.path / run.NAME
        try:
            run.write(self.path, file)
        except Exception as error:  # noqa: BLE001 - the run is done, and a page must not end it badly
            why = unwritten(file, error) if isinstance(error, OSError) else f"{file} is not made: {typed_line(error)}"
            print(f"fgpipe: warning: {why}", file=sys.stderr, flush=True)


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _step(line: str) -> float:
    """The step of a line of `cosine.jsonl`; infinite for one that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def machine(device: str = "cpu") -> str:
    """Processor, or GPU if that is the device, number of cores that may be used, and PyTorch's version, for a person to read."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, torch {torch.__version__}"


def scores_of(line: Mapping[str, Any]) -> dict[str, dict[int, Score]]:
    """The scores in a line of `metrics.jsonl`."""
    return {phase: {int(block): Score(**score) for block, score in line[phase].items()} for phase in PHASES}


def commit() -> str | None:
    """The commit of the source tree, with `-dirty` if it was changed; None outside a checkout, as in another project's `.venv`."""
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--match=")
    except (OSError, subprocess.CalledProcessError):
        return None
