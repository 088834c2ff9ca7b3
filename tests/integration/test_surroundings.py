"""Runs in surroundings that other programs have had trouble with; each trains, tests and writes all that it should."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.launching import ROOT, command, environment, launch

SMALL = [
    "epochs=1", "data.train_samples=48", "batch_size=16", "data.test_samples=17", "model.width=0.07", "device=cpu",
    "scope=block",
]  # fmt: skip


def accuracy(run: Path, processes: int) -> float:
    """Test accuracy of a run that has left what it should."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["world_size"] == processes
    assert (run / "config.yaml").exists() and len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert list(run.glob("events.out.tfevents.*"))
    return summary["test_accuracy"]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The accuracy of two processes in usual surroundings; the last of the test batches has one sample."""
    run = tmp_path_factory.mktemp("usual") / "run"
    done = launch(2, "-m", "fgpipe.train", *SMALL, f"run_dir={run}")
    assert done.returncode == 0, done.stderr
    return accuracy(run, 2)


@pytest.mark.slow
def test_odd_names_in_locale_c(tmp_path: Path) -> None:
    """Odd names of the run folder, in the oldest locale there is."""
    run = tmp_path / "ü 日本" / "100% it's $HOME a=b"
    where = {**environment(), "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    quoted = str(run).replace("'", r"\'")
    line = command(1, "-m", "fgpipe.train", *SMALL, f"run_dir='{quoted}'")
    done = subprocess.run(line, env=where, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    accuracy(run, 1)


@pytest.mark.slow
def test_few_descriptors(usual: float, tmp_path: Path) -> None:
    """`ulimit -n 128` and a small stack."""
    line = f"ulimit -n 128 -s 1024 && exec {sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2"
    line += f" -m fgpipe.train {' '.join(SMALL)} run_dir={tmp_path / 'run'}"
    done = subprocess.run(
        ["bash", "-c", line], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert accuracy(tmp_path / "run", 2) == usual


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0,
    reason="asks for a mount namespace of its own",
)
def test_without_shared_memory(usual: float, tmp_path: Path) -> None:
    """Nothing can be written to /dev/shm, as in some containers."""
    run = ["bash", "-c", 'mount -t tmpfs -o ro none /dev/shm && ! touch /dev/shm/x 2>&- && exec "$@"', "bash"]
    line = ["unshare", "-m", *run, *command(2, "-m", "fgpipe.train", *SMALL, f"run_dir={tmp_path / 'run'}")]
    done = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert accuracy(tmp_path / "run", 2) == usual


@pytest.mark.slow
def test_two_jobs_at_once(usual: float, tmp_path: Path) -> None:
    """Plain torchruns side by side, each on a port of its own."""
    runs = [tmp_path / name for name in ("one", "other")]
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda run: launch(2, "-m", "fgpipe.train", *SMALL, f"run_dir={run}"), runs))
    for run, done in zip(runs, jobs, strict=True):
        assert done.returncode == 0, done.stderr
        assert accuracy(run, 2) == usual
