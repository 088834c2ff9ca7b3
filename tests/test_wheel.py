"""The package that a user installs: quietly, whole, and away from this checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.integration.launching import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def test_the_wheel_runs_anywhere(tmp_path: Path) -> None:
    """Built without a word, it has the configuration files and the digits, and trains on them."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    build = [*PIP, "wheel", *options, "--wheel-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, check=False, capture_output=True, text=True, timeout=120)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    (wheel,) = tmp_path.glob("fgpipe-*.whl")
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    small = ["epochs=1", "data.train_samples=64", "model.width=0.07", "run_dir=run", "observe.tensorboard=false"]
    where = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fgpipe.train", *small]
    done = subprocess.run(command, cwd=elsewhere, env=where, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
    assert (elsewhere / "run" / "summary.json").exists()
    source = [sys.executable, "-c", "import fgpipe; print(fgpipe.__file__)"]
    assert subprocess.check_output(source, cwd=elsewhere, env=where, text=True).startswith(str(target))


def test_an_editable_installation_copies_nothing(tmp_path: Path) -> None:
    """It points to the checkout, and nothing in it can be older than what is there."""
    build = [sys.executable, "-c", "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"]
    done = subprocess.run([*build, str(tmp_path)], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (wheel,) = tmp_path.glob("fgpipe-*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert [name for name in files.namelist() if ".dist-info/" not in name] == ["_fgpipe.pth"]
        assert files.read("_fgpipe.pth").decode().split() == [str(ROOT)]
