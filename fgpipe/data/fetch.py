"""Published files: found below `data.root`, unpacked there from their archive, or downloaded."""

import fcntl
import os
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from fgpipe.data.dataset import reason
from fgpipe.errors import UserError

SILENCE = 10.0
"""Seconds without a byte after which a download is given up."""


@dataclass(frozen=True)
class Published:
    """Files as their authors publish them."""

    folder: str
    """Folder below `data.root` that holds the files once they are there."""
    files: tuple[tuple[str, str], ...]
    """URL and MD5 of each: one .tar.gz or .tgz that contains `folder`, or the files of `folder` themselves."""

    @property
    def names(self) -> list[str]:
        """File names, without the URL's path."""
        return [url.rsplit("/", 1)[-1] for url, _ in self.files]


def locate(root: Path, published: Published) -> Path:
    """The folder with the files; unpacked or downloaded first if it is not there.

    Everything is prepared in a temporary folder and renamed, so that an interrupted download is never trusted.
    Processes of one host take turns, and the first one's files serve all. A failure leaves no file or folder.

    Raises:
        UserError: the files are absent and cannot be downloaded, or their archive is corrupt.
    """
    folder = root / published.folder
    if folder.is_dir():
        return folder
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _turn(root), TemporaryDirectory(prefix=".fgpipe-", dir=root) as staging:
            if not folder.is_dir():
                _prepare(root, published, Path(staging))
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging) / published.folder, folder)
    except (OSError, RuntimeError, HTTPException) as error:
        archive = len(published.names) == 1
        where = f"or its folder {published.folder} into {root}" if archive else f"into {folder}"
        raise UserError(
            f"data.root={root}: {published.folder} not found and could not be downloaded ({reason(error)}); "
            f"put {', '.join(published.names)} {where}"
        ) from error
    finally:
        for path in created:
            with suppress(OSError):  # not empty: the download succeeded
                path.rmdir()
    return folder


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of this host is in here for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks; then each process downloads its own
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _prepare(root: Path, published: Published, staging: Path) -> None:
    """Make `staging / published.folder` from archives or files in `root`, or else from the network."""
    for (url, md5), name in zip(published.files, published.names, strict=True):
        if name.endswith((".tar.gz", ".tgz")):
            given = root / name
            if not given.exists():
                _download(url, staging, name, md5)
            _unpack(given if given.exists() else staging / name, staging)
            if not (staging / published.folder).is_dir():
                raise UserError(f"{given}: corrupt: it does not contain the folder {published.folder}")
        else:
            _download(url, staging / published.folder, name, md5)


def _download(url: str, folder: Path, name: str, md5: str) -> None:
    """Download one file and check its MD5; torchvision's progress goes to stderr."""
    from torchvision.datasets.utils import download_url  # see fgpipe.data.sources

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        with redirect_stdout(sys.stderr):
            download_url(url, folder, name, md5)
    finally:
        socket.setdefaulttimeout(before)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a gzipped tar archive; tarfile's "data" filter refuses paths and links that lead outside."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive}: corrupt, or could not be unpacked: {reason(error)}") from error
