"""The messages of the feedback plane, the only thing that travels backward, and their codec (docs/reference/protocol.md).

msgpack with fixed types and no extensions: nothing that arrives can do more than be a list of numbers.
"""

from dataclasses import dataclass

import msgpack

from fgpipe.errors import FeedbackError

VERSION = 3
MAX_PROBES = 65_536
MAX_NUMBERS = 1 << 20
PER_MESSAGE, PER_PROBE, PER_NUMBER = 64, 5, 9
"""Upper bounds of the encoded bytes: of the fixed fields, of a probe id, of a number of a reading."""
NOTHING_ELSE = {"max_str_len": 0, "max_map_len": 0, "max_ext_len": 0}
FIXED_FIELDS = 6
"""version, kind, run, batch, sender, receiver."""


@dataclass(frozen=True)
class Feedback:
    """The readings of one target for one block's probes on one batch."""

    run: int
    """Drawn for each run, so that a message from another run is refused."""
    batch: int
    sender: int
    """The block that evaluated the target."""
    receiver: int
    """The block that asked."""
    probes: tuple[int, ...]
    """Probe ids, 0 .. P - 1."""
    numbers: tuple[float, ...]
    """Probe by probe: one, one of each sample, or a row of each sample with a number for every class."""


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


@dataclass(frozen=True)
class Weights:
    """A copy of a block's weights, for the twin of a block below (`guess=twins`)."""

    run: int
    batch: int
    """The first batch that they have not learnt from."""
    sender: int
    """The block whose weights they are."""
    receiver: int
    values: bytes
    """Numbers of the run's type, as they are in memory."""


Message = Feedback | Request | Lost | Weights
KINDS: tuple[type[Message], ...] = (Feedback, Request, Lost, Weights)
"""The index is the message's kind on the wire."""


def encode(message: Message) -> bytes:
    """At most `PER_MESSAGE + PER_PROBE * P + PER_NUMBER * len(numbers)` bytes; none but `Feedback` has probes, and `Weights`
    have as many bytes as values beside."""
    fields: list[int | bytes | list[int] | list[float]] = [
        VERSION,
        KINDS.index(type(message)),
        message.run,
        message.batch,
        message.sender,
        message.receiver,
    ]
    if isinstance(message, Feedback):
        fields += [list(message.probes), list(message.numbers)]
    elif isinstance(message, Weights):
        fields.append(message.values)
    return msgpack.packb(fields)


def decode(data: bytes) -> Message:
    """The message in `data`.

    Raises:
        FeedbackError: not a message of ours: wrong types, sizes or version.
    """
    longest = min(MAX_NUMBERS, len(data))  # no array has more items than bytes; what it claims would be allocated
    try:
        fields = msgpack.unpackb(data, max_array_len=longest, max_bin_len=len(data), **NOTHING_ELSE)
    except Exception as error:
        raise FeedbackError(f"feedback is not msgpack of fixed types: {type(error).__name__}") from error
    if not isinstance(fields, list) or not all(type(field) is int for field in fields[:FIXED_FIELDS]):
        raise FeedbackError("feedback does not have the message's fields")
    if not fields or fields[0] != VERSION:
        raise FeedbackError(f"feedback has version {fields[0] if fields else None}, not {VERSION}")
    if len(fields) < FIXED_FIELDS or not 0 <= fields[1] < len(KINDS) or min(fields[2:FIXED_FIELDS]) < 0:
        raise FeedbackError("feedback has an unknown kind, a negative id or too few fields")
    kind, ids, rest = KINDS[fields[1]], fields[2:FIXED_FIELDS], fields[FIXED_FIELDS:]
    if len(rest) != {Feedback: 2, Weights: 1}.get(kind, 0):
        raise FeedbackError(f"feedback does not have the fields of a {kind.__name__}")
    run, batch, sender, receiver = ids
    if kind is Feedback:
        return Feedback(run, batch, sender, receiver, *_probes_and_numbers(*rest))
    if kind is Weights:
        if not isinstance(rest[0], bytes) or not rest[0]:
            raise FeedbackError("weights are not bytes")
        return Weights(run, batch, sender, receiver, rest[0])
    return (Request if kind is Request else Lost)(run, batch, sender, receiver)


def _probes_and_numbers(probes: object, numbers: object) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not isinstance(probes, list) or not 1 <= len(probes) <= MAX_PROBES or not all(type(p) is int for p in probes):
        raise FeedbackError("feedback has no list of probe ids")
    if min(probes) < 0:
        raise FeedbackError("feedback has a negative probe id")
    if not isinstance(numbers, list) or not numbers or not all(type(each) is float for each in numbers):
        raise FeedbackError("feedback has no list of numbers")
    if len(numbers) % len(probes):
        raise FeedbackError(f"feedback has {len(numbers)} numbers for {len(probes)} probes")
    return tuple(probes), tuple(numbers)
