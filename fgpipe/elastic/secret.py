"""The run's key: whoever holds it belongs to the run, and nobody else gets anything.

It is a file that only its owner can read, in the run folder. It never goes through the store, which asks nobody who they
are: what members write there carries a code (HMAC) that only holders of the key can make. The CURVE pair of each
generation of each block is derived from it, so that no public key has to be handed out, and none can be swapped.
"""

import hashlib
import hmac
import json
import secrets
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from fgpipe.saving import durable

BYTES = 32


class RunSecret:
    """Keys and codes of one run."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.run = self._derive("run")[:8].hex()
        """Name of the run in the store."""
        self.pair = lru_cache(maxsize=4096)(self._pair)

    @classmethod
    def of(cls, path: Path, *, make: bool = True) -> "RunSecret":
        """Read the run's key; the first process of the run makes it.

        Raises:
            OSError: it cannot be read, or not be made.
        """
        if make and not path.exists():
            durable.create(path, secrets.token_bytes(BYTES), private=True)
        while len(key := path.read_bytes()) < BYTES:
            time.sleep(0.05)  # the moment in which a file system without hard links has it empty
        return cls(key)

    def _derive(self, purpose: str) -> bytes:
        return hmac.digest(self._key, purpose.encode(), hashlib.sha256)

    def _pair(self, block: int, generation: int) -> tuple[bytes, bytes]:
        """CURVE's public and secret key of a generation of a block, in Z85."""
        secret = z85.encode(self._derive(f"curve/{block}/{generation}"))
        return zmq.curve_public(secret), secret

    def seal(self, name: str, value: dict[str, Any]) -> str:
        """A value of the store as text, with its code."""
        text = json.dumps(value, sort_keys=True)
        return f"{self._code(name, text)} {text}"

    def unseal(self, name: str, sealed: str) -> dict[str, Any] | None:
        """The value; None if a holder of the key has not written it under this name."""
        code, _, text = sealed.partition(" ")
        if not hmac.compare_digest(code.encode(), self._code(name, text).encode()):
            return None
        value: dict[str, Any] = json.loads(text)
        return value

    def _code(self, name: str, text: str) -> str:
        return self._derive(f"store/{name}/{text}").hex()
