"""Seeded batches: any process can draw any batch of any epoch, in any order."""

import sys

import torch
from torch import Tensor

from fgpipe.config import DataConfig
from fgpipe.config.rng import generator
from fgpipe.data import augment
from fgpipe.data.dataset import Dataset
from fgpipe.errors import bad_value


class Batches:
    """Turns a data set into normalised, augmented batches that depend on (seed, epoch, index) alone.

    The data set's notes are written to stderr, with the first share alone, so that a run says them once.

    Args:
        seed: of the order of samples and of the augmentation.
        dtype: of the images, float32 or float64.
        share, shares: which part of every training batch, and which of the test batches, are given here.

    Raises:
        UserError: the training samples do not fill one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        batch_size: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        *,
        share: int = 0,
        shares: int = 1,
    ) -> None:
        samples = len(dataset.train_labels)
        if batch_size > samples:
            allowed = f"at most {samples}, the training samples (data.train_samples={config.train_samples})"
            raise bad_value("batch_size", batch_size, allowed)
        self.train_batches = samples // batch_size
        """Batches per epoch; the incomplete last one is dropped."""
        self.test_batches = -(-len(dataset.test_labels) // (batch_size // shares))
        """Batches of the test part, of all shares; the last may be smaller."""
        self._dataset = dataset
        self._config = config
        self._batch_size, self._share, self._shares = batch_size, share, shares
        self._seed = seed
        self._dtype = dtype
        self._mean = torch.tensor(config.mean, dtype=dtype)[:, None, None]
        self._std = torch.tensor(config.std, dtype=dtype)[:, None, None]
        self._epoch: int | None = None
        self._order = torch.empty(0)
        if share == 0:
            for note in dataset.notes:
                print(f"fgpipe: {note}", file=sys.stderr, flush=True)

    def train(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Batch `index` of an epoch: images [B, C, size, size] (channels last), labels int64 [B].

        The order and the augmentation are those of the whole batch, whatever the number of shares.

        Raises:
            IndexError: the epoch has no such batch.
        """
        indices = self._epoch_order(epoch)[_range(index, self.train_batches, self._batch_size)]
        images, config = self._dataset.train_images[indices], self._config
        side = images.shape[-1]
        rng = generator(self._seed, "augment", epoch, index)
        if config.augment == "crop_flip":
            images = augment.crop_flip(
                images, augment.draw_crops(rng, len(indices), side, config.padding), config.padding
            )
        elif config.augment == "resized_crop_flip":
            boxes = augment.draw_resized_crops(rng, len(indices), side)
            images = augment.resized_crop_flip(images.to(self._dtype), boxes, config.size)
        size = self._batch_size // self._shares
        own = slice(self._share * size, (self._share + 1) * size)
        return self._normalise(images[own]), self._dataset.train_labels[indices[own]]

    def test(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch `index` of this share of the test part, as `train` gives it but in the data set's order and not augmented.

        Of D shares the first has batches 0, D, 2 D ... of the test part, each as large as a share of a training batch.

        With `augment=resized_crop_flip` the images are shrunk and cropped at the centre (`augment.centre_crop`).

        Raises:
            IndexError: the test part has no such batch.
        """
        index = index * self._shares + self._share
        batch = _range(index, self.test_batches, self._batch_size // self._shares)
        images = self._dataset.test_images[batch]
        if self._config.augment == "resized_crop_flip":
            images = augment.centre_crop(images, self._config.size)
        return self._normalise(images), self._dataset.test_labels[batch]

    def _epoch_order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, int64 [N]; the last one is kept."""
        if epoch != self._epoch:
            rng = generator(self._seed, "order", epoch)
            self._order = torch.randperm(len(self._dataset.train_labels), generator=rng)
            self._epoch = epoch
        return self._order

    def _normalise(self, images: Tensor) -> Tensor:
        """Bring 0..255 to 0..1, then normalise by the mean and standard deviation of each channel; channels last."""
        images = (images.to(self._dtype) / 255).sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=torch.channels_last)  # last: arithmetic is faster on whole planes


def _range(index: int, batches: int, size: int) -> slice:
    if not 0 <= index < batches:
        raise IndexError(f"batch {index}: allowed: 0 to {batches - 1}")
    return slice(index * size, (index + 1) * size)
