"""Files on file systems that refuse what others do: fsync, of files or folders, and hard links; and on no file system."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fgpipe.saving import durable

REFUSALS = [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS]
NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK]


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def fail_for(what: Callable[[int], bool], code: int, patch: pytest.MonkeyPatch) -> None:
    """Have fsync fail for some files, by their mode."""
    fsync = os.fsync
    patch.setattr(os, "fsync", lambda file: failing(code)() if what(os.fstat(file).st_mode) else fsync(file))


@pytest.mark.parametrize("what", [stat.S_ISDIR, stat.S_ISREG], ids=["folders", "files"])
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_refused_fsync(what: Callable[[int], bool], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without it is no reason to fail: the file is there, and whole."""
    fail_for(what, code, monkeypatch)
    durable.write(tmp_path / "written", b"one")
    assert durable.create(tmp_path / "created", b"two") and not durable.create(tmp_path / "created", b"three")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"written": b"one", "created": b"two"}


def test_who_may_read(tmp_path: Path) -> None:
    """As the umask says, but for what is private."""
    before = os.umask(0o022)
    try:
        durable.write(tmp_path / "written", b"")
        durable.create(tmp_path / "created", b"")
        durable.create(tmp_path / "private", b"", private=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"written": 0o644, "created": 0o644, "private": 0o600}


@pytest.mark.parametrize("what", [stat.S_ISDIR, stat.S_ISREG], ids=["folders", "files"])
def test_failing_disk(what: Callable[[int], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is one, and leaves no temporary file."""
    (tmp_path / "old").write_bytes(b"old")
    fail_for(what, errno.EIO, monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        durable.write(tmp_path / "new", b"new")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        durable.create(tmp_path / "created", b"new")
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "old").read_bytes() == b"old"


def test_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may write into it all the same."""
    opening = os.open

    def refuse(path: str | Path, *rest: int, **options: Any) -> int:
        return failing(errno.EACCES)() if Path(path) == tmp_path else opening(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    durable.write(tmp_path / "written", b"one")
    assert (tmp_path / "written").read_bytes() == b"one"


@pytest.mark.parametrize("code", NO_LINKS, ids=errno.errorcode.get)
def test_without_hard_links(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at once: one succeeds, the file is its own and whole, and no temporary file is left."""
    monkeypatch.setattr(os, "link", failing(code))
    start, created = threading.Barrier(8), []

    def create(index: int) -> None:
        start.wait()
        if durable.create(tmp_path / "file", bytes([index]) * 10_000):
            created.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": bytes(created) * 10_000}


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there is still there, alone."""
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        durable.write(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_pipe_and_link(tmp_path: Path) -> None:
    """A pipe is written to, and a link is followed: neither is replaced by a file."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        durable.write(pipe, b"one")
        assert os.read(reader, 10) == b"one"
    finally:
        os.close(reader)
    durable.write(link, b"two")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink() and file.read_bytes() == b"two"
