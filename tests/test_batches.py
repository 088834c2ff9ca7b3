"""Batches: shapes, order, subsets of a replica, normalisation, and augmentation against torchvision."""

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import functional

from fgpipe.config import DataConfig
from fgpipe.config.rng import generator
from fgpipe.data import Batches, Dataset, augment
from fgpipe.errors import UserError
from tests.datasets import configured


def random_dataset(samples: int = 50, channels: int = 3, side: int = 32) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, channels, side, side), generator=rng, dtype=torch.uint8)
    labels = torch.arange(samples)
    return Dataset(images, labels, images[:21], labels[:21], samples)


AUGMENTS = {
    "none": configured("cifar10"),
    "crop_flip": configured("cifar10", augment="crop_flip"),
    "resized_crop_flip": configured("image_folder", augment="resized_crop_flip", size=24),
}


@pytest.mark.parametrize("augmentation", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_layout_and_random_access(augmentation: str, channels: int, dtype: torch.dtype) -> None:
    """Any batch is the same in any order of access and from another object; seeds, epochs and batches differ."""
    config = DataConfig(**vars(AUGMENTS[augmentation]) | {"mean": [0.5] * channels, "std": [0.25] * channels})
    dataset = random_dataset(channels=channels)
    batches = Batches(dataset, config, 8, 3, dtype)
    assert (batches.train_batches, batches.test_batches) == (6, 3)
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    in_order = {key: batches.train(*key) for key in keys}
    other = Batches(dataset, config, 8, 3, dtype)
    for key in reversed(keys):
        images, labels = other.train(*key)
        assert images.shape == (8, channels, config.size, config.size) and images.dtype == dtype
        assert images.is_contiguous(memory_format=torch.channels_last) and labels.dtype == torch.int64
        assert torch.equal(images, in_order[key][0]) and torch.equal(labels, in_order[key][1])
    seen = torch.cat([in_order[0, index][1] for index in range(6)]).tolist()
    assert len(set(seen)) == 48
    assert seen != torch.cat([in_order[1, index][1] for index in range(6)]).tolist()
    assert not torch.equal(Batches(dataset, config, 8, 4, dtype).train(0, 0)[1], in_order[0, 0][1])
    last, labels = batches.test(2)
    assert last.shape == (5, channels, config.size, config.size) and labels.tolist() == [16, 17, 18, 19, 20]
    assert last.dtype == dtype and last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augmentation", AUGMENTS)
def test_shares_are_the_whole_batch(augmentation: str) -> None:
    """Shares of a training batch, put together, are the batch; those of the test part have each sample once."""
    dataset, config = random_dataset(), AUGMENTS[augmentation]
    whole = Batches(dataset, config, 12, 3)
    shares = [Batches(dataset, config, 12, 3, share=share, shares=3) for share in range(3)]
    for parts, together in zip(
        zip(*(each.train(1, 2) for each in shares), strict=True), whole.train(1, 2), strict=True
    ):
        assert [len(part) for part in parts] == [4, 4, 4] and torch.equal(torch.cat(parts), together)
    assert {each.train_batches for each in shares} == {whole.train_batches} and shares[0].test_batches == 6
    tested = [[each.test(index) for index in range(2)] for each in shares]
    in_order = [tested[index % 3][index // 3] for index in range(6)]
    assert torch.cat([labels for _, labels in in_order]).tolist() == list(range(21))
    images = torch.cat([whole.test(index)[0] for index in range(whole.test_batches)])
    assert torch.equal(torch.cat([images for images, _ in in_order]), images)
    with pytest.raises(IndexError):
        shares[0].test(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_is_torchvisions(dtype: torch.dtype) -> None:
    config = configured("cifar10", mean=[0.1, 0.5, 0.9], std=[0.2, 0.3, 0.4])
    dataset = random_dataset()
    batches = Batches(dataset, config, 10, 0, dtype)
    expected = functional.normalize(dataset.test_images[:10].to(dtype) / 255, config.mean, config.std)
    assert torch.equal(batches.test(0)[0], expected)
    images, labels = batches.train(0, 0)
    expected = functional.normalize(dataset.train_images[labels].to(dtype) / 255, config.mean, config.std)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("padding", [0, 4])
def test_crop_flip_is_torchvisions_on_each_sample(padding: int) -> None:
    """Black padding, crop, flip, and only then normalisation; equal to the bit."""
    config = configured("cifar10", augment="crop_flip", padding=padding)
    dataset = random_dataset(64)
    images, labels = Batches(dataset, config, 64, 5).train(1, 0)
    boxes = augment.draw_crops(generator(5, "augment", 1, 0), 64, 32, padding)
    for sample, label in enumerate(labels):
        image = functional.pad(dataset.train_images[label], padding)
        image = functional.crop(image, int(boxes.tops[sample]), int(boxes.lefts[sample]), 32, 32)
        image = functional.hflip(image) if boxes.flips[sample] else image
        expected = functional.normalize(image.float() / 255, config.mean, config.std)
        assert torch.equal(images[sample], expected)
    assert 0 < boxes.flips.sum() < 64
    assert set(boxes.tops.tolist()) | set(boxes.lefts.tolist()) == set(range(2 * padding + 1))


@pytest.mark.parametrize(("stored", "size"), [(40, 32), (32, 32)])
def test_resized_crop_flip_is_torchvisions_on_each_sample(stored: int, size: int) -> None:
    """float64, so that the tolerance (in units of 1/255) is rounding of the sampling positions alone."""
    config = configured("image_folder", augment="resized_crop_flip", stored_size=stored, size=size, mean=[0] * 3,
                        std=[1 / 255] * 3)  # fmt: skip
    dataset = random_dataset(64, side=stored)
    images, labels = Batches(dataset, config, 64, 5, torch.float64).train(1, 0)
    boxes = augment.draw_resized_crops(generator(5, "augment", 1, 0), 64, stored)
    for sample, label in enumerate(labels):
        top, left, height, width = (
            int(values[sample]) for values in (boxes.tops, boxes.lefts, boxes.heights, boxes.widths)
        )
        image = dataset.train_images[label].double()
        expected = functional.resized_crop(image, top, left, height, width, [size, size], antialias=False)
        expected = functional.hflip(expected) if boxes.flips[sample] else expected
        torch.testing.assert_close(images[sample], expected, rtol=0, atol=1e-9)


def test_drawn_boxes_have_the_stated_distribution() -> None:
    """10,000 draws for side 100: inside the image, area and ratio in range up to rounding, both sides of 1."""
    boxes = augment.draw_resized_crops(torch.Generator().manual_seed(0), 10_000, 100)
    assert (boxes.tops >= 0).all() and (boxes.tops + boxes.heights).max() == 100
    assert (boxes.lefts >= 0).all() and (boxes.lefts + boxes.widths).max() == 100
    areas, ratios = boxes.heights * boxes.widths / 100**2, boxes.widths / boxes.heights
    assert 0.075 < areas.min() < 0.09 and areas.max() > 0.95
    assert 0.72 < ratios.min() < 0.77 and 1.3 < ratios.max() < 1.38
    assert ratios.log().mean().abs() < 0.01
    assert abs(boxes.flips.float().mean() - 0.5) < 0.025  # five standard deviations


def test_centre_crop_of_test_images() -> None:
    images = torch.zeros(1, 3, 160, 160, dtype=torch.uint8)
    images[..., 20:140, 20:140] = 255
    cropped = augment.centre_crop(images, 128)  # shrunk to 146 by 146; the white part is then 18.25 to 127.75
    assert cropped.shape == (1, 3, 128, 128)
    assert (cropped[0, 0, :, 64] > 127).nonzero()[[0, -1], 0].tolist() == [9, 118]
    assert torch.equal(augment.centre_crop(images, 160), images)


def test_batch_larger_than_the_training_part() -> None:
    with pytest.raises(UserError, match=r"^batch_size=51: allowed: at most 50, .*data\.train_samples=None"):
        Batches(random_dataset(), configured("cifar10"), 51, 0)


@pytest.mark.parametrize("index", [-1, 5])
def test_batches_that_do_not_exist(index: int) -> None:
    batches = Batches(random_dataset(), configured("cifar10"), 10, 0)
    for draw in (lambda: batches.train(0, index), lambda: batches.test(index)):
        with pytest.raises(IndexError, match=f"batch {index}"):
            draw()


def test_notes_are_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    """By the first of the shares, and not where a line says why there are no batches."""
    dataset, config = replace(random_dataset(), notes=("one", "warning: two")), configured("cifar10")
    for share in range(3):
        Batches(dataset, config, 12, 0, share=share, shares=3)
    with pytest.raises(UserError):
        Batches(dataset, config, 51, 0)
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "fgpipe: one\nfgpipe: warning: two\n")
