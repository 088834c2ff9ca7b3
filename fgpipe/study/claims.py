"""What the paper claims in words, held against accuracies: a verdict from paired differences with an interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats

from fgpipe.study.measured import Measurement, Values
from fgpipe.study.paper import Key

CONFIDENCE = 0.95
FEWEST = 3
"""Pairs that an interval needs."""
RANDOM = ("gaussian", "rademacher")
WIDTHS = ("w1", "1", "w2", "w3")
"""Narrow to wide, by the factors of our profiles."""

Pairs = Callable[[Values], Iterator[tuple[Key, Key]]]
"""Yields what must be higher, and what must be lower, if the claim holds; either may be unmeasured."""


@dataclass(frozen=True)
class Verdict:
    """A claim and the differences that speak for it (positive) or against it."""

    claim: str
    unit: str
    """Of the differences."""
    differences: list[float]
    """One for each pair of runs that differ in nothing but what the claim is about, seed included."""

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def half_width(self) -> float | None:
        """Of the interval of `CONFIDENCE` around the mean (Student's t); None with fewer than `FEWEST` pairs."""
        count = len(self.differences)
        if count < FEWEST:
            return None
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(self.differences) / math.sqrt(count)

    @property
    def word(self) -> str:
        """supported | contradicted | too little data."""
        half = self.half_width
        if half is None or abs(self.mean) <= half:
            return "too little data"
        return "supported" if self.mean > 0 else "contradicted"

    @property
    def numbers(self) -> str:
        count, half = len(self.differences), self.half_width
        if not count:
            return "no pairs"
        interval = "" if half is None else f" [{self.mean - half:+.3g}, {self.mean + half:+.3g}]"
        favourable = sum(difference > 0 for difference in self.differences)
        return f"{self.mean:+.3g}{interval} {self.unit}; {favourable} of {count} pairs in favour"


def verdicts(values: Values) -> list[Verdict]:
    """On every claim about accuracies."""
    return [Verdict(claim, "points", list(differences(values, pairs))) for claim, pairs in CLAIMS.items()]


def differences(values: Values, pairs: Pairs) -> Iterator[float]:
    """First minus second of every pair that was measured with the same seed."""
    for first, second in pairs(values):
        if first in values and second in values:
            for seed in sorted(values[first].keys() & values[second].keys()):
                yield values[first][seed] - values[second][seed]


def alignment_verdicts(measurements: Sequence[Measurement]) -> list[Verdict]:
    """On the two claims about the cosine of local guess and global target, from the runs that observed it."""
    runs = [cosine_by_block(each) for each in measurements if each.cosine and each.key.guess == "local"]
    rise = [mean(by_block[len(by_block) // 2 :]) - mean(by_block[: len(by_block) // 2]) for by_block in runs]
    return [
        Verdict("Alignment rises with depth (upper half of the blocks less lower half, of each run)", "cosine", rise),
        Verdict(
            "Alignment stays positive (lowest block mean of each run)", "cosine", [min(by_block) for by_block in runs]
        ),
    ]


def cosine_by_block(measurement: Measurement) -> list[float]:
    """Mean over the observed steps."""
    lines = [line for _, line in measurement.cosine]
    return [mean(line[block] for line in lines) for block in sorted(lines[0])]


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


def _widest_narrowest(guesses: Sequence[str], sign: int) -> Pairs:
    def pairs(values: Values) -> Iterator[tuple[Key, Key]]:
        for base in sorted(
            {key._replace(width="") for key in values if key.guess in guesses and key.target == "global"}, key=str
        ):
            present = [base._replace(width=width) for width in WIDTHS if base._replace(width=width) in values]
            if len(present) > 1:
                yield (present[-1], present[0])[::sign]

    return pairs


CLAIMS: dict[str, Pairs] = {
    "Local guesses beat random ones (global target)": _local_random,
    "Weight space beats activity space for local guesses": _weight_activity,
    "8 blocks beat 16": _eight_sixteen,
    "Global targets beat intermediate ones for local guesses": _global_over("intermediate"),
    "Global targets beat local ones for local guesses": _global_over("local"),
    "Width helps local guesses (widest less narrowest)": _widest_narrowest(("local",), 1),
    "Width hurts random guesses (narrowest less widest)": _widest_narrowest(RANDOM, -1),
}


@dataclass(frozen=True)
class Ranks:
    """How the measured order of cells agrees with the published one."""

    keys: list[Key]
    measured: list[float]
    published: list[float]

    @classmethod
    def of(cls, values: Values, published: Values) -> "Ranks":
        """Over the cells of tables 2 and 3 on CIFAR-10 that are measured and published; seeds averaged."""
        keys = [key for key in published if key in values and _in_tables_2_and_3(key)]
        return cls(keys, [mean(values[key].values()) for key in keys], [published[key][0] for key in keys])

    @property
    def spearman(self) -> float | None:
        """None with fewer than three cells, or all of one rank."""
        if len(self.keys) < 3 or len(set(self.measured)) == 1 or len(set(self.published)) == 1:
            return None
        return float(stats.spearmanr(self.measured, self.published).statistic)

    @property
    def disagreements(self) -> list[tuple[Key, float, float]]:
        """Key, measured rank and published rank (1 is the best), the largest difference first."""
        ranks = [stats.rankdata([-value for value in values]) for values in (self.measured, self.published)]
        rows = [(key, float(a), float(b)) for key, a, b in zip(self.keys, *ranks, strict=True)]
        return sorted(rows, key=lambda row: -abs(row[1] - row[2]))


def _in_tables_2_and_3(key: Key) -> bool:
    guesses = ("end_to_end", "local", "ntk", *RANDOM)
    return (
        key.dataset == "cifar10"
        and key.target == "global"
        and key.width == "1"
        and key.guess in guesses
        and key.aux != "predsim"
    )
