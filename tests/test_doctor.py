"""The doctor: what it calls failed, and the exit code that follows."""

import os
import socket
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fgpipe import doctor
from fgpipe.cluster.interface import Interface
from fgpipe.doctor import FAILED, OK, WARNING
from tests.integration.launching import launch

LOOPBACK = Interface("lo", "127.0.0.1")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fgpipe that is installed, with bounds that are met, and no wish about gloo."""
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.10", "pyzmq>=26", 'nothing>=1; extra == "test"'])
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=3.10"})
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


def findings(output: str) -> dict[str, str]:
    """Name and status from what the command prints."""
    lines = [line for line in output.splitlines() if line]
    return {line[:14].strip(): line[15:23].strip() for line in lines}


def test_command(tmp_path: Path) -> None:
    """One screen from the real command, gloo between two real processes included; nothing is left in the folder."""
    done = launch(1, "-m", "fgpipe.doctor", "nproc=2", f"run_dir={tmp_path / 'runs'}")
    found = findings(done.stdout)
    assert len(found) == 11 and set(found.values()) <= {OK, WARNING, FAILED}
    assert {found[name] for name in ("interface", "gloo", "round trip", "run folder")} == {OK}, (
        done.stdout + done.stderr
    )
    assert done.returncode == int(FAILED in found.values()) and len(done.stdout.splitlines()) <= 24
    assert not list(tmp_path.iterdir()) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, argument", [("interface", "interface=nonsense0"), ("run folder", "run_dir=/proc/fgpipe/run")]
)
def test_failure_is_the_exit_code(
    name: str, argument: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "round_trip", lambda interface: doctor.Finding(OK, ""))
    assert doctor.main([f"run_dir={tmp_path}"]) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert doctor.main([argument]) == 1
    failed = [check for check, status in findings(capsys.readouterr().out).items() if status == FAILED]
    assert failed == [name]


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("nproc=0", "nproc=0: allowed: a whole number from 1 to 16"),
        ("nproc=17", "nproc=17: allowed"),
        ("nproc=-1", "nproc=-1: allowed"),
        ("nproc=many", "nproc=many: allowed: a whole number"),
        ("port=1", "port=1: no such key; allowed: interface | nproc | run_dir"),
        ("interface", "interface: allowed: key=value"),
        ("run_dir=", "run_dir=: allowed: text"),
    ],
)
def test_bad_input(argument: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fgpipe: {expected}") and len(error.splitlines()) == 1


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.packages().status == OK
    versions = {"torch": "2.9.1", "pyzmq": "26.0"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    assert doctor.packages() == doctor.Finding(
        FAILED, "torch is 2.9.1, wanted >=2.10: pip install --upgrade --editable ."
    )
    versions["torch"] = "2.10.0+cpu"
    assert doctor.packages().status == OK
    monkeypatch.setattr(doctor.zmq, "has", lambda capability: capability != "curve")
    assert "CURVE" in doctor.packages().what and doctor.packages().status == FAILED


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package-of-anyone>=1"])
    assert doctor.packages().status == FAILED and "no-such-package-of-anyone is missing" in doctor.packages().what


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python().status == OK
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.18")
    assert doctor.python() == doctor.Finding(FAILED, "3.9.18, wanted >=3.10: make the environment with another Python")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    finding = doctor.devices(8)
    assert finding == doctor.Finding(OK, "no GPU; the CUDA and NCCL paths have never been run by the project")
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_name", lambda index: "H100")
    assert "2 GPUs (H100), NCCL" in doctor.devices(2).what and "gloo" in doctor.devices(3).what


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    finding = doctor.threads(4)
    assert finding == doctor.Finding(OK, "8 cores, 4 processes, threads=auto gives each 2; OMP_NUM_THREADS 3")
    assert doctor.threads(9).status == WARNING


def test_interface_down(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.is_up(LOOPBACK).status == OK
    down = psutil.net_if_stats()["lo"]._replace(isup=False)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": down})
    assert doctor.is_up(LOOPBACK).status == FAILED and "ip link set lo up" in doctor.is_up(LOOPBACK).what


def test_gloo_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.gloo(LOOPBACK) == doctor.Finding(OK, "confined to lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert doctor.gloo(LOOPBACK).status == WARNING


def test_ports() -> None:
    assert doctor.ports(LOOPBACK, 8).status == OK
    assert doctor.ports(LOOPBACK, 1000).status == WARNING, "more than there are"
    assert doctor.ports(Interface("nowhere", "203.0.113.1"), 8).status == FAILED, (
        "an address for documentation (RFC 5737)"
    )


def test_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"localhost": "127.0.0.1"}

    def look_up(name: str) -> str:
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return known[name]

    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(socket, "gethostbyname", look_up)
    assert doctor.host_name().status == WARNING
    known["node7"] = "10.0.0.7"
    assert doctor.host_name() == doctor.Finding(OK, "node7 is 10.0.0.7")
    del known["localhost"]
    assert doctor.host_name().status == FAILED


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.run_folder(tmp_path / "a" / "b").status == OK and not list(tmp_path.iterdir())
    usage.free = 4e8
    assert doctor.run_folder(tmp_path).status == WARNING
    (tmp_path / "file").touch()
    assert doctor.run_folder(tmp_path / "file" / "run").status == FAILED


def test_round_trip_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that gloo cannot use."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nonsense0")
    assert doctor.round_trip(LOOPBACK).status == FAILED
