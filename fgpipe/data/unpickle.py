"""Arrays from pickle files without trusting them.

CIFAR and ImageNet32 are published as pickles, and `pickle.load` runs whatever code a file names. This reader
knows seven names: those with which numpy arrays are pickled. Each stands for a function of this module, so that
not even numpy's own reconstruction sees what the file says.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from fgpipe.data.dataset import reason
from fgpipe.errors import UserError


class _Dtype:
    """Stands for `numpy.dtype`: booleans, integers and floats only."""

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch("[biuf][1248]", name):
            raise pickle.UnpicklingError(f"arrays of dtype {name!r} are not allowed")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for a `numpy.ndarray` under reconstruction; `value` is read-only."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = np.frombuffer(_to_bytes(raw), dtype.value).reshape(shape, order="F" if fortran else "C")


def _to_bytes(text: str | bytes, *_: Any) -> bytes:
    """Stands for `_codecs.encode`; protocol 2 writes bytes as Latin-1 text."""
    return text.encode("latin1") if isinstance(text, str) else text


def _scalar(dtype: _Dtype, raw: str | bytes) -> Any:
    return np.frombuffer(_to_bytes(raw), dtype.value)[0]


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _to_bytes,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
        return _ALLOWED[module, name]


def read_pickled_arrays(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle file of Python 2 or 3, with numpy arrays among its values.

    Raises:
        UserError: naming the file, if it is unreadable, no dictionary, or names anything but arrays. No code
            that the file names is run.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a corrupt pickle can raise anything
        raise UserError(f"{path}: refused or corrupt: {reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: corrupt: allowed: a pickled dictionary")
    return {key: value.value if isinstance(value, _Array) else value for key, value in content.items()}
