"""Data configurations for tests."""

from pathlib import Path

from fgpipe.config import DataConfig


def configured(name: str, root: Path | str = "data", **changes: object) -> DataConfig:
    side = {"fashion_mnist": 28, "digits": 16}.get(name, 32)
    channels = 1 if name in ("fashion_mnist", "digits") else 3
    values = {
        "name": name, "root": str(root), "size": side, "stored_size": side, "augment": "none",
        "mean": [0.5] * channels, "std": [0.25] * channels,
    }  # fmt: skip
    return DataConfig(**(values | changes))
