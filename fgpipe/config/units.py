"""Rates and times with their units, as `tc` writes them; upper and lower case mean the same."""

import re

RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
"""Bits per second."""
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Seconds."""
RATE = "a rate above 0 in kbit, Mbit or Gbit, such as 100Mbit"
TIME = "a time above 0 in us, ms or s, such as 50ms"


def bits_per_second(text: str) -> float:
    """`100Mbit` -> 1e8. Raises ValueError, which says what is allowed."""
    return _quantity(text, RATES, RATE)


def seconds(text: str) -> float:
    """`50ms` -> 0.05. Raises ValueError, which says what is allowed."""
    return _quantity(text, TIMES, TIME)


def _quantity(text: str, units: dict[str, float], allowed: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", text.lower())
    if not found or found[2] not in units or not float(found[1]):
        raise ValueError(allowed)
    return float(found[1]) * units[found[2]]
