"""The network interface that the processes of this host use, and that no other is used."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from fgpipe.errors import bad_value


@dataclass(frozen=True)
class Interface:
    """One interface of this host."""

    name: str
    address: str
    """IPv4."""

    @classmethod
    def find(cls, wanted: str, several_hosts: bool, alone: bool = False) -> "Interface":
        """The interface whose name or address is `wanted`.

        Args: alone: this is the only process, which does without one on a host that has none.

        Raises:
            UserError: this host has none, or it is the loopback interface and the job has several hosts.
        """
        found = [
            cls(name, each.address)
            for name, addresses in psutil.net_if_addrs().items()
            for each in addresses
            if each.family == socket.AF_INET
        ]
        for interface in found:
            if wanted in (interface.name, interface.address):
                if several_hosts and interface.is_loopback:
                    raise bad_value("interface", wanted, "one that the job's other hosts can reach")
                return interface
        if not found and alone:
            return cls("lo", "127.0.0.1")
        names = " | ".join(f"{each.name} ({each.address})" for each in found)
        raise bad_value("interface", wanted, names or "one with an IPv4 address, which this host has not (ip address)")

    @property
    def is_loopback(self) -> bool:
        return ipaddress.IPv4Address(self.address).is_loopback

    @contextmanager
    def confines_gloo(self) -> Iterator[None]:
        """A process group that is made within has gloo listen here alone, unless GLOO_SOCKET_IFNAME says where.

        Of itself gloo takes the interface of the host's name, which others may reach, and it asks nobody who they are.
        The variable is gone afterwards: it would decide for later runs of this process, and for programs it starts.
        """
        if "GLOO_SOCKET_IFNAME" in os.environ:
            yield
            return
        os.environ["GLOO_SOCKET_IFNAME"] = self.name
        try:
            yield
        finally:
            del os.environ["GLOO_SOCKET_IFNAME"]
