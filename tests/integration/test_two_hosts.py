"""Two hosts on network namespaces (`launch/two_hosts`): the link is as asked, and a run over it is the one-host run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launching import ROOT, environment, processes_with, wait_until
from tests.integration.test_processes import COMMON, recorded, results

TWO_HOSTS = str(ROOT / "launch" / "two_hosts")
NO_RIGHT = 77
RUNS = {
    "weight": [*COMMON, "epochs=1", "target=global", "scope=block", "window=auto"],
    "activity": [*COMMON, "epochs=1", "space=activity", "guess=gaussian", "optim.lr=0.01", "window=auto"],
}


def two_hosts(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run to the end, as `launch`."""
    command = [sys.executable, TWO_HOSTS, *arguments]
    return subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def rights() -> None:
    """Skips where network namespaces cannot be made."""
    tried = two_hosts("--rate", "1gbit", "--", "true")
    if tried.returncode == NO_RIGHT:
        pytest.skip(tried.stderr.strip())
    assert tried.returncode == 0, tried.stderr


@pytest.mark.slow
def test_two_hosts_are_one(rights, tmp_path: Path) -> None:
    """2 x 2 processes over a link: every loss, weight and statistic bit for bit, and nobody listens but on the link."""
    one, two = recorded(tmp_path / "one", 1, RUNS), tmp_path / "two"
    two.mkdir()
    (two / "placement.yaml").write_text("ranks: [1, 0, 3, 2]")
    placed = {
        "weight": ["partition=[1,1,3,3]", f"placement={two / 'placement.yaml'}"],
        "activity": ["partition=[2,2,2,2]"],
    }
    runs = {name: [*run, "interface=link0", *placed[name]] for name, run in RUNS.items()}
    (two / "runs.json").write_text(json.dumps(runs))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=2",
        "--master_addr=host0",
    ]
    done = two_hosts("--", *torchrun, str(ROOT / "tests/integration/recording.py"), str(two))
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("fgpipe: warning")]
    assert (
        len(warnings) == 1 and "(ranks 0 and 3) meet at the widest link, blocks 1 and 2: 196608 bytes" in warnings[0]
    ), done.stderr
    for name, arrays in results(two, RUNS).items():
        assert arrays.keys() == one[name].keys()
        differing = [key for key, value in one[name].items() if not np.array_equal(value, arrays[key])]
        assert not differing, f"{name}: {differing[:5]}"
        assert json.loads((two / name / "summary.json").read_text())["world_size"] == 4
        for rank in range(4):
            addresses = json.loads((two / f"{name}-{rank}-listening.json").read_text())
            assert len(addresses) >= 2 and set(addresses) == {f"10.77.0.{1 + rank // 2}"}, addresses


@pytest.mark.long
@pytest.mark.parametrize("rate, rtt", [("40mbit", "30ms"), ("200mbit", "1ms"), (None, None)])
def test_link(rate: str | None, rtt: str | None, rights, tmp_path: Path) -> None:
    """Never faster than asked; not much slower, though the machine is shared. Without options it is neither."""
    options = ["--rate", rate, f"--rtt={rtt}"] if rate and rtt else []
    done = two_hosts(
        *options, "--", sys.executable, str(ROOT / "tests/integration/link.py"), str(tmp_path / "measured")
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "measured").read_text())
    if rate is None or rtt is None:
        assert measured["rate"] > 250e6 and measured["round_trip"] < 0.02, measured
        return
    bits, seconds = 1e6 * float(rate.removesuffix("mbit")), 1e-3 * float(rtt.removesuffix("ms"))
    assert 0.4 * bits < measured["rate"] <= bits, measured
    assert seconds <= measured["round_trip"] < 2 * seconds + 0.02, measured


@pytest.mark.long
def test_the_way_back_has_a_rate_of_its_own(rights, tmp_path: Path) -> None:
    """Measured from host1 to host0."""
    options = ["--rate", "400mbit", "--back", "40mbit"]
    script = [sys.executable, str(ROOT / "tests/integration/link.py"), str(tmp_path / "measured")]
    done = two_hosts(*options, "--", *script)
    assert done.returncode == 0, done.stderr
    assert 16e6 < json.loads((tmp_path / "measured").read_text())["rate"] <= 40e6


@pytest.mark.parametrize("signum, expected", [(signal.SIGINT, 5), (signal.SIGTERM, 6), (signal.SIGKILL, -9)])
def test_signals(signum: signal.Signals, expected: int, rights, tmp_path: Path) -> None:
    """Passed on, and then no process is left in the namespaces, not even one that ignores them or left its session."""
    deaf = """setsid sh -c 'trap "" INT TERM; while :; do sleep 0.1; done' "$0" &"""
    script = f"""trap "exit 5" INT; trap "exit 6" TERM; {deaf} echo > "$0$NODE_RANK"; while :; do sleep 0.1; done"""
    marker = str(tmp_path / "up")
    job = subprocess.Popen([sys.executable, TWO_HOSTS, "--", "sh", "-c", script, marker])
    try:
        assert wait_until(lambda: all(Path(f"{marker}{node}").exists() for node in (0, 1)), 20)
        job.send_signal(signum)
        assert job.wait(30) == expected
        if signum != signal.SIGKILL:  # then the commands hear SIGTERM; whoever ignores that stays
            assert wait_until(lambda: not processes_with(marker), 5)
    finally:
        job.kill()
        job.wait()
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "script, expected", [("exit $NODE_RANK", 1), ("exit $((7 - 7 * NODE_RANK))", 7), ("kill -9 $$", 137), ("true", 0)]
)
def test_exit_codes(script: str, expected: int, rights) -> None:
    assert two_hosts("--", "sh", "-c", script).returncode == expected


@pytest.mark.parametrize("arguments, code, expected", [
    (["--rate=fast", "--", "true"], 2, "--rate=fast: allowed: a rate above 0 in kbit, Mbit or Gbit, such as 100Mbit"),
    (["--back=0mbit", "--", "true"], 2, "--back=0mbit: allowed: a rate above 0 in kbit, Mbit or Gbit, such as 100Mbit"),
    (["--rtt", "-3ms", "--", "true"], 2, "--rtt=-3ms: allowed: a time above 0 in us, ms or s, such as 50ms"),
    (["--loss", "1", "--", "true"], 2, "--loss: allowed: --rate | --back | --rtt"),
    (["true"], 2, "true: allowed: [--rate RATE] [--back RATE] [--rtt TIME] -- COMMAND ..."),
])  # fmt: skip
def test_bad_input(arguments: list[str], code: int, expected: str) -> None:
    done = two_hosts(*arguments)
    assert done.returncode == code and done.stderr.startswith(f"two_hosts: {expected}") and done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) takes the rights away")
def test_no_right() -> None:
    without = ["setpriv", "--bounding-set=-all"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*without, sys.executable, TWO_HOSTS, "--", "true"], check=False, capture_output=True, text=True
    )
    assert done.returncode == NO_RIGHT and "the right to make network namespaces" in done.stderr
    assert done.stderr.count("\n") == 1
