"""Claims of the paper in words, held against accuracies: a verdict from paired differences with an interval.

The seeds of a cell are averaged first, and pairs of cells that share a run are averaged into one group, so that the
interval is over values that share no run.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import NamedTuple

from scipy import stats

from fgpipe.study.card.measured import Values
from fgpipe.study.paper.tables import Key

CONFIDENCE = 0.95
FEWEST = 3
"""Values that an interval needs."""
MOST = 1_000_000
"""Values beyond which nobody asks how many it would take."""
RANDOM = ("gaussian", "rademacher")
WIDTHS = ("w1", "1", "w2", "w3")
"""Widths from narrow to wide, by the factors of our profiles."""

Pairs = Callable[[Values], Iterator[tuple[Key, Key]]]
"""Yields what must be higher, and what must be lower, if the claim holds; either may be unmeasured."""


@dataclass(frozen=True)
class ClaimVerdict:
    """Claim and the differences that speak for it (positive) or against it."""

    claim: str
    unit: str
    """Unit of the differences."""
    noun: str
    """Plural of what has one difference each."""
    sample: str
    """Meaning of one of these, for a person to read."""
    differences: list[float]
    details: list[str] = field(default_factory=list)
    """Lines for a person to read."""

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def half_width(self) -> float | None:
        return half_width(self.differences)

    @property
    def word(self) -> str:
        """Verdict: supported | contradicted | too little data."""
        half = self.half_width
        if half is None or abs(self.mean) <= half:
            return "too little data"
        return "supported" if self.mean > 0 else "contradicted"

    @property
    def numbers(self) -> str:
        if not self.differences:
            return f"no {self.noun}"
        favourable = sum(difference > 0 for difference in self.differences)
        shown = estimate(self.differences)
        found = f"{shown} {self.unit}; {favourable} of {len(self.differences)} {self.noun} in favour"
        return found if self.needed is None else f"{found}; {self.needed:,} would decide at this mean and spread"

    @property
    def needed(self) -> int | None:
        """Number of differences whose interval would leave zero out, at the mean and the spread of these.

        None: these decide, are too few for an interval, or `MOST` would not do.
        """
        if self.half_width is None or self.word != "too little data":
            return None
        spread = stdev(self.differences)
        counts = range(len(self.differences) + 1, MOST + 1)
        at = bisect_left(counts, True, key=lambda count: abs(self.mean) > _half_width(spread, count, CONFIDENCE))
        return None if at == len(counts) else counts[at]


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Half the interval around the mean (Student's t); None with fewer than `FEWEST` values."""
    if len(values) < FEWEST:
        return None
    return _half_width(stdev(values), len(values), confidence)


def _half_width(spread: float, count: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * spread / math.sqrt(count)


def estimate(values: Sequence[float]) -> str:
    """Mean with its interval, if there is one."""
    average, half = mean(values), half_width(values)
    return f"{average:+.3g}" + ("" if half is None else f" [{average - half:+.3g}, {average + half:+.3g}]")


def verdicts(values: Values) -> list[ClaimVerdict]:
    """Judge every claim about accuracies."""
    return [_verdict(claim, values) for claim in CLAIMS]


def _verdict(claim: "Claim", values: Values) -> ClaimVerdict:
    pairs = differences(values, claim.pairs)
    groups = grouped(pairs)
    details = []
    if len(groups) < len(pairs):
        details.append(f"{len(pairs)} pairs of cells in {len(groups)} groups")
    for (first, second), by_seed in pairs.items():
        if len(by_seed) >= FEWEST:
            seeds = ",".join(map(str, by_seed))
            details.append(f"{first.words} less {second.words}, seeds {seeds}: {estimate([*by_seed.values()])} points")
    return ClaimVerdict(claim.text, "points", claim.noun, claim.sample, [mean(group) for group in groups], details)


def differences(values: Values, pairs: Pairs) -> dict[tuple[Key, Key], dict[int, float]]:
    """Pair of cells -> seed that both were measured with -> first less second."""
    found = {}
    for first, second in pairs(values):
        seeds = sorted(values.get(first, {}).keys() & values.get(second, {}).keys())
        if seeds:
            found[first, second] = {seed: values[first][seed] - values[second][seed] for seed in seeds}
    return found


def grouped(pairs: Mapping[tuple[Key, Key], Mapping[int, float]]) -> list[list[float]]:
    """Mean over seeds of each pair, by groups that have no cell in common."""
    groups: list[tuple[set[Key], list[float]]] = []
    for pair, by_seed in pairs.items():
        keys, numbers = set(pair), [mean(by_seed.values())]
        for other in [group for group in groups if group[0] & keys]:
            groups.remove(other)
            keys, numbers = other[0] | keys, other[1] + numbers
        groups.append((keys, numbers))
    return [numbers for _, numbers in groups]


def _local_random(values: Values) -> Iterator[tuple[Key, Key]]:
    for key in values:
        if key.guess == "local" and key.target == "global":
            yield from ((key, key._replace(guess=guess, aux=None)) for guess in RANDOM)


def _weight_activity(values: Values) -> Iterator[tuple[Key, Key]]:
    return ((key, key._replace(space="activity")) for key in values if key.guess == "local" and key.space == "weight")


def _eight_sixteen(values: Values) -> Iterator[tuple[Key, Key]]:
    return ((key, key._replace(blocks=16)) for key in values if key.blocks == 8)


def _global_over(target: str) -> Pairs:
    def pairs(values: Values) -> Iterator[tuple[Key, Key]]:
        for key in values:
            if key.guess == "local" and key.target == "global" and key.space is not None:
                yield key, key._replace(target=target, space=None if target == "local" else key.space)

    return pairs


def _by_width(guesses: Sequence[str], helps: bool) -> Pairs:
    def pairs(values: Values) -> Iterator[tuple[Key, Key]]:
        by_base: dict[Key, list[Key]] = defaultdict(list)
        for key in sorted((key for key in values if key.width in WIDTHS), key=lambda key: WIDTHS.index(key.width)):
            if key.guess in guesses and key.target == "global":
                by_base[key._replace(width="")].append(key)
        for narrow, *wider in by_base.values():
            if wider:
                yield (wider[-1], narrow) if helps else (narrow, wider[-1])

    return pairs


class Claim(NamedTuple):
    """Statement of the paper, and the pairs of cells that speak of it."""

    text: str
    pairs: Pairs
    noun: str
    sample: str
    """Meaning of one value, as in `ClaimVerdict`."""


_PAIR = "two cells that are equal in all else"
CLAIMS = (
    Claim(
        "Local guesses beat random ones (global target)", _local_random, "groups",
        "all pairs of a local and a random cell of one data set, width, number of blocks and space, averaged",
    ),
    Claim("Weight space beats activity space for local guesses", _weight_activity, "pairs", _PAIR),
    Claim("8 blocks beat 16", _eight_sixteen, "pairs", f"{_PAIR}; 16 blocks are plain layers, 8 are residual"),
    Claim("Global targets beat intermediate ones for local guesses", _global_over("intermediate"), "pairs", _PAIR),
    Claim(
        "Global targets beat local ones for local guesses", _global_over("local"), "groups",
        "the weight and the activity cell of one net and auxiliary net, each less the local one, averaged",
    ),
    Claim("Width helps local guesses (widest less narrowest)", _by_width(("local",), helps=True), "pairs", _PAIR),
    Claim("Width hurts random guesses (narrowest less widest)", _by_width(RANDOM, helps=False), "pairs", _PAIR),
)  # fmt: skip
