"""What is left over in the environment is named in one line; torchrun's own variables are all there, or none."""

import socket

import psutil
import pytest

from fgpipe.errors import UserError
from fgpipe.runtime.interface import Interface
from fgpipe.runtime.process import NUMBERS, Place

WHOLE = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_torchruns_variables_and_none(environment: pytest.MonkeyPatch) -> None:
    assert Place.from_environment() == Place(0, 1, 0, 1)
    environment.setenv("SLURM_PROCID", "7")  # another launcher's are not looked at
    assert Place.from_environment() == Place(0, 1, 0, 1)
    for name, value in WHOLE.items():
        environment.setenv(name, value)
    assert Place.from_environment() == Place(1, 4, 1, 2)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["3", "", "one", "-1"])
def test_one_alone(name: str, value: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(name, value)
    with pytest.raises(
        UserError, match=r"^\w+=.*: allowed: a whole number, as torchrun sets it; without torchrun, unset"
    ):
        Place.from_environment()


@pytest.mark.parametrize("name, value, allowed", [
    ("RANK", "4", "0 to 3"), ("LOCAL_RANK", "2", "0 to 1"), ("WORLD_SIZE", "0", "at least 1"), ("LOCAL_WORLD_SIZE", "5", "1 to 4"),
    ("LOCAL_WORLD_SIZE", "0", "1 to 4"), ("WORLD_SIZE", "", "a whole number"), ("MASTER_PORT", "", "1 to 65535"),
    ("MASTER_PORT", "70000", "1 to 65535"), ("MASTER_ADDR", "", "a host"),
])  # fmt: skip
def test_one_wrong(name: str, value: str, allowed: str, environment: pytest.MonkeyPatch) -> None:
    for each, right in WHOLE.items():
        environment.setenv(each, right)
    environment.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}={value}: allowed: {allowed}, as torchrun sets it") as caught:
        Place.from_environment()
    assert caught.value.alone, "the process cannot know whether it is the one that reports"


def test_without_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process needs none; several are told what is missing."""
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert Interface.find("127.0.0.1", several_hosts=False, alone=True).address == "127.0.0.1"
    with pytest.raises(
        UserError, match=r"^interface=127.0.0.1: allowed: one with an IPv4 address, which this host has not"
    ):
        Interface.find("127.0.0.1", several_hosts=False)


def test_interfaces_that_there_are_are_listed() -> None:
    names = [name for name, each in psutil.net_if_addrs().items() if any(a.family == socket.AF_INET for a in each)]
    with pytest.raises(UserError) as caught:
        Interface.find("none such", several_hosts=False, alone=True)
    assert all(name in str(caught.value) for name in names)
