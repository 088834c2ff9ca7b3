"""What tests of studies share."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.integration.launching import fork


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's runs are in forked processes, which start in a quarter of torchrun's time."""

    def start(processes: int, file: Path, hosts: Sequence[str], environment: Mapping[str, str]) -> None:
        assert not hosts and not environment
        done = fork(processes, "-m", "fgpipe.study.series", str(file))
        print(done.stdout, done.stderr, file=sys.stderr)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, "fgpipe.study.series")

    monkeypatch.setattr("fgpipe.study.series.start", start)
