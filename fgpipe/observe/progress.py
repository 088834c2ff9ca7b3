"""Display for a person while a run trains: a bar on a terminal, plain lines otherwise, and a closing table."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from tqdm import tqdm

from fgpipe.observe.metrics import Score

LINE_EVERY = 10.0
"""Seconds between plain lines."""


class Progress:
    """One progress line with loss and accuracy of the last block, images per second and the time left.

    Training goes on when nobody reads it any more.
    """

    def __init__(self, epochs: int, batches: int, batch_size: int) -> None:
        """Args: batches: of an epoch."""
        self._epochs, self._batches, self._batch_size = epochs, batches, batch_size
        self._done = self._epoch = 0
        self._training_seconds = 0.0
        self._shown = self._epoch_began = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=epochs * batches, unit="batch", leave=False) if on_terminal else None

    def resume(self, done: int, seconds: float) -> None:
        """`done` batches were trained before; the epochs that are complete took `seconds`."""
        self._done, self._training_seconds = done, seconds
        self._line(f"goes on from batch {done} of {self._epochs * self._batches}")
        if self._bar is not None:
            with suppress(OSError):
                self._bar.update(done)

    def begin_epoch(self, epoch: int, seconds: float = 0.0) -> None:
        """Training of an epoch begins, or goes on after `seconds`: the clock runs."""
        self._epoch = epoch
        self._epoch_began = time.monotonic() - seconds

    def batch(self, score: Score) -> None:
        """One more batch is trained; `score` is the last block's in this epoch so far."""
        self._done += 1
        now = time.monotonic()
        seconds = self._training_seconds + now - self._epoch_began
        speed = self._done * self._batch_size / seconds
        if self._bar is not None:
            self._bar.set_description(self._name(), refresh=False)
            self._bar.set_postfix_str(f"{_text(score)}, {speed:.0f} images/s", refresh=False)
            with suppress(OSError):
                self._bar.update()
        elif now - self._shown >= LINE_EVERY:
            self._shown = now
            left = (self._epochs * self._batches - self._done) * self._batch_size / speed
            batch = self._done - self._epoch * self._batches
            self._line(
                f"{self._name()} batch {batch}/{self._batches}: {_text(score)}, {speed:.0f} images/s, {_clock(left)} left"
            )

    def end_epoch(self, seconds: float, train: Score, test: Score) -> None:
        """The epoch is trained, in `seconds`, and tested; the scores are the last block's."""
        self._training_seconds += seconds
        speed = self._done * self._batch_size / self._training_seconds
        left = (self._epochs * self._batches - self._done) * self._batch_size / speed
        text = f"{self._name()}: train {_text(train)}; test {_text(test)}; {speed:.0f} images/s"
        self._line(text + (f", {_clock(left)} left" if self._epoch + 1 < self._epochs else ""))
        self._shown = time.monotonic()

    def _name(self) -> str:
        return f"epoch {self._epoch + 1}/{self._epochs}"

    def _line(self, text: str) -> None:
        with suppress(OSError):
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()


def closing_table(train: Mapping[int, Score], test: Mapping[int, Score], blocks: int) -> str:
    """Loss and accuracy of every block that has a head, in the last epoch."""
    rows = ["block   train loss   train acc.   test loss   test acc."]
    for block in range(blocks):
        if block in test:
            a, b = train.get(block), test[block]
            trained = " " * 23  # of a block that was away for the whole epoch
            if a is not None:
                trained = f"{a.loss:>10.4f}   {a.accuracy:>10.2%}"
            rows.append(f"{block:>5}   {trained}   {b.loss:>9.4f}   {b.accuracy:>9.2%}")
    if len(rows) < blocks + 1:
        rows.append("(blocks without a head of their own are not listed; observe.heads=true trains one beside each)")
    return "\n".join(rows)


def _text(score: Score) -> str:
    return f"loss {score.loss:.3f}, accuracy {score.accuracy:.1%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
