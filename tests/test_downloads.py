"""Data sets that have to be fetched or unpacked: what is not whole is named, not trusted, and leaves nothing behind.

No test uses the network: `offline` stands in for the download, or a server on this host.
"""

import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import utils
from torchvision.datasets.utils import download_url

from fgpipe.data import load
from tests.datasets import configured, refusal, write_cifar10

pytestmark = pytest.mark.usefixtures("offline")


def test_cifar10_archive_is_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    write_cifar10(tmp_path / "given")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "given" / "cifar-10-batches-py", "cifar-10-batches-py")
    assert len(load(configured("cifar10", root)).train_labels) == 20
    assert sorted(path.name for path in root.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
        ("imagenette", "imagenette2-160.tgz"),
    ],
)
def test_missing_data_without_network(tmp_path: Path, name: str, file: str) -> None:
    """The line says which file goes where, and nothing is left behind."""
    root = tmp_path / "new" / "root"
    message = refusal(configured(name, root))
    assert f"data.root={root}: " in message and "could not be downloaded (Connection refused)" in message
    assert f"put {file}" in message and message.count(str(root)) == 2
    assert list(tmp_path.iterdir()) == []
    root.mkdir(parents=True)
    refusal(configured(name, root))
    assert root.exists() and list(root.iterdir()) == []


def test_interrupted_download_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks in the second of four files."""
    finished: list[str] = []

    def break_off(url: str, folder: Path, name: str, md5: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"half")
        if finished:
            raise ConnectionResetError("Connection reset by peer")
        finished.append(name)

    monkeypatch.setattr(utils, "download_url", break_off)
    assert "Connection reset" in refusal(configured("fashion_mnist", tmp_path))
    assert list(tmp_path.iterdir()) == []


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a server on this host that serves `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_download_with_torchvision(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second load finds the folder. A wrong checksum is refused."""
    write_cifar10(tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(utils, "download_url", download_url)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", f"{server}/{archive.name}")
    root = tmp_path / "root"
    assert "corrupted" in refusal(configured("cifar10", root)) and not root.exists()
    monkeypatch.setattr("torchvision.datasets.CIFAR10.tgz_md5", None)
    assert len(load(configured("cifar10", root)).train_labels) == 20
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    archive.unlink()
    assert len(load(configured("cifar10", root)).train_labels) == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["truncated", "html", "other_folder", "outside"])
def test_corrupt_archive_is_named(tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "root" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    names = {"other_folder": "elsewhere/file", "outside": "../outside"}
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo(names.get(damage, "cifar-10-batches-py/data_batch_1"))
        entry.size = 100_000
        tar.addfile(entry, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:50_000])
    if damage == "html":
        archive.write_text("<html>not found</html>")
    assert str(archive) in refusal(configured("cifar10", archive.parent))
    assert list(archive.parent.iterdir()) == [archive] and list(tmp_path.iterdir()) == [archive.parent]
