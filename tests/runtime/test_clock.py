"""Offsets of clocks: two processes whose clocks are set apart by a known amount, and hosts that share one."""

import json
import sys
from pathlib import Path

import pytest

from fgpipe.cluster.clock import Offset, to_rank_0
from tests.integration.launching import ROOT, fork
from tests.integration.test_two_hosts import rights, two_hosts  # noqa: F401

SHIFT = 12_345_678_901_234


def test_known_shift() -> None:
    """The true offset lies within the stated uncertainty, which is a round trip's half and not a guess."""
    done = fork(3, str(ROOT / "tests/runtime/clocks.py"), str(SHIFT))
    assert done.returncode == 0, done.stderr
    alone, *others = [Offset(**each) for each in json.loads(done.stdout)]
    assert (alone.nanoseconds, alone.uncertainty) == (0, 0)
    assert others[0] == others[1], "one host is measured once"
    assert abs(others[0].nanoseconds - SHIFT) <= others[0].uncertainty < 1e9
    assert others[0].uncertainty > 0


def test_drift() -> None:
    """A clock that starts 500 ahead and gains 10 % by rank 0's clock."""
    before, after = Offset(500, 1, 1000), Offset(700, 1, 3000)
    for true in (1000, 1500, 2000, 3000):
        shown = true + 500 + (true - 1000) // 10
        assert abs(to_rank_0(shown, before, after) - true) <= (true - 1000) / 100 + 1
    assert to_rank_0(2000, Offset(0, 0, 1000), Offset(0, 0, 1000)) == 2000


@pytest.mark.slow
def test_hosts_that_share_a_clock(rights, tmp_path: Path) -> None:  # noqa: F811
    """Two namespaces of one machine, 30 ms apart: the offset is 0, found to half a round trip at best."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--master_addr=host0",
    ]
    options = ["-m", "fgpipe.train", "trace=true", "interface=link0", "target=local", "epochs=1", "model.width=0.07"]
    data = ["data.train_samples=64", "batch_size=32", "data.test_samples=32", "device=cpu", "threads=1"]
    done = two_hosts("--rtt", "30ms", "--", *torchrun, *options, *data, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "run" / "trace.json").read_text())["otherData"]
    assert [each["same_host_as"] for each in about["offsets"]] == [0, 1]
    for moment in ("before", "after"):
        offset = about["offsets"][1][moment]
        assert abs(offset["nanoseconds"]) <= offset["uncertainty"] and 15e6 <= offset["uncertainty"] < 1e9
