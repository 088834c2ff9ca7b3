"""Made-up runs of a grid, for the tests of what is read from them."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from fgpipe.study.common.runs import Run
from fgpipe.study.paper.profile import Profile
from fgpipe.study.paper.tables import Key, published, unpublished


def key(
    guess: str, aux: str | None, space: str | None, blocks: int = 8, target: str = "global", width: str = "1"
) -> Key:
    return Key("cifar10", blocks, width, target, guess, aux, space)


@cache
def configuration(what: Key) -> dict[str, Any]:
    """That of `profile=scaled`."""
    cell = next(cell for cell in (*published(), *unpublished()) if cell.key == what)
    return asdict(Run(Profile.load("scaled").settings(cell), 0, [cell]).compose())


def write_run(
    out: Path,
    what: Key,
    accuracy: float,
    seed: int = 0,
    epochs: int = 2,
    cosine: Mapping[int, list[float]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder as `python -m fgpipe.grid` leaves it; accuracy in percent. All heads have curves.

    Args: settings: dotted key to value of its configuration.
    """
    config = deepcopy(configuration(what)) | {"seed": seed, "epochs": epochs}
    for name, value in (settings or {}).items():
        group, _, last = name.rpartition(".")
        (config[group] if group else config)[last] = value
    folder = out / f"{what.words}-s{seed}-{abs(hash((what, seed, epochs, str(settings)))) % 16**8:08x}"
    folder.mkdir(parents=True)
    scores = {
        str(block): {"loss": 2.0 - block / 10, "accuracy": accuracy / 100, "samples": 10}
        for block in range(what.blocks)
    }
    lines = [{"epoch": epoch, "train_seconds": 1.0, "train": scores, "test": scores} for epoch in range(epochs)]
    summary = {
        "config": config,
        "commit": "abc",
        "epochs": lines,
        "test_accuracy": accuracy / 100,
        "train_seconds": 60.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if cosine is not None:
        text = [json.dumps({"step": step, "cosine": dict(enumerate(values))}) for step, values in cosine.items()]
        (folder / "cosine.jsonl").write_text("\n".join(text) + "\n")
    return folder
