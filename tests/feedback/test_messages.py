"""The codec: whatever arrives is a message of ours or a `FeedbackError`, and nothing else happens.

Four properties of 2,500 cases each: 10,000 in every run of the tests.
"""

import tracemalloc

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgpipe.errors import FeedbackError
from fgpipe.wire.feedback.messages import (
    PER_MESSAGE,
    PER_NUMBER,
    PER_PROBE,
    VERSION,
    Feedback,
    Lost,
    Message,
    Request,
    Weights,
    decode,
    encode,
)

CASES = settings(max_examples=2_500, deadline=None, suppress_health_check=list(HealthCheck))
IDS = st.integers(0, 2**63 - 1)
FLOATS = st.floats(allow_nan=False)


@st.composite
def messages(draw) -> Message:
    run, batch, sender, receiver = (draw(IDS) for _ in range(4))
    kind = draw(st.sampled_from([Feedback, Request, Lost, Weights]))
    if kind is Weights:
        return Weights(run, batch, sender, receiver, draw(st.binary(min_size=1, max_size=50)))
    if kind is not Feedback:
        return (Request if kind is Request else Lost)(run, batch, sender, receiver)
    probes, samples = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    numbers = draw(st.lists(FLOATS, min_size=probes * samples, max_size=probes * samples))
    return Feedback(run, batch, sender, receiver, tuple(range(probes)), tuple(numbers))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
    max_leaves=6,
)
LOOKALIKE = st.tuples(st.sampled_from([VERSION, 1]) | ANYTHING, st.integers(-1, 4) | ANYTHING, *[IDS | ANYTHING] * 4)


def survive(data: bytes) -> None:
    """Decode; what is accepted is legal, and the same message again after another round."""
    try:
        message = decode(data)
    except FeedbackError:
        return
    assert min(message.batch, message.sender, message.receiver) >= 0
    if isinstance(message, Feedback):
        assert all(type(each) is float for each in message.numbers)
        assert len(message.probes) >= 1 and len(message.numbers) % len(message.probes) == 0
    assert encode(decode(encode(message))) == encode(message)  # in bytes, as NaN is equal to nothing


@CASES
@given(messages())
def test_round_trip(message: Message) -> None:
    """A float64 comes back as it was, and the size keeps to the documented bound."""
    data = encode(message)
    assert decode(data) == message
    probes, numbers = (message.probes, message.numbers) if isinstance(message, Feedback) else ((), ())
    values = message.values if isinstance(message, Weights) else b""
    assert len(data) <= PER_MESSAGE + PER_PROBE * len(probes) + PER_NUMBER * len(numbers) + len(values)


@CASES
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    survive(data)


@CASES
@given(LOOKALIKE, st.lists(ANYTHING | st.lists(FLOATS | st.integers(0, 9)), max_size=3))
def test_lookalikes(head: tuple, rest: list) -> None:
    """Arrays of the right outline, with anything in any place."""
    try:
        data = msgpack.packb([*head, *rest])
    except (OverflowError, ValueError):
        return  # msgpack has no integers of that size
    survive(data)


@CASES
@given(messages(), st.lists(st.tuples(IDS, st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 9))
def test_damaged(message: Message, changes: list[tuple[int, int]], cut: int) -> None:
    """Bytes changed, and some cut off at the end."""
    data = bytearray(encode(message))
    for place, value in changes:
        data[place % len(data)] = value
    survive(bytes(data[: len(data) - cut]))


def feedback(**changes) -> list:
    fields: dict[str, object] = {"version": VERSION, "kind": 0, "run": 9, "batch": 4, "sender": 7, "receiver": 2}
    fields |= {"probes": [0, 1], "numbers": [0.5, -1.0]}
    assert isinstance(decode(msgpack.packb(list(fields.values()))), Feedback), "what is changed was good"
    return list((fields | changes).values())


@pytest.mark.parametrize(
    "fields",
    [
        [],
        feedback()[:-1],
        [*feedback(), 0],
        feedback(version=VERSION - 1),
        feedback(kind=1),
        feedback(kind=3),
        [*feedback(kind=3)[:-2], [0.5]],
        [*feedback(kind=3)[:-2], b""],
        feedback(kind=4),
        feedback(kind=-1),
        feedback(batch=-4),
        feedback(batch=4.0),
        feedback(batch=True),
        feedback(batch="4"),
        feedback(receiver=None),
        feedback(probes=[]),
        feedback(probes=[0, -1]),
        feedback(probes=[0, 1.0]),
        feedback(probes=7),
        feedback(numbers=[]),
        feedback(numbers=[1.0, 2.0, 3.0]),
        feedback(numbers=[1, 2]),
        feedback(numbers=["a", "b"]),
        feedback(numbers={"a": 1.0}),
        feedback(numbers=[[1.0], [2.0]]),
        feedback(run=msgpack.ExtType(5, b"x")),
        feedback(run=msgpack.Timestamp(1)),
    ],
    ids=str,
)
def test_refused(fields: list) -> None:
    with pytest.raises(FeedbackError):
        decode(msgpack.packb(fields))


def test_claims_are_not_believed() -> None:
    """Arrays that claim to be long, one in the other, cost no more than the message's own size allows."""
    data = b"\xdd\x00\x10\x00\x00" * 200  # 200 times an array of 2**20 items
    tracemalloc.start()
    with pytest.raises(FeedbackError):
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(data) * 200 + 100_000
