"""`launch/gpu_check` where there is no GPU, and what it would run there, on the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgpipe.study.__main__ import main
from tests.integration.launching import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: launch/gpu_check is the test")
def test_no_gpu(tmp_path: Path) -> None:
    """One line, exit code 77, and no file."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch" / "setup").write_text("pip() { :; }\n")  # the environment is there
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "launch/gpu_check", "found.txt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77 and not done.stdout and not (tmp_path / "found.txt").exists()
    assert done.stderr == "gpu_check: no GPU: torch.cuda.is_available() is False\n"


def test_device_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "device=cpu", "steps=1", "pixels=8", "model.width=0.0625", "batch_size=8"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 6 and all(float(row.split("|")[2]) > 0 for row in rows)


@pytest.mark.parametrize(
    "argument, allowed", [("device=tpu", "cuda, where there is a GPU, or cpu"), ("steps=0", "a whole number")]
)
def test_bad_input(argument: str, allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "device=cpu", argument]) == 2
    assert capsys.readouterr().err.startswith(f"fgpipe: {argument}: allowed: {allowed}")
