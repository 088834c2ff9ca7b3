"""The scalars' message, the only thing that travels backward, and its codec (docs/protocol.md).

msgpack with fixed types and no extensions: nothing that arrives can do more than be a list of numbers.
"""

import math
from dataclasses import dataclass

import msgpack

VERSION = 1
MAX_PROBES = 65_536
MAX_SCALARS = 1 << 20
PER_MESSAGE, PER_PROBE, PER_SCALAR = 64, 5, 9
"""Upper bounds of the encoded bytes: of the fixed fields, of a probe id, of a scalar."""


class FeedbackError(RuntimeError):
    """A message that is malformed, out of sequence, not for us, or carries a number that is not finite."""


@dataclass(frozen=True)
class Feedback:
    """The directional derivatives of one target along one block's guesses on one batch."""

    run: int
    """Drawn for each run, so that a message from another run is refused."""
    batch: int
    sender: int
    """The block that evaluated the target."""
    receiver: int
    """The block that asked."""
    probes: tuple[int, ...]
    """Probe ids, 0 .. P - 1."""
    scalars: tuple[float, ...]
    """Probe by probe: one for each, or one for each probe and sample."""


def encode(feedback: Feedback) -> bytes:
    """At most `PER_MESSAGE + PER_PROBE * P + PER_SCALAR * len(scalars)` bytes."""
    head = [VERSION, feedback.run, feedback.batch, feedback.sender, feedback.receiver]
    return msgpack.packb([*head, list(feedback.probes), list(feedback.scalars)])


def decode(data: bytes) -> Feedback:
    """The message in `data`.

    Raises:
        FeedbackError: not a message of ours: wrong types, sizes or version, or a scalar that is not finite.
    """
    try:
        fields = msgpack.unpackb(data, max_array_len=MAX_SCALARS, max_str_len=0, max_bin_len=0, max_map_len=0, max_ext_len=0)
    except Exception as error:
        raise FeedbackError(f"feedback is not msgpack of fixed types: {type(error).__name__}") from error
    if not isinstance(fields, list) or len(fields) != 7 or not all(type(field) is int for field in fields[:5]):
        raise FeedbackError("feedback does not have the message's fields")
    version, run, batch, sender, receiver, probes, scalars = fields
    if version != VERSION:
        raise FeedbackError(f"feedback has version {version}, not {VERSION}")
    if not isinstance(probes, list) or not 1 <= len(probes) <= MAX_PROBES or not all(type(p) is int for p in probes):
        raise FeedbackError("feedback has no list of probe ids")
    if not isinstance(scalars, list) or not all(type(s) is float for s in scalars) or len(scalars) % len(probes):
        raise FeedbackError("feedback has no list of scalars that fits its probes")
    if min(batch, sender, receiver, *probes) < 0:
        raise FeedbackError("feedback has a negative id")
    if not all(map(math.isfinite, scalars)):
        raise FeedbackError(f"block {sender} sent block {receiver} a scalar that is not finite, for batch {batch}")
    return Feedback(run, batch, sender, receiver, tuple(probes), tuple(scalars))
