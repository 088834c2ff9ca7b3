"""The folder of a run, which one run at a time writes to.

The process of block 0 holds a lock on the file `lock` in it, a record lock of POSIX (`fcntl.lockf`): it is gone with the
process, however that ends, and no forked or started child keeps it alive, as a lock of `flock` would be. Such locks hold
across hosts on NFS and on other file systems that pass them on; where a host dies, the server lets go of its locks when
their lease is over, on NFS after a minute or two. Some file systems know them within a host only. Where there are none,
a line on stderr says so, and nothing keeps another run out.

The lock is gone too when this process closes any descriptor of the file: nothing but this module may open it.
"""

import errno
import fcntl
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from omegaconf import OmegaConf

from fgpipe.config import Config
from fgpipe.errors import UserError, reason
from fgpipe.saving.outputs import needed

NAME = "lock"
HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
FLOCK = "hhqqi4x"
"""Linux's `struct flock` of 64 bits: type, origin, start, length, pid."""
_threads = threading.Lock()
_own: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked: its own locks do not stop it."""
os.register_at_fork(after_in_child=_own.clear)


@contextmanager
def claimed(config: Config) -> Iterator[Path]:
    """The run folder that a configuration asks for, or one of a new name, for one run of this process.

    It is made if need be. What is still empty at the end is removed, as bad input leaves nothing.

    Raises:
        UserError: another run is writing there, or the folder cannot be written.
    """
    path = Path(config.run_dir) if config.run_dir else Path("runs") / _name(config)
    made: list[Path] = []
    try:
        with needed("run_dir", path), _threads:
            made += (each for each in path.parents if not each.exists())
            if not config.run_dir:
                path = _new(path)
                made.insert(0, path)
            elif not path.exists():
                made.insert(0, path)
                path.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(path)
        try:
            yield path
        finally:
            _let_go(descriptor, path)
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def _name(config: Config) -> str:
    settings = OmegaConf.to_yaml(OmegaConf.structured(config))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{sha256(settings.encode()).hexdigest()[:8]}"


def _new(path: Path) -> Path:
    """A folder of that name, or with a number behind it where another run was as quick."""
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def is_free(folder: Path) -> bool:
    """There is nothing but what another claim may have left."""
    return all(path.name == NAME for path in folder.iterdir())


def holder(folder: Path) -> str | None:
    """Who writes to a folder now, as far as its file system knows; asks, and takes no lock itself.

    Raises:
        OSError: the file cannot be read.
    """
    file = folder / NAME
    if not file.exists():
        return None
    if _identity(file.stat()) in _own:  # opening and closing it would lose the lock
        return _me()
    with file.open("rb") as opened:
        asked = struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        try:
            kind, *_ = struct.unpack(FLOCK, fcntl.fcntl(opened, fcntl.F_GETLK, asked))
        except OSError:
            return None
        return None if kind == fcntl.F_UNLCK else opened.read(1000).decode(errors="replace").strip()


def _lock(folder: Path) -> int:
    """The descriptor of the folder's file, locked.

    Raises:
        UserError: another run has it.
        OSError: the folder cannot be written.
    """
    file = folder / NAME
    while True:
        if file.exists() and _identity(file.stat()) in _own:  # closing another descriptor of it would lose the lock
            raise _busy(folder, _me())
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, folder)
            if file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor)):
                os.truncate(descriptor, 0)
                os.write(descriptor, _me().encode())
                _own.add(_identity(os.fstat(descriptor)))
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last run there has just ended, and its file with it


def _let_go(descriptor: int, folder: Path) -> None:
    """Remove the file and unlock it; not in a child that was forked from the run, which has no part in the lock."""
    if (file := _identity(os.fstat(descriptor))) in _own:
        with suppress(OSError):
            (folder / NAME).unlink()  # while it is locked: who opens it after that makes another one
        _own.remove(file)
    os.close(descriptor)


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise _busy(folder, os.read(descriptor, 1000).decode(errors="replace")) from error
        if error.errno not in NO_LOCKS:
            raise
        line = f"the file system has no locks, so nothing keeps another run out: {reason(error)}"
        print(f"fgpipe: warning: run_dir={folder}: {line}", file=sys.stderr, flush=True)


def _me() -> str:
    return f"pid {os.getpid()} on host {socket.gethostname()}"


def _busy(folder: Path, holder: str) -> UserError:
    who = f" ({holder.strip()})" if holder.strip() else ""
    allowed = "another folder, or this one when that run has ended"
    return UserError(f"run_dir={folder}: another run is writing there{who}: allowed: {allowed}")
