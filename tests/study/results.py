"""Made-up runs of a grid, for the tests of what is read from them."""

import json
from collections.abc import Mapping
from pathlib import Path

from fgpipe.study.paper import Key


def key(
    guess: str, aux: str | None, space: str | None, blocks: int = 8, target: str = "global", width: str = "1"
) -> Key:
    return Key("cifar10", blocks, width, target, guess, aux, space)


def write_run(
    out: Path,
    what: Key,
    accuracy: float,
    seed: int = 0,
    epochs: int = 2,
    cosine: Mapping[int, list[float]] | None = None,
) -> Path:
    """A run folder as `python -m fgpipe.grid` leaves it; accuracy in percent. All heads have curves."""
    folder = out / f"{what.words}-s{seed}-{abs(hash((what, seed, epochs))) % 16**8:08x}"
    folder.mkdir(parents=True)
    scores = {
        str(block): {"loss": 2.0 - block / 10, "accuracy": accuracy / 100, "samples": 10}
        for block in range(what.blocks)
    }
    config = {
        "seed": seed, "epochs": epochs, "batch_size": 64, "tangents": "oracle",
        "data": {"train_samples": 6400, "test_samples": None},
        "optim": {"schedule": "one_cycle", "lr": 0.05}, "model": {"width": 0.25},
    }  # fmt: skip
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
