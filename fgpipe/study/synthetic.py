"""Noise in the files of CIFAR-10, for studies of time: as many images as one likes, in memory, and no download."""

import pickle
import shutil
from pathlib import Path

import numpy as np

SHAPE = (3, 32, 32)
PARTS = 5
"""Files of the training part."""


def write_images(root: Path, train: int, test: int) -> None:
    """Make `root` a `data.root` of data=cifar10, with so many images of each part or a few more; kept if there."""
    if root.is_dir():
        return
    staging = root.with_name(f"{root.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    folder = staging / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sizes = {f"data_batch_{part}": -(-train // PARTS) for part in range(1, PARTS + 1)} | {"test_batch": test}
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        images = rng.integers(0, 256, (size, np.prod(SHAPE)), dtype=np.uint8)
        content = {"data": images, "labels": rng.integers(0, 10, size).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    staging.rename(root)
