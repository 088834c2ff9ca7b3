"""The store of a run: PyTorch's TCPStore, as a process of its own, and a client that outlives it.

The store holds no state of training: where members are and that they live. Whatever it held, the living members write
again when it has been restarted.
"""

import signal
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fgpipe.cluster.process import follow_launcher
from fgpipe.elastic.secret import RunSecret
from fgpipe.errors import LinkError, bad_value, first_line

PATIENCE = 2.0
"""Seconds that a client waits for the store's answer."""


def serve(address: str) -> None:
    """Be the store, until SIGTERM, which comes when torchrun dies too.

    Raises:
        UserError: the address cannot be listened on.
    """
    follow_launcher()
    host, _, port = address.rpartition(":")
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # also of the store's own threads
    try:
        store = dist.TCPStore(host, int(port), is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise bad_value("HOST:PORT", address, f"a free port of this host: {first_line(error)}") from error
    heard = signal.sigwait(signals)
    del store
    if heard == signal.SIGINT:
        raise KeyboardInterrupt


class StoreClient:
    """Reads and writes one run's values; each is sealed with the run's key. For one thread.

    After an error the next call connects anew.
    """

    def __init__(self, address: str, secret: RunSecret) -> None:
        self._host, _, port = address.rpartition(":")
        self._port, self._secret = int(port), secret
        self._client: dist.Store | None = None

    def get(self, name: str) -> dict[str, Any] | None:
        """A value; None if there is none, or one that no member has written.

        Raises:
            LinkError: the store does not answer.
        """
        return self._unsealed(name, self._ask("get", name))

    def set(self, name: str, value: dict[str, Any]) -> None:
        """Write a value; errors as for `get`."""
        self._ask("set", name, self._secret.seal(name, value))

    def replace(self, name: str, before: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Write a value if `before` is there, None being no value of a member's; errors as for `get`.

        Returns:
            Whether this call did.
        """
        there = self._ask("get", name)
        if self._unsealed(name, there) != before:
            return False
        sealed = self._secret.seal(name, value)
        return self._ask("replace", name, there or "", sealed) == sealed

    def _unsealed(self, name: str, sealed: str | None) -> dict[str, Any] | None:
        return None if sealed is None else self._secret.unseal(name, sealed)

    def _ask(self, what: str, name: str, *values: str) -> str | None:
        key = f"fgpipe/{self._secret.run}/{name}"
        try:
            client = self._client = self._client or self._connect()
            if what == "set":
                client.set(key, values[0])
                return None
            if what == "replace":
                return str(client.compare_set(key, *values).decode())
            return str(client.get(key).decode()) if client.check([key]) else None
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            self._client = None
            raise LinkError(f"no store at {self._host}:{self._port}: {first_line(error)}") from error

    def _connect(self) -> dist.Store:
        socket.create_connection(
            (self._host, self._port), PATIENCE
        ).close()  # PyTorch's client would complain at length
        patience = timedelta(seconds=PATIENCE)
        return dist.TCPStore(self._host, self._port, is_master=False, wait_for_workers=False, timeout=patience)
