"""Data sets as uint8 tensors, and seeded batches of them."""

from fgpipe.data.batches import Batches
from fgpipe.data.dataset import Dataset
from fgpipe.data.sources import load

__all__ = ["Batches", "Dataset", "load"]
