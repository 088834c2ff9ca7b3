"""Folders of image files, one folder per class."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fgpipe.config import DataConfig
from fgpipe.data.dataset import Dataset, reason, subset
from fgpipe.errors import UserError

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's formats that are tried, with the file names that count as images. Not EPS: Pillow hands it to an
interpreter, and data files must not run code."""
_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def read_folders(root: Path, config: DataConfig) -> Dataset:
    """Decode `root/train/<class>/*` and `root/test/<class>/*` (or `root/val`).

    Labels number the class folders of train sorted by name. Images are shrunk or enlarged to cover
    `stored_size` (bilinear) and cropped at the centre; they become grey if `mean` has one number, else RGB.
    Only the selected samples are decoded.

    Raises:
        UserError: a folder is missing or empty, a class is in test alone, or a file is corrupt.
    """
    test = root / "test" if (root / "test").is_dir() else root / "val"
    for folder, names in ((root / "train", "train"), (test, "test or val")):
        if not folder.is_dir():
            raise UserError(
                f"data.root={config.root}: no folder {names} in {root}; "
                "put images into train/<class>/ and test/<class>/ there"
            )
    classes = _class_names(root / "train")
    unknown = [name for name in _class_names(test) if name not in classes]
    if unknown:
        raise UserError(f"{test / unknown[0]}: class without training images: allowed: the folders of {root / 'train'}")
    train_images, train_labels = _read_split(root / "train", "train", classes, config)
    test_images, test_labels = _read_split(test, "test", classes, config)
    return Dataset(train_images, train_labels, test_images, test_labels, len(classes))


def _class_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_split(folder: Path, split: str, classes: list[str], config: DataConfig) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, S, S] and int64 [N]."""
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise UserError(f"{folder}: no images: allowed: <class>/<file> with {', '.join(_SUFFIXES)}")
    wanted = config.train_samples if split == "train" else config.test_samples
    chosen = torch.arange(len(files))[subset(split, wanted, len(files))].tolist()
    channels, side = len(config.mean), config.stored_size
    images = np.empty((len(chosen), channels, side, side), np.uint8)

    def decode(position: int) -> None:
        images[position] = _decode(files[chosen[position]][0], channels, side)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(chosen))):
            pass
    return torch.from_numpy(images), torch.tensor([files[index][1] for index in chosen])


def _decode(path: Path, channels: int, side: int) -> np.ndarray:
    """uint8 [C, side, side]."""
    try:
        with Image.open(path, formats=list(FORMATS)) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise many types on corrupt files
        raise UserError(f"{path}: not a readable image: {reason(error)}") from error
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1)
