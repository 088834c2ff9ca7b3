"""A folder of a study is for its arguments alone, also when a call was killed as it claimed it."""

import os
from pathlib import Path

import pytest

from fgpipe.errors import UserError
from fgpipe.study.common.arguments import claim


def test_claim(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "study"
    claim(folder, ["data.root=here", "batch_size=8"])
    claim(folder, ["batch_size=8"])
    claim(folder, ["batch_size=8", "data.root=moved"])
    with pytest.raises(UserError, match="allowed: a new folder, or its study's arguments: batch_size=8"):
        claim(folder, [])


@pytest.mark.parametrize("at", ["fsync", "link"])
def test_killed_while_claiming(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first call got done, the next one can claim the folder, and then it is claimed."""

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, at, killed)
        claim(tmp_path, ["batch_size=8"])
    claim(tmp_path, ["batch_size=16"])
    with pytest.raises(UserError):
        claim(tmp_path, ["batch_size=8"])
