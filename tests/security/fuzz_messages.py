"""Coverage-guided fuzzing of the feedback messages' codec and of the mailbox behind it. Not a test: run it by hand.

    pip install atheris
    python -m tests.security.fuzz_messages -max_total_time=600 -max_len=4096 -rss_limit_mb=1024 CORPUS_FOLDER

msgpack's C unpacker, which decodes here as it does in a run, cannot be instrumented; so that the fuzzer learns the
format, each input goes through msgpack's Python unpacker too. Whatever is not refused must survive the way back.
"""

import sys
import tempfile
from pathlib import Path

import atheris

from fgpipe.observe.metrics import Metrics

with atheris.instrument_imports(include=["fgpipe", "msgpack"]):
    import msgpack.fallback

    from fgpipe.errors import FeedbackError
    from fgpipe.wire.feedback import mailbox, messages

PROBES, SAMPLES, WINDOW, RUN = 3, 4, 4, 12345
METRICS = Metrics(8)


def one_input(data: bytes) -> None:
    """Anything but a `FeedbackError` is a crash."""
    try:
        msgpack.fallback.unpackb(data, max_array_len=len(data), **messages.NOTHING_ELSE)
    except Exception:  # noqa: BLE001, S110 - of a library, on random bytes
        pass
    try:
        message = messages.decode(data)
    except FeedbackError:
        return
    data = messages.encode(message)
    assert messages.encode(messages.decode(data)) == data  # in bytes, as NaN is equal to nothing
    for lost in ("retry", "skip", "fail"):
        due = mailbox.Due(RUN, 7, 2, PROBES, PROBES * SAMPLES)
        box = mailbox.Mailbox(due, window=WINDOW, lost=lost, metrics=METRICS)
        if isinstance(message, messages.Request | messages.Weights):
            continue
        try:
            box.put(message)
        except FeedbackError:
            continue
        assert (message.run, message.sender, message.receiver) == (RUN, 7, 2) and message.batch < WINDOW


def seeds(folder: Path) -> None:
    """One message of each kind, for the fuzzer to start from."""
    numbers = tuple(0.5 * i for i in range(PROBES * SAMPLES))
    kinds: list[messages.Message] = [
        messages.Feedback(RUN, 0, 7, 2, tuple(range(PROBES)), numbers),
        messages.Request(RUN, 1, 2, 7),
        messages.Lost(RUN, 2, 7, 2),
        messages.Weights(RUN, 3, 7, 2, bytes(range(9))),
    ]
    for batch, message in enumerate(kinds):
        (folder / str(batch)).write_bytes(messages.encode(message))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seeds(Path(folder))
        atheris.Setup([*sys.argv, folder], one_input)
        atheris.Fuzz()
