"""Files that commands write: refused before the work where that can be known, and named after it where it cannot."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgpipe.errors import OutputError, bad_value, reason


@contextmanager
def needed(key: str, path: Path) -> Iterator[None]:
    """Guard the making of a folder, and of the files in it, that the work cannot begin without.

    Raises:
        UserError: they cannot be made; the line begins with `key=path`.
    """
    try:
        yield
    except OSError as error:
        raise bad_value(key, path, f"a folder to write in: {reason(error)}") from error


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Guard the writing of a file with results.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(unwritten(path, error)) from error


def unwritten(path: Path, error: OSError) -> str:
    """The line about a file that cannot be written."""
    return f"{path} cannot be written: {reason(error)}"


def check_folder(key: str, path: Path) -> None:
    """Find out whether files can be written to a folder that is there, or is to be made; nothing is left behind.

    Raises:
        UserError: they cannot; the line begins with `key=path`.
    """
    with needed(key, path):
        where = nearest(path)
        for name in path.absolute().relative_to(where).parts:
            (where / name).exists()  # raises what a name that is too long will raise
        _try_in(where)


def check_file(key: str, path: Path) -> None:
    """Find out whether `durable.write` can write a file, in a folder that is there; nothing is left behind.

    Raises:
        UserError: it cannot; the line begins with `key=path`.
    """
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise bad_value(key, path, "a file in a folder that exists")
        if path.is_file() or not path.exists():
            _try_in(path.resolve().parent)
    except OSError as error:
        raise bad_value(key, path, f"a file that can be written: {reason(error)}") from error


def _try_in(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"content")


def nearest(path: Path) -> Path:
    """The folder itself, or the innermost one above it that is there.

    Raises:
        OSError: it can be no path here, as a part of it is too long.
    """
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
