"""Command `python -m fgpipe.doctor`: what is wrong with this host before a long job, in one screen.

Exit codes: 0, nothing failed (there may be warnings); 1, something did; 2, bad input; 130, interrupted.
"""

if __name__ == "__main__":
    from fgpipe.command import start

    start("fgpipe.doctor")

import multiprocessing
import os
import platform
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import zmq
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fgpipe.cluster.interface import Interface
from fgpipe.command import command
from fgpipe.errors import UserError, bad_value, one_line, reason
from fgpipe.saving import durable
from fgpipe.saving.outputs import check_folder, nearest

OK, WARNING, FAILED = "ok", "warning", "FAILED"
MOST_PROCESSES = 16
"""Blocks of the largest model."""
CHECKPOINT_BYTES = 500e6
"""Four checkpoints (two newest, the best, one being written) of ResNet-18 at width 1: 11.2 million float32 weights,
as many of momentum, and the heads."""
SHARED_MEMORY_BYTES = 1e9
"""Bytes that NCCL's documentation recommends to give a container."""
ROUND_TRIP_SECONDS = 30


@dataclass
class DoctorOptions:
    """Keys and defaults of the command; those that `fgpipe.train` has too mean the same."""

    interface: str = "127.0.0.1"
    nproc: int = 8
    run_dir: str = "runs"


@dataclass(frozen=True)
class Finding:
    """Outcome of one check, and what to do if it is not ok."""

    status: str
    what: str


@command
def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print("usage: python -m fgpipe.doctor [interface=127.0.0.1] [nproc=8] [run_dir=runs]")
        return 0
    failed = 0
    for name, finding in examine(parse(arguments)):
        failed += finding.status == FAILED
        print(f"{name:<14} {finding.status:<8} {finding.what}", flush=True)
    return int(failed > 0)


def parse(arguments: list[str]) -> DoctorOptions:
    """Read `key=value` arguments.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    if not arguments:
        return DoctorOptions()
    from fgpipe.config import arguments as reader  # needs Hydra, whose absence the doctor can report without arguments

    options = reader.parse(arguments, DoctorOptions())
    if not 1 <= options.nproc <= MOST_PROCESSES:
        raise bad_value("nproc", options.nproc, f"a whole number from 1 to {MOST_PROCESSES}, one process per block")
    return options


def examine(options: DoctorOptions) -> Iterator[tuple[str, Finding]]:
    """Yield name and finding of every check, in the order in which a run would meet the trouble."""
    yield "Python", python()
    yield "packages", packages()
    yield "devices", devices(options.nproc)
    yield "threads", threads(options.nproc)
    yield "host name", host_name()
    try:
        interface = Interface.find(options.interface, several_hosts=False)
    except UserError as error:
        yield "interface", Finding(FAILED, str(error))
    else:
        yield "interface", is_up(interface)
        yield "gloo", gloo(interface)
        yield "ports", ports(interface, options.nproc)
        yield "round trip", round_trip(interface)
    yield "run folder", run_folder(Path(options.run_dir))
    yield "shared memory", shared_memory()


def python() -> Finding:
    """Check the interpreter against `requires-python`."""
    try:
        wanted = metadata.metadata("fgpipe")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return Finding(FAILED, "fgpipe is not installed in this environment: pip install --editable .")
    version = platform.python_version()
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(FAILED, f"{version}, wanted {wanted}: make the environment with another Python")
    return Finding(OK, f"{version} on {platform.system()} {platform.release()}")


def packages() -> Finding:
    """Check every package that the installed fgpipe requires against its lower bound; and CURVE in libzmq."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("fgpipe") or []]
    except metadata.PackageNotFoundError:
        return Finding(FAILED, "fgpipe is not installed in this environment: pip install --editable .")
    found, wrong = {}, []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    if wrong:
        return Finding(FAILED, f"{'; '.join(wrong)}: pip install --upgrade --editable .")
    if not zmq.has("curve"):
        return Finding(FAILED, "pyzmq's libzmq has no CURVE, which encrypts the feedback plane: install PyPI's pyzmq")
    named = [
        f"{name} {found[name]}" for name in ("torch", "torchvision", "pyzmq", "msgpack", "safetensors") if name in found
    ]
    return Finding(OK, f"{', '.join(named)}; CURVE; {len(found)} requirements met")


def devices(processes: int) -> Finding:
    """Find GPUs, and what the forward plane makes of them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return Finding(OK, "no GPU; the CUDA and NCCL paths have never been run by the project")
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    plane = "NCCL" if count >= processes else f"gloo through the host, as {processes} processes share them"
    return Finding(
        WARNING, f"{count} GPUs ({names}), {plane}; the project has never run on a GPU: compare with device=cpu"
    )


def threads(processes: int) -> Finding:
    """Count the cores for each process, as `threads=auto` shares them."""
    cores, set_to = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "not set (torchrun sets 1)")
    shown = f"{cores} cores, {processes} processes, threads=auto gives each {max(1, cores // processes)}; "
    shown += f"OMP_NUM_THREADS {set_to}"
    if processes > cores:
        return Finding(WARNING, f"{shown}: they take turns; fewer processes compute the same numbers")
    return Finding(OK, shown)


def host_name() -> Finding:
    """Check that this host's name and localhost lead anywhere; torchrun's rendezvous asks."""
    try:
        socket.gethostbyname("localhost")
    except OSError as error:
        return Finding(
            FAILED, f"localhost is unknown ({one_line(error)}): add it to /etc/hosts; torchrun --standalone needs it"
        )
    name = socket.gethostname()
    try:
        return Finding(OK, f"{name} is {socket.gethostbyname(name)}")
    except OSError as error:
        return Finding(
            WARNING, f"{name} is unknown ({one_line(error)}): add it to /etc/hosts; a job on several hosts needs it"
        )


def is_up(interface: Interface) -> Finding:
    """Check that the interface, which exists, carries traffic."""
    shown = f"{interface.name} ({interface.address})"
    if not psutil.net_if_stats()[interface.name].isup:
        return Finding(FAILED, f"{shown} is down: ip link set {interface.name} up, or another interface=")
    return Finding(OK, f"{shown} is up" + (": one host only" if interface.is_loopback else ""))


def gloo(interface: Interface) -> Finding:
    """Find which interface the forward plane would use."""
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", interface.name)
    if chosen != interface.name:
        return Finding(
            WARNING, f"GLOO_SOCKET_IFNAME={chosen} overrules interface={interface.name} on the forward plane: unset it"
        )
    return Finding(OK, f"confined to {chosen}")


def ports(interface: Interface, processes: int) -> Finding:
    """Check that a port of the system's choice can be bound, and that there are enough ports."""
    try:
        with socket.create_server((interface.address, 0)):
            pass
    except OSError as error:
        return Finding(FAILED, f"no port of {interface.address} can be bound: {reason(error)}")
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except OSError:
        return Finding(WARNING, f"{interface.address} can be bound; the range of ephemeral ports is not known here")
    between = (
        f"{interface.address} can be bound; ephemeral ports {first}-{last}, all of them open between the job's hosts"
    )
    wanted = (
        4 * processes**2
    )  # both planes connect each process to each other one, and some linger when a run has ended
    if last - first < wanted:
        return Finding(WARNING, f"{between}: a range of {wanted} is safe (sysctl net.ipv4.ip_local_port_range)")
    return Finding(OK, between)


def round_trip(interface: Interface) -> Finding:
    """Send one tensor to another process and back, over gloo on the interface."""
    with interface.confines_gloo(), tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        other = multiprocessing.get_context("spawn").Process(target=_echo, args=(store,), daemon=True)
        with _deaf_to_interrupts():
            other.start()
        try:
            sent = torch.arange(1000.0)
            received = _group(store, 0, lambda: _there_and_back(sent))
        except RuntimeError as error:
            return Finding(FAILED, f"gloo between two processes on {interface.name}: {one_line(error)[:200]}")
        finally:
            other.kill()
            other.join()
    if not torch.equal(sent, received):
        return Finding(
            FAILED, f"gloo between two processes on {interface.name}: other numbers came back than were sent"
        )
    return Finding(OK, "two processes exchanged a tensor over gloo")


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore interrupts around the start of a process, which then ignores them too: Ctrl-C ends it with this one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _group(store: str, rank: int, body: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Run `body` in a process group of two that meet in a file."""
    limit = timedelta(seconds=ROUND_TRIP_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    try:
        return body()
    finally:
        dist.destroy_process_group()


def _there_and_back(sent: torch.Tensor) -> torch.Tensor:
    received = torch.zeros_like(sent)
    dist.send(sent, 1)
    dist.recv(received, 1)
    return received


def _echo(store: str) -> None:
    """Run the other process."""

    def body() -> torch.Tensor:
        received = torch.zeros(1000)
        dist.recv(received, 0)
        dist.send(received, 0)
        return received

    with suppress(RuntimeError):  # the first process tells
        _group(store, 1, body)


def run_folder(path: Path) -> Finding:
    """Check that files can be written and fsynced where the run folder is or would be, and that checkpoints fit."""
    try:
        check_folder("run_dir", path)
        where = nearest(path)
        with tempfile.TemporaryDirectory(dir=where) as folder:
            durable.write(Path(folder) / "file", b"content")
        free = shutil.disk_usage(where).free
    except (UserError, OSError) as error:
        return Finding(FAILED, f"{path} cannot be written: {one_line(error)}; another run_dir=")
    shown = f"{where} can be written; {free / 1e9:.1f} GB free"
    if free < CHECKPOINT_BYTES:
        return Finding(
            WARNING, f"{shown}: checkpoints of ResNet-18 at width 1 take up to {CHECKPOINT_BYTES / 1e9:g} GB"
        )
    return Finding(OK, shown)


def shared_memory() -> Finding:
    """Check `/dev/shm`, which NCCL alone uses."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding(WARNING, "there is no /dev/shm: NCCL between the GPUs of a host needs it")
    shown = f"/dev/shm has {free / 1e9:.1f} GB free"
    if free < SHARED_MEMORY_BYTES and torch.cuda.is_available():
        return Finding(WARNING, f"{shown}: NCCL wants 1 GB (docker run --shm-size=1g)")
    return Finding(OK, shown)
