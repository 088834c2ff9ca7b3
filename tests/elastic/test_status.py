"""What `fgpipe.status` refuses, in one line."""

from pathlib import Path

import pytest

from fgpipe.elastic.places import Places
from fgpipe.status import main


def test_no_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--store", "localhost"]) == 2
    assert capsys.readouterr().err == "fgpipe: --store=localhost: allowed: HOST:PORT\n"


def test_a_folder_that_cannot_be_read(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places.facts.parent.mkdir(parents=True, exist_ok=True)
    places.facts.write_text("{}")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert main([str(places.run), "--assemble"]) == 2
    message = capsys.readouterr().err
    assert message == f"fgpipe: RUN={places.run}: allowed: a folder whose files can be read: Permission denied\n"
