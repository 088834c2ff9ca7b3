"""The messages of the feedback plane, the only thing that travels backward, and their codec (docs/protocol.md).

msgpack with fixed types and no extensions: nothing that arrives can do more than be a list of numbers.
"""

import math
from dataclasses import dataclass

import msgpack

VERSION = 2
MAX_PROBES = 65_536
MAX_SCALARS = 1 << 20
PER_MESSAGE, PER_PROBE, PER_SCALAR = 64, 5, 9
"""Upper bounds of the encoded bytes: of the fixed fields, of a probe id, of a scalar."""
NOTHING_ELSE = {"max_str_len": 0, "max_bin_len": 0, "max_map_len": 0, "max_ext_len": 0}
FIXED_FIELDS = 6
"""version, kind, run, batch, sender, receiver."""


class FeedbackError(RuntimeError):
    """A message that is malformed, out of sequence, not for us, lost, or carries a number that is not finite."""


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


@dataclass(frozen=True)
class Request:
    """A block misses the scalars of a batch and asks for them again; it travels upwards."""

    run: int
    batch: int
    sender: int
    """The block that misses them."""
    receiver: int
    """The block that evaluated the target."""


@dataclass(frozen=True)
class Lost:
    """The answer to a request for scalars that were sent once and not kept."""

    run: int
    batch: int
    sender: int
    """The block that evaluated the target."""
    receiver: int
    """The block that asked."""


Message = Feedback | Request | Lost
KINDS: tuple[type[Message], ...] = (Feedback, Request, Lost)
"""The index is the message's kind on the wire."""


def encode(message: Message) -> bytes:
    """At most `PER_MESSAGE + PER_PROBE * P + PER_SCALAR * len(scalars)` bytes; none but `Feedback` has probes."""
    fields = [VERSION, KINDS.index(type(message)), message.run, message.batch, message.sender, message.receiver]
    if isinstance(message, Feedback):
        fields += [list(message.probes), list(message.scalars)]
    return msgpack.packb(fields)


def decode(data: bytes) -> Message:
    """The message in `data`.

    Raises:
        FeedbackError: not a message of ours: wrong types, sizes or version, or a scalar that is not finite.
    """
    longest = min(MAX_SCALARS, len(data))  # no array has more items than bytes; what it claims would be allocated
    try:
        fields = msgpack.unpackb(data, max_array_len=longest, **NOTHING_ELSE)
    except Exception as error:
        raise FeedbackError(f"feedback is not msgpack of fixed types: {type(error).__name__}") from error
    if not isinstance(fields, list) or not all(type(field) is int for field in fields[:FIXED_FIELDS]):
        raise FeedbackError("feedback does not have the message's fields")
    if not fields or fields[0] != VERSION:
        raise FeedbackError(f"feedback has version {fields[0] if fields else None}, not {VERSION}")
    if len(fields) < FIXED_FIELDS or not 0 <= fields[1] < len(KINDS) or min(fields[2:FIXED_FIELDS]) < 0:
        raise FeedbackError("feedback has an unknown kind, a negative id or too few fields")
    kind, ids, rest = KINDS[fields[1]], fields[2:FIXED_FIELDS], fields[FIXED_FIELDS:]
    if len(rest) != (2 if kind is Feedback else 0):
        raise FeedbackError(f"feedback does not have the fields of a {kind.__name__}")
    return Feedback(*ids, *_probes_and_scalars(*rest)) if kind is Feedback else kind(*ids)


def _probes_and_scalars(probes: object, scalars: object) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not isinstance(probes, list) or not 1 <= len(probes) <= MAX_PROBES or not all(type(p) is int for p in probes):
        raise FeedbackError("feedback has no list of probe ids")
    if min(probes) < 0:
        raise FeedbackError("feedback has a negative probe id")
    if not isinstance(scalars, list) or not scalars or not all(type(s) is float for s in scalars):
        raise FeedbackError("feedback has no list of scalars")
    if len(scalars) % len(probes):
        raise FeedbackError(f"feedback has {len(scalars)} scalars for {len(probes)} probes")
    if not all(map(math.isfinite, scalars)):
        raise FeedbackError("feedback has a scalar that is not finite")
    return tuple(probes), tuple(scalars)
