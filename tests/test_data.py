"""The data sets: every loader on small files in the real format and what is refused.

No test uses the network: `offline` stands in for the download.
"""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fgpipe
from fgpipe.config import CONFIGS, compose_config
from fgpipe.data import load
from fgpipe.data.unpickle import read_pickled_arrays
from fgpipe.errors import UserError
from tests.datasets import (
    configured,
    random_rows,
    refusal,
    write_cifar10,
    write_cifar100,
    write_fashion,
    write_folders,
    write_image,
    write_imagenet32,
)

pytestmark = pytest.mark.usefixtures("offline")


# Loaders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml")))
def test_every_data_config_composes(name: str) -> None:
    config = compose_config([f"data={name}"])
    assert config.data.name == {"cifar10_jpeg": "image_folder", "imagenette_64": "imagenette"}.get(name, name)
    assert config.optim.schedule != "step" or config.optim.step_epochs < config.epochs, "the rate drops at least once"


def test_digits_match_their_config() -> None:
    config = compose_config([]).data
    dataset = load(config)
    assert dataset.train_images.shape == (1437, 1, 16, 16) and dataset.test_images.shape == (360, 1, 16, 16)
    assert dataset.train_images.dtype == torch.uint8 and dataset.train_labels.dtype == torch.int64
    counts = torch.bincount(torch.cat([dataset.train_labels, dataset.test_labels])).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], "as the repository that they are from has them"
    values = dataset.train_images.double() / 255
    assert [round(values.mean().item(), 4), round(values.std().item(), 4)] == [config.mean[0], config.std[0]]


def test_digit_sums_match_their_config() -> None:
    config = compose_config(["data=digit_sums"]).data
    dataset = load(config)
    assert dataset.train_images.shape == (8000, 1, 16, 16) and dataset.test_images.shape == (2000, 1, 16, 16)
    assert dataset.classes == 10 and torch.bincount(dataset.train_labels).min() > 700
    values = dataset.train_images.double() / 255
    assert [round(values.mean().item(), 4), round(values.std().item(), 4)] == [config.mean[0], config.std[0]]


def test_digit_sums_are_sums_of_digits() -> None:
    """Both halves are found among the package's digits, whose labels add up; those of train and test are disjoint."""
    with np.load(Path(fgpipe.__file__).with_name("data") / "digits.npz") as file:
        labels = {
            np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): label
            for image, label in zip(*file.values(), strict=True)
        }
    dataset, seen = load(configured("digit_sums")), []
    for images, sums in (
        (dataset.train_images.numpy(), dataset.train_labels),
        (dataset.test_images.numpy(), dataset.test_labels),
    ):
        assert not images[:, 0, :4].any() and not images[:, 0, 12:].any()
        left, right = ([part.tobytes() for part in images[:, 0, 4:12, side]] for side in (slice(0, 8), slice(8, 16)))
        assert [(labels[a] + labels[b]) % 10 for a, b in zip(left, right, strict=True)] == sums.tolist()
        seen.append({*left, *right})
    assert not seen[0] & seen[1]
    assert len(seen[0]) > 1400 and len(seen[1]) > 350, "nearly all of 1,437 and of 360 are drawn"


def test_cifar10_as_python_2_wrote_it(tmp_path: Path) -> None:
    rows = write_cifar10(tmp_path)
    dataset = load(configured("cifar10", tmp_path))
    assert dataset.train_images.numpy().tobytes() == rows.tobytes()  # rows are the red, green and blue plane
    assert dataset.train_images.shape == (20, 3, 32, 32) and dataset.test_images.shape == (4, 3, 32, 32)
    assert dataset.train_labels[:6].tolist() == [0, 1, 2, 3, 1, 2] and dataset.classes == 10


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    dataset = load(configured("cifar100", tmp_path))
    assert dataset.train_labels.tolist() == [99, 0, 7] and dataset.classes == 100
    assert dataset.test_images.numpy().tobytes() == random_rows(3, 1).tobytes()


def test_imagenet32_labels_start_at_zero(tmp_path: Path) -> None:
    write_imagenet32(tmp_path)
    dataset = load(configured("imagenet32", tmp_path))
    assert dataset.train_labels.tolist() == [0, 999] * 10 and dataset.classes == 1000
    assert dataset.train_images[2:4].numpy().tobytes() == random_rows(2, 1).tobytes()


@pytest.mark.parametrize(("below", "zipped"), [("FashionMNIST/raw", True), ("FashionMNIST/raw", False), (".", True)])
def test_fashion_mnist(tmp_path: Path, below: str, zipped: bool) -> None:
    write_fashion(tmp_path / below, zipped=zipped)
    dataset = load(configured("fashion_mnist", tmp_path))
    assert dataset.train_images.shape == (6, 1, 28, 28) and dataset.test_images.shape == (4, 1, 28, 28)
    expected = np.random.default_rng(1).integers(0, 256, (4, 28, 28), np.uint8)
    assert dataset.test_images.numpy().tobytes() == expected.tobytes()
    assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder_labels_follow_the_names(tmp_path: Path, test: str) -> None:
    write_folders(tmp_path, test)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    dataset = load(configured("image_folder", tmp_path))
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2] and dataset.classes == 3
    assert dataset.test_images[:, 0, 16, 16].tolist() == [50, 150, 250]
    assert (dataset.train_images[:, 0, 16, 16].int() - torch.tensor([50, 50, 150, 150, 250, 250])).abs().max() <= 2


def test_image_folder_crops_the_centre(tmp_path: Path) -> None:
    """A wide image, 64x16, with a white middle of 24x16: the middle 16x16 is what is left."""
    write_folders(tmp_path)
    image = Image.new("L", (64, 16))
    image.paste(255, (20, 0, 44, 16))
    image.save(tmp_path / "test" / "ant" / "1.png")
    dataset = load(configured("image_folder", tmp_path, stored_size=8, size=8, mean=[0.5], std=[0.5]))
    assert dataset.test_images.shape == (3, 1, 8, 8) and dataset.test_images[0].float().mean() == 255


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".ppm", ".pnm",
                                    ".tif", ".tiff", ".webp"])  # fmt: skip
def test_names_of_images(tmp_path: Path, suffix: str) -> None:
    """All that are usual for a format count, in capitals too; the content decides which format a file has."""
    write_folders(tmp_path)
    for name in (f"3{suffix}", f"4{suffix.upper()}"):
        (tmp_path / "train" / "bee" / name).write_bytes((tmp_path / "train" / "bee" / "1.png").read_bytes())
    assert load(configured("image_folder", tmp_path)).train_labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


def test_links_count_as_what_they_lead_to(tmp_path: Path) -> None:
    """A class folder, and images; a folder with the name of an image is none."""
    write_folders(tmp_path / "elsewhere")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in ("ant", "bee"):
            (tmp_path / split / name).symlink_to(tmp_path / "elsewhere" / split / name)
    (tmp_path / "train" / "cat" / "folder.png").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "train" / "cat" / "1.png")
    dataset = load(configured("image_folder", tmp_path))
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2]
    assert dataset.train_images[:, 0, 16, 16].tolist()[::2] == [50, 150, 250]


def test_transparent_and_turned_images_are_counted(tmp_path: Path) -> None:
    """Of both splits, and of what is decoded alone; an alpha channel that is opaque everywhere changes nothing."""
    write_folders(tmp_path)
    assert load(configured("image_folder", tmp_path)).notes == ()
    for split, name, alpha in (("train", "ant", 0), ("train", "bee", 255), ("test", "cat", 254)):
        Image.new("RGBA", (32, 32), (0, 0, 0, alpha)).save(tmp_path / split / name / "1.png")
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "cat" / "2.JPG", exif=exif)
    dataset = load(configured("image_folder", tmp_path))
    assert dataset.notes == ("2 images were put on white where they are transparent, 1 image was turned as EXIF says",)
    assert dataset.train_images[0].min() == 255 and dataset.train_images[2].max() == 0


def test_imagenette_layout(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for value, name in ((10, "n01440764"), (200, "n03888257")):
            write_image(tmp_path / "imagenette2-160" / split / name / f"{name}_1.JPEG", value, (213, 160))
    dataset = load(configured("imagenette", tmp_path, stored_size=160, augment="resized_crop_flip", size=128))
    same = load(
        configured("imagenette", tmp_path / "imagenette2-160", stored_size=160, augment="resized_crop_flip", size=128)
    )
    assert torch.equal(same.train_images, dataset.train_images)
    assert dataset.train_images.shape == (2, 3, 160, 160) and dataset.test_labels.tolist() == [0, 1]


# Refusals -----------------------------------------------------------------------------------------------------


class Malicious:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Malicious(tmp_path / "created"), "labels": []}, protocol))
    message = refusal(configured("cifar10", tmp_path))
    assert str(batch) in message and "open" in message
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("value", [np.array([{}], dtype=object), np.zeros(2, "V8"), np.zeros(2, [("x", "i4")])])
def test_arrays_of_other_than_numbers_are_refused(tmp_path: Path, value: np.ndarray) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"data": value}, protocol=2))
    with pytest.raises(UserError, match="not allowed"):
        read_pickled_arrays(tmp_path / "file")


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)),
                                   np.arange(4, dtype=">i2"), np.ones(3, bool)])  # fmt: skip
def test_unpickled_arrays_are_numpys(tmp_path: Path, value: np.ndarray, protocol: int) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"data": value, "scalar": np.float32(1.5)}, protocol))
    content = read_pickled_arrays(tmp_path / "file")
    assert content["data"].dtype == value.dtype and content["scalar"] == 1.5
    np.testing.assert_array_equal(content["data"], value)


@pytest.mark.parametrize(
    "content",
    [
        {"data": random_rows(4, 0), "labels": [0, 1, 2, 10]},
        {"data": random_rows(4, 0), "labels": [0, 1, 2, -1]},
        {"data": random_rows(4, 0), "labels": [0, 1, 2]},
        {"data": random_rows(4, 0), "labels": [0, 1, 2, 0.5]},
        {"data": random_rows(4, 0), "labels": [[0], [1, 2]]},
        {"data": random_rows(4, 0)},
        {"data": random_rows(4, 0)[:, :3000], "labels": [0] * 4},
        {"data": random_rows(4, 0).astype(float), "labels": [0] * 4},
        {"data": "text", "labels": []},
        {"labels": [0]},
        ["no", "dictionary"],
    ],
)
def test_corrupt_cifar_batch_is_named(tmp_path: Path, content: object) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps(content, protocol=2))
    assert str(batch) in refusal(configured("cifar10", tmp_path))


def test_truncated_and_absent_cifar_batches_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:5000])
    assert str(batch) in refusal(configured("cifar10", tmp_path))
    batch.unlink()
    assert str(batch) in refusal(configured("cifar10", tmp_path))


def test_imagenet32_label_0_is_refused(tmp_path: Path) -> None:
    write_imagenet32(tmp_path, labels=[0, 1000])
    message = refusal(configured("imagenet32", tmp_path))
    assert "train_data_batch_1: corrupt: label 0: allowed: 1 to 1000" in message


@pytest.mark.parametrize("damage", ["truncated", "not_gzip", "wrong_shape", "label", "absent"])
def test_corrupt_fashion_mnist_is_named(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path / "FashionMNIST" / "raw")
    kind = "labels-idx1" if damage == "label" else "images-idx3"
    path = tmp_path / "FashionMNIST" / "raw" / f"train-{kind}-ubyte.gz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "not_gzip":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "wrong_shape":
        path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 6, 14, 56) + bytes(6 * 784)))
    elif damage == "label":
        path.write_bytes(gzip.compress(struct.pack(">2I", 0x801, 6) + bytes([0, 1, 2, 3, 4, 10])))
    else:
        path.unlink()
    assert str(path) in refusal(configured("fashion_mnist", tmp_path))


def test_truncated_image_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    path = tmp_path / "train" / "bee" / "2.JPG"
    path.write_bytes(path.read_bytes()[:-200])
    assert str(path) in refusal(configured("image_folder", tmp_path))


def test_postscript_under_another_name_is_refused(tmp_path: Path) -> None:
    """Pillow would hand EPS to Ghostscript."""
    write_folders(tmp_path)
    path = tmp_path / "train" / "bee" / "2.JPG"
    with open(path, "wb") as file:
        Image.new("RGB", (32, 32)).save(file, "EPS")
    assert str(path) in refusal(configured("image_folder", tmp_path))


def test_folders_that_are_missing_empty_or_without_a_class(tmp_path: Path) -> None:
    assert "train/<class>/" in refusal(configured("image_folder", tmp_path))
    (tmp_path / "train" / "ant").mkdir(parents=True)
    assert "no folder test or val" in refusal(configured("image_folder", tmp_path))
    (tmp_path / "test").mkdir()
    assert f"{tmp_path / 'train'}: no images" in refusal(configured("image_folder", tmp_path))
    write_folders(tmp_path)
    write_image(tmp_path / "test" / "dog" / "1.png", 1)
    assert str(tmp_path / "test" / "dog") in refusal(configured("image_folder", tmp_path))


LACKING = {
    "empty": (lambda folder: None, "empty"),
    "one folder deeper": (
        lambda folder: write_image(folder / "photos" / "1.png", 1),
        "images at another depth, as photos/1.png",
    ),
    "two folders deeper": (
        lambda folder: write_image(folder / "a" / "b" / "1.png", 1),
        "images at another depth, as a/b/1.png",
    ),
    "another suffix": (lambda folder: (folder / "1.heic").write_text(""), "only other names, as 1.heic"),
    "a dot in front": (lambda folder: write_image(folder / "._1.png", 1), "only other names, as ._1.png"),
    "a folder with the name of an image": (lambda folder: (folder / "1.png").mkdir(), "only other names, as 1.png"),
}
"""What a folder holds that has no image, and what is said of it."""


@pytest.mark.parametrize("case", LACKING)
@pytest.mark.parametrize("name", ["bee", "__MACOSX", "lost+found"])
def test_class_without_training_images_is_named(tmp_path: Path, name: str, case: str) -> None:
    """The classifier would have an output that nothing trains."""
    fill, found = LACKING[case]
    write_folders(tmp_path)
    folder = tmp_path / "train" / name
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    fill(folder)
    message = refusal(configured("image_folder", tmp_path))
    assert message.startswith(f"{folder}: class without training images: {found}: allowed: <class>/<file> with .jpg, ")


def test_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    """As long as another has some; none at all is refused, with what is there."""
    write_folders(tmp_path)
    (tmp_path / "test" / "bee" / "1.png").unlink()
    assert load(configured("image_folder", tmp_path)).test_labels.tolist() == [0, 2]
    for name in ("ant", "cat"):
        (tmp_path / "test" / name / "more").mkdir()
        (tmp_path / "test" / name / "1.png").rename(tmp_path / "test" / name / "more" / "1.png")
    message = refusal(configured("image_folder", tmp_path))
    assert message.startswith(f"{tmp_path / 'test'}: no images: images at another depth, as ant/more/1.png: allowed: ")


def test_links_to_nothing_and_pipes_are_named(tmp_path: Path) -> None:
    """A class that is a broken link would vanish, a pipe would be waited for."""
    write_folders(tmp_path)
    pipe = tmp_path / "train" / "cat" / "3.png"
    os.mkfifo(pipe)
    assert refusal(configured("image_folder", tmp_path)).startswith(f"{pipe}: not a readable image: allowed: a file")
    pipe.unlink()
    pipe.symlink_to(tmp_path / "nothing")
    assert refusal(configured("image_folder", tmp_path)).startswith(f"{pipe}: not a readable image: allowed: a file")
    for split in ("test", "train"):
        (tmp_path / split / "dog").symlink_to(tmp_path / "nothing")
        assert refusal(configured("image_folder", tmp_path)).startswith(f"{tmp_path / split / 'dog'}: link to nothing")


def test_missing_imagenet32(tmp_path: Path) -> None:
    message = refusal(configured("imagenet32", tmp_path))
    assert "train_data_batch_1 to train_data_batch_10 and val_data" in message and str(tmp_path) in message


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("cifar10", "fashion_mnist", "image_folder"):
        assert str(tmp_path / "file") in refusal(configured(name, tmp_path / "file"))


def test_keys_that_do_not_fit_the_images() -> None:
    three = [0.5] * 3
    assert refusal(configured("digits", mean=three, std=three)).startswith("data.mean=[0.5, 0.5, 0.5]: allowed: 1 ")
    assert refusal(configured("cifar10", mean=[0.5], std=[0.5])).startswith("data.mean=[0.5]: allowed: 3 ")
    assert "1 or 3 numbers" in refusal(configured("image_folder", mean=[0.5] * 2, std=[0.5] * 2))
    assert refusal(configured("cifar10", stored_size=16, size=16)).startswith("data.stored_size=16: allowed: 32")


# Subsets ------------------------------------------------------------------------------------------------------


def test_subsets_are_fixed_and_nested() -> None:
    whole, small = load(configured("digits")), load(configured("digits", train_samples=50, test_samples=20))
    larger = load(configured("digits", train_samples=80))
    assert small.train_images.shape[0] == 50 and small.test_labels.shape == (20,)
    assert torch.equal(small.train_images, larger.train_images[:50])
    kept = {image.numpy().tobytes() for image in whole.train_images}
    assert all(image.numpy().tobytes() in kept for image in small.train_images)


@pytest.mark.parametrize("samples", [50, None])
def test_held_out_images_are_training_images_that_are_not_trained_on(samples: int | None) -> None:
    whole, held = load(configured("digits")), load(configured("digits", train_samples=samples, held_out=200))
    train, tested, test = (
        {image.numpy().tobytes() for image in images}
        for images in (whole.train_images, held.test_images, whole.test_images)
    )
    kept = {image.numpy().tobytes() for image in held.train_images}
    assert len(held.test_labels) == 200 and len(held.train_labels) == (samples or 1237)
    assert tested <= train and kept <= train and not tested & kept and not tested & test
    assert torch.equal(held.test_images, load(configured("digits", train_samples=30, held_out=200)).test_images)
    if samples:
        assert torch.equal(held.train_images, load(configured("digits", train_samples=samples)).train_images)


def test_more_images_held_out_than_are_left() -> None:
    message = refusal(configured("digits", train_samples=1800, held_out=38))
    assert message == "data.train_samples=1800: allowed: less than 1437, the samples that exist, or null"
    message = refusal(configured("digits", train_samples=1400, held_out=38))
    assert message == "data.held_out=38: allowed: at most 37, the training images that are left, or null"


@pytest.mark.parametrize(("split", "available"), [("train", 1437), ("test", 360)])
def test_more_samples_than_there_are(split: str, available: int) -> None:
    message = refusal(configured("digits", **{f"{split}_samples": available + 1}))
    assert message.startswith(f"data.{split}_samples={available + 1}: allowed: 1 to {available}")
    assert len(getattr(load(configured("digits", **{f"{split}_samples": available})), f"{split}_labels")) == available


@pytest.mark.parametrize(("name", "classes"), [("image_folder", 3), ("digits", 10)])
@pytest.mark.parametrize("samples", [1, 2, 6, None])
def test_subset_without_a_class_is_noted(tmp_path: Path, name: str, classes: int, samples: int | None) -> None:
    """Of any data set; the number of classes stays that of the whole."""
    write_folders(tmp_path)
    dataset = load(configured(name, tmp_path, train_samples=samples))
    absent = classes - len(set(dataset.train_labels.tolist()))
    warning = f"warning: data.train_samples={samples} has no image of {absent} of {classes} classes"
    assert dataset.notes == ((warning,) if absent else ()) and dataset.classes == classes


def test_image_folder_decodes_the_subset_alone(tmp_path: Path) -> None:
    write_folders(tmp_path)
    dataset = load(configured("image_folder", tmp_path, train_samples=2))
    for path in (tmp_path / "train").rglob("*.*"):
        content = path.read_bytes()
        path.write_bytes(b"corrupt")
        try:
            again = load(configured("image_folder", tmp_path, train_samples=2))
        except UserError:
            path.write_bytes(content)  # one of the two
        else:
            assert torch.equal(again.train_images, dataset.train_images)
    corrupt = [path for path in (tmp_path / "train").rglob("*.*") if path.read_bytes() == b"corrupt"]
    assert len(corrupt) == 4
