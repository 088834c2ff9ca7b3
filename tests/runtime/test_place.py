"""Leftovers in the environment are named in one line; torchrun's own variables are all there, or none."""

import socket
from pathlib import Path

import psutil
import pytest

from fgpipe.cluster.interface import Interface
from fgpipe.cluster.process import NUMBERS, Cluster, Place
from fgpipe.config import compose_config
from fgpipe.errors import LinkError, UserError
from fgpipe.train import main
from fgpipe.trainers.session import run

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
    others = ", ".join(each for each in NUMBERS if each != name)
    with pytest.raises(UserError) as caught:
        Place.from_environment()
    line = f"{name}={value}: allowed: only with {others}, as torchrun sets it; to run in one process, unset {name}"
    assert str(caught.value) == line
    assert caught.value.alone, "nobody knows whether this process is the one that reports"


WRONG = [
    ("RANK", "4", "0 to 3"), ("LOCAL_RANK", "2", "0 to 1"), ("WORLD_SIZE", "0", "at least 1"), ("LOCAL_WORLD_SIZE", "5", "1 to 4"),
    ("LOCAL_WORLD_SIZE", "0", "1 to 4"), ("WORLD_SIZE", "", "a whole number"), ("MASTER_PORT", "", "a whole number"),
    ("MASTER_PORT", "70000", "1 to 65535"), ("MASTER_PORT", "0", "1 to 65535"), ("MASTER_ADDR", "", "a host"),
    ("RANK", "0", "LOCAL_RANK=1: allowed: 0 to 0"), ("RANK", "3", "LOCAL_RANK=0: allowed: 1 to 1"), ("RANK", "1.0", "a whole number"),
    ("RANK", "٣", "a whole number"), ("WORLD_SIZE", "9" * 5000, "a whole number"),
]  # fmt: skip


@pytest.mark.parametrize("name, value, expected", WRONG, ids=[f"{name}-{value[:9]}" for name, value, _ in WRONG])
def test_one_wrong(name: str, value: str, expected: str, environment: pytest.MonkeyPatch) -> None:
    """Ranks of a host are neighbours: LOCAL_RANK says how many of them come before this one."""
    local_rank = "0" if (name, value) == ("RANK", "3") else WHOLE["LOCAL_RANK"]
    for each, right in {**WHOLE, "LOCAL_RANK": local_rank, name: value}.items():
        environment.setenv(each, right)
    line = expected if "allowed" in expected else f"{name}={value}: allowed: {expected}"
    with pytest.raises(UserError) as caught:
        Place.from_environment()
    unset = "to run in one process, unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"
    assert str(caught.value) == f"{line}, as torchrun sets it; {unset}"
    assert caught.value.alone


def test_the_command_names_what_is_left_over(
    environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, since nobody else would, and before any other complaint."""
    environment.setenv("LOCAL_RANK", "3")
    environment.setattr("fgpipe.command.time.sleep", lambda seconds: pytest.fail("it waits for another process"))
    assert main([f"run_dir={tmp_path / 'run'}", "guess=psychic"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fgpipe: LOCAL_RANK=3: allowed: only with RANK,") and err.count("\n") == 1


def test_nobody_where_the_variables_say(environment: pytest.MonkeyPatch) -> None:
    """A whole set that was left over: the address is named when nobody has answered for as long as the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for name, value in {**WHOLE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        environment.setenv(name, value)
    with pytest.raises(
        LinkError, match=rf"^start: no rendezvous at 127.0.0.1:{port} \(MASTER_ADDR, MASTER_PORT\): "
    ) as caught:
        Cluster(Place.from_environment(), deadline=1)
    assert "\n" not in str(caught.value)


def test_without_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process needs none; several are told what is missing."""
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert Interface.find("127.0.0.1", several_hosts=False, alone=True).address == "127.0.0.1"
    with pytest.raises(
        UserError, match=r"^interface=127.0.0.1: allowed: one with an IPv4 address, which this host has not"
    ):
        Interface.find("127.0.0.1", several_hosts=False)


def test_a_run_without_an_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process does without, unless it needs a process group."""
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    small = [
        "epochs=1",
        "data.train_samples=16",
        "batch_size=16",
        "data.test_samples=16",
        "model.width=0.07",
        "device=cpu",
    ]
    common = [*small, "observe.tensorboard=false", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"^interface=127.0.0.1: allowed: one with an IPv4 address"):
        run(compose_config([*common, "guess=end_to_end"]))
    assert not (tmp_path / "run").exists()
    assert run(compose_config(common))["world_size"] == 1


def test_interfaces_that_there_are_are_listed() -> None:
    names = [name for name, each in psutil.net_if_addrs().items() if any(a.family == socket.AF_INET for a in each)]
    with pytest.raises(UserError) as caught:
        Interface.find("none such", several_hosts=False, alone=True)
    assert all(name in str(caught.value) for name in names)
