"""Axes of a chart: values to pixels, ticks at round numbers, and numbers as text with units."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Text = Callable[[float], str]
"""Value -> what stands at its tick."""
STEPS = (1, 2, 5, 10)
MANY = 10
"""Largest over smallest value from which on a positive axis is logarithmic."""


@dataclass(frozen=True)
class Scale:
    """One axis: values from `low` to `high` are `start` to `end` in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(self._stretched, (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1)

    def _stretched(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 7, whole: bool = False) -> list[float]:
        """Round numbers on the axis, about `most` of them; of a `whole` one no fractions."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            thin = -(-len(powers) // most)
            digits = (1, 2, 5) if self.high < 30 * self.low else (1, 3) if self.high < 1000 * self.low else (1,)
            return [each for power in powers[::thin] for digit in digits if self.holds(each := digit * 10.0**power)]
        step = _round((self.high - self.low) / most or 1)
        step = max(1, round(step)) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def holds(self, value: float) -> bool:
        """Whether a value is on the axis."""
        return self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)


def _round(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(each * power for each in STEPS if each * power >= step * (1 - 1e-9))


def around(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
    """An axis for values; logarithmic if that is asked for and they are positive and far apart."""
    found = list(values)
    low, high = min(found), max(found)
    if log and low > 0 and high / low > MANY:
        return Scale(low, high, start, end, log=True)
    margin = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
    return Scale(max(0.0, low - margin) if low >= 0 else low - margin, high + margin, start, end)


def number(value: float) -> str:
    """A number in four digits at most, or with an exponent."""
    return f"{value:.4g}"


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def size(count: float) -> str:
    """Bytes in three digits, with a decimal unit."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = next((k for k in range(len(units)) if count < 999.5 * 1000**k), len(units) - 1)
    return f"{float(f'{count / 1000**power:.3g}'):g} {units[power]}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    minutes, left = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    return f"{minutes}:{left:02} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def spread(places: Iterable[float], least: float, low: float, high: float) -> Iterator[float]:
    """Move labels at increasing places apart, by `least` pixels, within `low` and `high` where there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + least if moved else low))
    limit = high
    for position in reversed(range(len(moved))):
        moved[position] = min(moved[position], limit)
        limit = moved[position] - least
    yield from moved
