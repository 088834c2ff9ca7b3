"""Folders of image files, one folder per class."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgpipe.config import DataConfig
from fgpipe.data.dataset import Dataset, subset
from fgpipe.data.images import FORMATS, decode
from fgpipe.errors import UserError

_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_ALLOWED = f"allowed: <class>/<file> with {', '.join(_SUFFIXES)}, and no dot in front"


def read_folders(root: Path, config: DataConfig) -> Dataset:
    """Decode `root/train/<class>/*` and `root/test/<class>/*` (or `root/val`).

    Labels number the class folders of train sorted by name; a link counts as what it leads to. Images are shrunk or
    enlarged to cover `stored_size` (bilinear) and cropped at the centre; they become grey if `mean` has one number,
    else RGB. Transparent images are put on white, EXIF orientation is applied, 16 bits are scaled to 8 by their full
    range and floats from 0..1, and animations give their first frame. A note says how many images were put on white
    or turned. Only the selected samples are decoded.

    Raises:
        UserError: a folder is missing or empty, a class has no training image, or a file is corrupt or has values
            of which nothing says what is black and white.
    """
    train, test = root / "train", root / "test" if (root / "test").is_dir() else root / "val"
    for folder, names in ((train, "train"), (test, "test or val")):
        if not folder.is_dir():
            raise UserError(
                f"data.root={config.root}: no folder {names} in {root}; "
                "put images into train/<class>/ and test/<class>/ there"
            )
    classes = _class_names(train)
    unknown = [name for name in _class_names(test) if name not in classes]
    if unknown:
        raise UserError(f"{test / unknown[0]}: class without training images: allowed: the folders of {train}")
    train_files, test_files = _images(train, classes), _images(test, classes)
    trained = {label for _, label in train_files}
    for label, name in enumerate(classes):
        if label not in trained:
            found = _found_instead(train / name)
            raise UserError(f"{train / name}: class without training images: {found}: {_ALLOWED}")
    train_images, train_labels, train_counts = _read_split(train_files, "train", config.train_samples, config)
    test_images, test_labels, test_counts = _read_split(test_files, "test", config.test_samples, config)
    notes = _notes(*(train_counts + test_counts).tolist())
    return Dataset(train_images, train_labels, test_images, test_labels, len(classes), notes)


def _class_names(folder: Path) -> list[str]:
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: link to nothing: allowed: folders of images, and links to them")
    return sorted(path.name for path in paths if path.is_dir())


def _images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images of a split by class and name, each with its label."""
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted(_entries(folder / name))
        if _is_image(path.name)
    ]
    if not files:
        raise UserError(f"{folder}: no images: {_found_instead(folder)}: {_ALLOWED}")
    return files


def _entries(folder: Path) -> Iterator[Path]:
    """Content of a folder besides folders."""
    with os.scandir(folder) as entries:
        yield from (folder / entry.name for entry in entries if not entry.is_dir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _found_instead(folder: Path) -> str:
    """Content of a folder without images: the first image at another depth, or else the first file or folder."""
    found = "empty"
    for path in sorted(folder.rglob("*")):
        if _is_image(path.name) and not path.is_dir():
            return f"images at another depth, as {path.relative_to(folder)}"
        if found == "empty":
            found = f"only other names, as {path.relative_to(folder)}"
    return found


def _read_split(
    files: list[tuple[Path, int]], split: str, wanted: int | None, config: DataConfig
) -> tuple[Tensor, Tensor, np.ndarray]:
    """uint8 [N, C, S, S], int64 [N], and how many of the images were put on white and how many were turned."""
    chosen = torch.arange(len(files))[subset(split, wanted, len(files))].tolist()
    channels, side = len(config.mean), config.stored_size
    images = np.empty((len(chosen), channels, side, side), np.uint8)

    def read(position: int) -> tuple[bool, bool]:
        decoded = decode(files[chosen[position]][0], channels, side)
        images[position] = decoded.pixels
        return decoded.composited, decoded.turned

    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as pool:
        counts = np.sum(list(pool.map(read, range(len(chosen)))), axis=0)
    return torch.from_numpy(images), torch.tensor([files[index][1] for index in chosen]), counts


def _notes(composited: int, turned: int) -> tuple[str, ...]:
    """The one line about all images of a data set, if there is anything to say."""
    parts = [
        f"{count} {'image was' if count == 1 else 'images were'} {what}"
        for count, what in (
            (composited, "put on white where they are transparent"),
            (turned, "turned as EXIF says"),
        )
        if count
    ]
    return (", ".join(parts),) if parts else ()
