"""Noise as image files, for studies of time: as many images as one likes, in memory, and no download."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (32, 32, 3)
CLASSES = 10


def write_images(root: Path, train: int, test: int) -> None:
    """Make `root` a `data.root` of data=cifar10_jpeg, with so many images of each part; kept if it is there.

    The format is BMP, which takes the least time to read.
    """
    if root.is_dir():
        return
    staging = root.with_name(f"{root.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for index in range(count):
            folder = staging / part / str(index % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, SHAPE, dtype=np.uint8)).save(folder / f"{index:06}.bmp")
    staging.rename(root)
