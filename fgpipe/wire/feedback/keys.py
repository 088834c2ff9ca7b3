"""Who may send scalars: CURVE keys made for one run, and the public ones of all its processes.

A secret key stays in the memory of the process that made it. Only public keys go through the rendezvous store.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist
import zmq
from zmq.auth.thread import ThreadAuthenticator

from fgpipe.errors import FeedbackError

DOMAIN = b"fgpipe"


@dataclass(frozen=True)
class Keys:
    """The key pair of this process, which listens and connects with it, and every process's public key."""

    public: bytes
    secret: bytes = field(repr=False)
    ranks: dict[bytes, int]
    """Public key -> rank."""

    @classmethod
    def exchange(cls, store: dist.Store, rank: int, ranks: Sequence[int], deadline: float) -> "Keys":
        """Make a pair and swap public keys with the processes `ranks`, this one among them; collective.

        Raises:
            FeedbackError: a process has not shown its key within `deadline` seconds; the line names its rank.
        """
        public, secret = zmq.curve_keypair()
        names = {f"key/{other}": other for other in ranks}
        store.set(f"key/{rank}", public.decode())
        try:
            store.wait(list(names), timedelta(seconds=deadline))
        except dist.DistStoreError as error:
            missing = [str(other) for name, other in names.items() if not store.check([name])]
            raise FeedbackError(f"no key for the feedback plane from rank {', '.join(missing)}") from error
        return cls(public, secret, {store.get(name): other for name, other in names.items()})

    def of(self, rank: int) -> bytes:
        """The public key of a process."""
        return next(key for key, other in self.ranks.items() if other == rank)

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell whether the holder of `key` may connect; the name is that of zmq's interface."""
        return key in self.ranks

    def admit(self, context: "zmq.Context[zmq.Socket[bytes]]") -> ThreadAuthenticator:
        """Let the context's listening sockets accept these processes alone; to be stopped before the context ends."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(DOMAIN.decode(), self)
        return authenticator

    def listen(self, socket: "zmq.Socket[bytes]") -> None:
        """Set a socket up to be connected to; before it is bound."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, self.secret)
        socket.set(zmq.ZAP_DOMAIN, DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # were nobody there to ask about a key, none would be good

    def dial(self, socket: "zmq.Socket[bytes]", rank: int) -> None:
        """Set a socket up to connect to a process; before it is connected."""
        socket.set(zmq.CURVE_SERVERKEY, self.of(rank))
        socket.set(zmq.CURVE_PUBLICKEY, self.public)
        socket.set(zmq.CURVE_SECRETKEY, self.secret)
