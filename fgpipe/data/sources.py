"""The data sets by name: where their files are and how they are laid out.

torchvision is imported where it is used, as that takes long, and only the process of block 0 reads images.
"""

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from fgpipe.config import DataConfig
from fgpipe.data import digits
from fgpipe.data.dataset import Dataset, checked_labels, held_out, reason, subset
from fgpipe.data.fetch import Published, locate
from fgpipe.data.folders import read_folders
from fgpipe.data.unpickle import read_pickled_arrays
from fgpipe.errors import UserError, bad_value

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 [N, C, S, S] and labels int64 [N]."""


@dataclass(frozen=True)
class Source:
    """Way to read one data set."""

    read: Callable[[Path, DataConfig], Dataset]
    """Takes the expanded `data.root`."""
    channels: tuple[int, ...]
    side: int | None = None
    """Side in pixels of the published images, which are kept as they are; None: they are resized."""


def load(config: DataConfig) -> Dataset:
    """Read a data set into memory; downloads it into `data.root` if it is absent and can be had.

    Subsets (`train_samples`, `test_samples`) and the split of the digits do not depend on the run's seed. A class
    that `train_samples` leaves without a training image is noted and not refused: subsets are for trials of speed or
    set-up, where the net has to have its real number of outputs, and a smaller one must be the beginning of a larger.

    Raises:
        UserError: one line that names the key or the file: absent or corrupt files, more samples than there
            are, or a `mean` or `stored_size` that does not fit the images.
    """
    source = SOURCES[config.name]
    if len(config.mean) not in source.channels:
        allowed = " or ".join(map(str, source.channels))
        raise bad_value("data.mean", list(config.mean), f"{allowed} numbers, one per channel, with data={config.name}")
    if source.side not in (None, config.stored_size):
        raise bad_value("data.stored_size", config.stored_size, f"{source.side} with data={config.name}")
    try:
        if config.held_out is None:
            dataset = source.read(Path(config.root), config)
        else:
            whole = source.read(Path(config.root), replace(config, train_samples=None))
            dataset = held_out(whole, config.held_out, config.train_samples)
    except OSError as error:
        raise UserError(f"data.root={config.root}: {reason(error)}") from error
    untrained = dataset.classes - len(dataset.train_labels.unique())
    if config.train_samples is None or not untrained:
        return dataset
    note = (
        f"warning: data.train_samples={config.train_samples} has no image of {untrained} of {dataset.classes} classes"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _dataset(train: Arrays, test: Arrays, classes: int, config: DataConfig) -> Dataset:
    """The configured subsets of both parts."""
    kept_train = subset("train", config.train_samples, len(train[1]))
    kept_test = subset("test", config.test_samples, len(test[1]))
    train_images, train_labels = (torch.from_numpy(array)[kept_train] for array in train)
    test_images, test_labels = (torch.from_numpy(array)[kept_test] for array in test)
    return Dataset(train_images, train_labels, test_images, test_labels, classes)


def _digits(root: Path, config: DataConfig) -> Dataset:
    train, test = (digits.one(part, config.stored_size) for part in ("train", "test"))
    return _dataset(train, test, digits.CLASSES, config)


def _digit_sums(root: Path, config: DataConfig) -> Dataset:
    return _dataset(digits.sums("train"), digits.sums("test"), digits.CLASSES, config)


def _read_batches(paths: list[Path], label_key: str, classes: int, first: int = 0) -> Arrays:
    """Concatenate pickled batches of 32x32 RGB images.

    Each is a dictionary: "data" is uint8 [N, 3072], each row the red, green and blue plane; `label_key` is a
    list of N labels, which start at `first`.
    """
    parts = []
    for path in paths:
        content = read_pickled_arrays(path)
        data = content.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(f'{path}: corrupt: allowed: "data" of uint8 with shape [N, 3072]')
        parts.append((data, checked_labels(content.get(label_key), path, len(data), classes, first)))
    labels = np.concatenate([part_labels for _, part_labels in parts])
    images = np.empty((len(labels), 3, 32, 32), np.uint8)
    end = len(labels)
    while parts:  # frees each part once it is copied: ImageNet32 takes 4 GB
        data, _ = parts.pop()
        images[end - len(data) : end] = data.reshape(-1, 3, 32, 32)
        end -= len(data)
    return images, labels


def _cifar10(root: Path, config: DataConfig) -> Dataset:
    from torchvision.datasets import CIFAR10

    folder = locate(root, Published(CIFAR10.base_folder, ((CIFAR10.url, CIFAR10.tgz_md5),)))
    train = _read_batches([folder / f"data_batch_{number}" for number in range(1, 6)], "labels", 10)
    return _dataset(train, _read_batches([folder / "test_batch"], "labels", 10), 10, config)


def _cifar100(root: Path, config: DataConfig) -> Dataset:
    from torchvision.datasets import CIFAR100

    folder = locate(root, Published(CIFAR100.base_folder, ((CIFAR100.url, CIFAR100.tgz_md5),)))
    train = _read_batches([folder / "train"], "fine_labels", 100)
    return _dataset(train, _read_batches([folder / "test"], "fine_labels", 100), 100, config)


def _imagenet32(root: Path, config: DataConfig) -> Dataset:
    """Chrabaszcz et al., "A downsampled variant of ImageNet"; labels in the files start at 1."""
    train = [root / f"train_data_batch_{number}" for number in range(1, 11)]
    absent = [path.name for path in (*train, root / "val_data") if not path.is_file()]
    if absent:
        raise UserError(
            f"data.root={root}: {absent[0]} not found, and ImageNet32 needs an account to download (image-net.org); "
            f"put train_data_batch_1 to train_data_batch_10 and val_data into {root}"
        )
    arrays = _read_batches(train, "labels", 1000, first=1)
    return _dataset(arrays, _read_batches([root / "val_data"], "labels", 1000, first=1), 1000, config)


def _fashion_mnist(root: Path, config: DataConfig) -> Dataset:
    """The four idx files, gzipped or not, in `FashionMNIST/raw` below the root or in the root itself."""
    from torchvision.datasets import FashionMNIST

    files = tuple((FashionMNIST.mirrors[0] + name, md5) for name, md5 in FashionMNIST.resources)
    published = Published("FashionMNIST/raw", files)
    names = [name.removesuffix(".gz") for name in published.names]
    in_root = any((root / f"{names[0]}{suffix}").is_file() for suffix in ("", ".gz"))
    folder = root if in_root else locate(root, published)
    train = _read_fashion_part(folder, names[0], names[1])
    return _dataset(train, _read_fashion_part(folder, names[2], names[3]), 10, config)


def _read_fashion_part(folder: Path, image_name: str, label_name: str) -> Arrays:
    path, images = _read_idx(folder, image_name, 3)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{path}: corrupt: images of {images.shape[1:]}: allowed: (28, 28)")
    path, labels = _read_idx(folder, label_name, 1)
    return images[:, None].copy(), checked_labels(labels, path, len(images), 10)


def _read_idx(folder: Path, name: str, dimensions: int) -> tuple[Path, np.ndarray]:
    """The path of an idx file (`name` or `name.gz`) and its content: uint8 with that many dimensions.

    Layout: two zero bytes, 8 for uint8, the number of dimensions, each dimension as big-endian uint32, data.
    """
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: absent or corrupt: {reason(error)}") from error
    start = 4 + 4 * dimensions
    if magic != 0x800 + dimensions or len(content) - start != prod(shape):
        raise UserError(f"{path}: corrupt: allowed: an idx file of bytes with {dimensions} dimensions")
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _imagenette(root: Path, config: DataConfig) -> Dataset:
    """fast.ai's ten ImageNet classes, with shorter sides of 160 pixels; or another copy, of any size, in the root itself."""
    if (root / "train").is_dir():
        return read_folders(root, config)
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
    published = Published("imagenette2-160", ((url, "e793b78cc4c9e9a4ccc0c1155377a412"),))
    return read_folders(locate(root, published), config)


SOURCES = {
    "digits": Source(_digits, channels=(1,)),
    "digit_sums": Source(_digit_sums, channels=(1,), side=2 * digits.SIDE),
    "cifar10": Source(_cifar10, channels=(3,), side=32),
    "cifar100": Source(_cifar100, channels=(3,), side=32),
    "fashion_mnist": Source(_fashion_mnist, channels=(1,), side=28),
    "imagenette": Source(_imagenette, channels=(3,)),
    "imagenet32": Source(_imagenet32, channels=(3,), side=32),
    "image_folder": Source(read_folders, channels=(1, 3)),
}
