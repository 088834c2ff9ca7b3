"""Files that survive a crash: whole and on the disk, or not there.

File systems that cannot bring a folder, or a file, to the disk on demand, or that have no hard links, are written to as
well as they can be.
"""

import errno
import os
import secrets
from pathlib import Path

REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""Errors of a file system that does not do what it is asked; a disk that fails says something else."""
NO_READING = (errno.EACCES, errno.EPERM, errno.EISDIR)
"""Errors of a folder that can be written to but not opened, and so not brought to the disk."""
NO_LINKS = (*REFUSED, errno.EPERM, errno.EMLINK, errno.EXDEV)


def write(path: Path, content: bytes) -> None:
    """Put a file in place under a temporary name, fsync it, and rename it.

    A link is followed; what is no regular file, such as `/dev/stdout`, is written to as it is.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            _to_disk(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it would be in the way of the next one
        raise
    sync(path.parent)


def create(path: Path, content: bytes, *, private: bool = False) -> bool:
    """Put a file in place whole, unless there is one already; of several processes that try, one succeeds.

    Without hard links it is there empty for a moment, and stays so if the process is killed in it.

    Args: private: no other user may read it, whatever the umask.

    Returns:
        Whether this call did.

    Raises:
        OSError: it cannot be written.
    """
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            _to_disk(file.fileno())
        if not _link(temporary, path):
            return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync(path.parent)
    return True


def _link(temporary: str, path: Path) -> bool:
    """Give a file its name unless there is such a file; unlike renaming, it replaces nothing."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


def sync(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the file system can.

    Raises:
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_READING:
            return
        raise
    try:
        _to_disk(descriptor)
    finally:
        os.close(descriptor)


def _to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
