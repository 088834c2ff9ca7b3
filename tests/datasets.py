"""Data sets for tests: their configurations, and small files in the published formats."""

import gzip
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgpipe.config import DataConfig
from fgpipe.data import load
from fgpipe.errors import UserError


def configured(name: str, root: Path | str = "data", /, **changes: Any) -> DataConfig:
    side = {"fashion_mnist": 28, "digits": 16, "digit_sums": 16}.get(name, 32)
    channels = 1 if name in ("fashion_mnist", "digits", "digit_sums") else 3
    values: dict[str, Any] = {
        "name": name, "root": str(root), "size": side, "stored_size": side, "augment": "none",
        "mean": [0.5] * channels, "std": [0.25] * channels,
    }  # fmt: skip
    return DataConfig(**(values | changes))


def refusal(config: DataConfig) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        load(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def python2_pickle(content: Mapping[str, object]) -> bytes:
    """Protocol 2 as Python 2 wrote CIFAR: byte strings where Python 3 has text, and `numpy.core`."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def item(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            state = b"K\x01(" + b"".join(b"J" + struct.pack("<i", side) for side in value.shape) + b"t"
            dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
            dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"  # no size, no alignment, no flags
            array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR("
            return array + state + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        if isinstance(value, list):
            return b"(" + b"".join(b"J" + struct.pack("<i", number) for number in value) + b"l"
        assert isinstance(value, str)
        return text(value.encode())

    return b"\x80\x02}(" + b"".join(text(key.encode()) + item(value) for key, value in content.items()) + b"u."


def write_cifar10(root: Path, count: int = 4) -> np.ndarray:
    """Five training batches and a test batch of `count` images each; the training rows."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        labels = [(number + sample) % 10 for sample in range(count)]
        content = {"batch_label": name, "labels": labels, "data": random_rows(count, number)}
        (folder / name).write_bytes(python2_pickle(content))
    return np.concatenate([random_rows(count, number) for number in range(5)])


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for number, name in enumerate(("train", "test")):
        content = {"data": random_rows(3, number), "fine_labels": [99, 0, 7], "coarse_labels": [1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_imagenet32(root: Path, **changes: object) -> None:
    for number, name in enumerate([*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]):
        content = {"data": random_rows(2, number), "labels": [1, 1000], "mean": np.linspace(0, 255, 3072)}
        (root / name).write_bytes(pickle.dumps(content | changes, protocol=4))


def write_fashion(folder: Path, *, zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", 6), ("t10k", 4))):
        images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
        files = {
            f"{split}-images-idx3-ubyte": struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">2I", 0x801, count) + bytes(range(count)),
        }
        for name, content in files.items():
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)


def write_image(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 10)).save(path)


def write_folders(root: Path, test: str = "test", size: tuple[int, int] = (32, 32)) -> None:
    """Classes "ant" (red 50), "bee" (red 150) and "cat" (red 250), two training images each and one for test."""
    for value, name in ((250, "cat"), (50, "ant"), (150, "bee")):
        write_image(root / "train" / name / "1.png", value, size)
        write_image(root / "train" / name / "2.JPG", value, size)
        write_image(root / test / name / "1.png", value, size)


def png_bytes(pixels: bytes, width: int, height: int, bits: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG file by its specification; `colour` is 0 (grey), 2 (RGB) or 3 (palette), `chunks` precede the pixels."""
    row = len(pixels) // height
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    parts = {b"IHDR": struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)}
    parts |= {name.encode(): content for name, content in chunks.items()} | {b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
    )


def tiff_bytes(pixels: bytes, width: int, height: int, bits: list[int], **tags: int) -> bytes:
    """An uncompressed little-endian TIFF file, of unsigned values with 0 for black unless `tags` say otherwise."""
    tags = {"photometric": 1, "sample_format": 1} | tags
    numbers = {"photometric": 262, "extra_samples": 338, "sample_format": 339}
    entries = {256: width, 257: height, 259: 1, 277: len(bits), 278: height, 279: len(pixels)}
    entries |= {numbers[name]: value for name, value in tags.items()}
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries[273] = start + 2 * len(bits)
    fields = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()}
    depth = struct.pack("<I", start) if len(bits) > 2 else struct.pack(f"<{len(bits)}H", *bits).ljust(4, b"\0")
    fields[258] = struct.pack("<HHI", 258, 3, len(bits)) + depth
    directory = struct.pack("<H", len(fields)) + b"".join(fields[tag] for tag in sorted(fields)) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + struct.pack(f"<{len(bits)}H", *bits) + pixels


def exif_bytes(orientation: int, *more: bytes) -> bytes:
    """EXIF with an orientation, and further entries of 12 bytes each in the order of their tags."""
    entries = [struct.pack("<HHIHH", 274, 3, 1, orientation, 0), *more]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
