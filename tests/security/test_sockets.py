"""On one host no worker listens where another host could reach it: asked of the kernel, in the middle of a run."""

import ipaddress
import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from fgpipe.cluster.interface import Interface
from fgpipe.errors import UserError
from tests.integration.launching import command, environment, listening, processes_with, wait_until, workers_with

OTHERS = [
    name
    for name, addresses in psutil.net_if_addrs().items()
    if any(each.family == socket.AF_INET and not ipaddress.ip_address(each.address).is_loopback for each in addresses)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "confined",
    [pytest.param(True, id="as it is"), pytest.param(False, id="gloo left alone", marks=pytest.mark.long)],
)
def test_workers_listen_on_loopback(confined: bool, tmp_path: Path) -> None:
    """Ours and gloo's. Where GLOO_SOCKET_IFNAME names another interface, the test sees that gloo listens there."""
    if not confined and not OTHERS:
        pytest.skip("this host has no interface but loopback to show the difference on")
    marker = str(tmp_path / "run")
    overrides = ["epochs=500", "threads=1", "device=cpu", "scope=block", "observe.tensorboard=false"]
    variables = environment() | ({} if confined else {"GLOO_SOCKET_IFNAME": OTHERS[0]})
    with (tmp_path / "log").open("w") as log:
        started = command(2, "-m", "fgpipe.train", f"run_dir={marker}", *overrides)
        job = subprocess.Popen(started, env=variables, stdout=log, stderr=log)
    text = (tmp_path / "log").read_text
    try:
        assert wait_until(lambda: "epoch 1/500" in text(), 200), text()
        workers = workers_with(marker)
        assert sorted(workers) == [0, 1]
        addresses = [address for pid in workers.values() for address in listening(pid)]
        assert len(addresses) >= 4, "each has a socket for scalars and one or more of gloo's"
        exposed = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
        assert (not exposed) == confined, addresses
        unix = [
            each.laddr for pid in workers.values() for each in psutil.Process(pid).net_connections("unix") if each.laddr
        ]
        assert not unix, "no socket file either"
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(60)
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)


def test_interfaces() -> None:
    loopback = Interface.find("127.0.0.1", several_hosts=False)
    assert loopback.is_loopback and Interface.find(loopback.name, several_hosts=False) == loopback
    for wanted in ("0.0.0.0", "*", "192.0.2.77", "nosuch0", ""):
        with pytest.raises(UserError, match=r"interface=.*: allowed: .*lo \(127.0.0.1\)"):
            Interface.find(wanted, several_hosts=False)
    with pytest.raises(UserError, match="interface=127.0.0.1: allowed: one that the job's other hosts can reach"):
        Interface.find("127.0.0.1", several_hosts=True)


def test_gloo_is_confined_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with Interface("lo", "127.0.0.1").confines_gloo():
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        with Interface("eth9", "10.0.0.9").confines_gloo():
            assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in os.environ, "or it would decide for what this process starts"
