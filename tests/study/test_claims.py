"""Verdicts, alignment and ranks on made-up accuracies whose differences and intervals are worked out by hand."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from fgpipe.study.card.alignment import Positivity, alignment_verdicts
from fgpipe.study.card.claims import ClaimVerdict, verdicts
from fgpipe.study.card.measured import Collection, published_values
from fgpipe.study.card.ranks import PARTS, Ranks
from fgpipe.study.paper.tables import Key
from tests.study.results import key, write_run


def verdict_on(claim: str, values: Mapping[Key, Mapping[int, float]]) -> ClaimVerdict:
    return next(verdict for verdict in verdicts(values) if verdict.claim.startswith(claim))


def test_interval_and_words_by_hand() -> None:
    """Differences 1, 2, 3, 6: mean 3, deviation sqrt(14/3); Student's t, 3 degrees of freedom, 97.5 %: 3.1824."""

    def of(*differences: float) -> ClaimVerdict:
        return ClaimVerdict("", "points", "pairs", "", list(differences))

    assert of(1, 2, 3, 6).mean == 3 and of(1, 2, 3, 6).half_width == pytest.approx(3.182446 * math.sqrt(14 / 3) / 2)
    assert of(1, 2, 3, 6).word == "too little data", "3 - 3.44 is below zero"
    assert of(2, 2.5, 3, 2.5).word == "supported"
    assert of(-2, -2.5, -3, -2.5).word == "contradicted"
    assert of(50, 50).word == "too little data", "two pairs are no interval"
    assert of(1, 2, 3, 6).needed == 5, "2.7764 * sqrt(14/3) / sqrt(5) = 2.68 is below 3"
    assert of(1, 2, 3, 6).numbers.endswith("; 5 would decide at this mean and spread")
    assert of(1, -1, 2, -2).needed is None and of(2, 2.5, 3, 2.5).needed is None and of(50, 50).needed is None
    assert of().numbers == "no pairs" and of(1, -2).numbers == "-0.5 points; 1 of 2 pairs in favour"


def test_differences_by_hand() -> None:
    """Cells are compared by the mean over the seeds that they share, and pairs that share a cell are averaged."""
    values = {
        key("local", "mlp", "weight"): {0: 80.0, 1: 82.0},
        key("local", "mlp", "activity"): {0: 70.0, 2: 1.0},
        key("local", "cnn", "activity"): {0: 10.0},
        key("local", "mlp", "weight", blocks=16): {0: 75.0, 1: 76.0},
        key("gaussian", None, "weight"): {0: 50.0, 1: 49.0},
        key("rademacher", None, "activity"): {0: 40.0},
        key("local", "mlp", None, target="local"): {0: 81.0, 1: 84.0},
        key("local", "mlp", "weight", target="intermediate"): {1: 81.5},
        key("ntk", "mlp", "weight"): {0: 60.0},
    }
    expected = {
        "Local guesses beat random": [0.0, 31.5],  # activity: 30 and -30; weight: 30 and 33
        "Weight space beats": [10.0],
        "8 blocks beat 16": [5.5],
        "Global targets beat intermediate": [0.5],
        "Global targets beat local": [-6.25],  # -1 and -2 in weight space, -11 in activity space
        "Width helps": [],
    }
    for claim, differences in expected.items():
        assert sorted(verdict_on(claim, values).differences) == sorted(differences), claim
    assert verdict_on("Local guesses beat random", values).details == ["3 pairs of cells in 2 groups"]


def test_pairs_that_share_a_run_are_one_group() -> None:
    """Three auxiliary nets and two kinds of noise are six pairs of cells, and one number for each net and space."""
    values = {}
    for number, (blocks, space) in enumerate(itertools.product((8, 16), ("weight", "activity"))):
        for aux, accuracy in (("cnn", 50.0), ("mlp", 60.0), ("linear", 40.0)):
            values[key("local", aux, space, blocks=blocks)] = {0: accuracy + number}
        for guess, accuracy in (("gaussian", 30.0), ("rademacher", 20.0)):
            values[key(guess, None, space, blocks=blocks)] = {0: accuracy}
    verdict = verdict_on("Local guesses beat random", values)
    assert sorted(verdict.differences) == [25.0, 26.0, 27.0, 28.0]
    assert verdict.numbers.startswith("+26.5 [") and verdict.numbers.endswith("4 of 4 groups in favour")
    assert verdict.details == ["24 pairs of cells in 4 groups"]


def test_seeds_do_not_narrow_the_interval_of_cells() -> None:
    """The same accuracies with every seed say no more than one seed does; seeds have an interval of their own."""
    one = {
        key("local", aux, space): {0: accuracy}
        for aux, by_space in (("cnn", (60.0, 57.0)), ("mlp", (64.0, 62.0)), ("linear", (50.0, 49.0)))
        for space, accuracy in zip(("weight", "activity"), by_space, strict=True)
    }
    many = {cell: dict.fromkeys(range(5), accuracy[0]) for cell, accuracy in one.items()}
    for claim in ("Weight space", "8 blocks", "Local guesses"):
        first, second = verdict_on(claim, one), verdict_on(claim, many)
        assert first.differences == second.differences and first.numbers == second.numbers
    assert verdict_on("Weight space", one).half_width == pytest.approx(4.30265 / math.sqrt(3))  # 1, 2, 3
    many[key("local", "cnn", "weight")] = {0: 58.0, 1: 59.0, 2: 60.0}  # 1, 2, 3 above activity
    (shown, *others) = verdict_on("Weight space", many).details
    assert shown == (
        "cifar10-8-global-local-cnn-weight less cifar10-8-global-local-cnn-activity, "
        "seeds 0,1,2: +2 [-0.484, +4.48] points"
    )
    assert len(others) == 2


def test_widths() -> None:
    values = {
        key("local", "cnn", "weight", blocks=16, width="w3"): {0: 90.0},
        key("local", "cnn", "weight", blocks=16): {0: 5.0},
        key("local", "cnn", "weight", blocks=16, width="w1"): {0: 80.0},
        key("gaussian", None, "weight", blocks=16, width="w1"): {0: 50.0},
        key("gaussian", None, "weight", blocks=16): {0: 45.0},
        key("rademacher", None, "weight", blocks=16): {0: 45.0},
    }
    assert verdict_on("Width helps local", values).differences == [10.0]
    assert verdict_on("Width hurts random", values).differences == [5.0]


def test_spearman_by_hand_and_disagreements() -> None:
    """Five cells in their published order have measured ranks 1 2 3 5 4: 1 - 6 (1 + 1) / (5 (25 - 1)) = 0.9."""
    keys = [key("local", aux, space) for aux, space in (("cnn", "weight"), ("mlp", "weight"), ("cnn", "activity"))]
    keys += [key("ntk", "mlp", "weight"), key("ntk", "cnn", "activity")]  # published 92.0 91.6 90.4 63.1 55.2
    values = {what: {0: number} for what, number in zip(keys, [70.0, 60.0, 50.0, 30.0, 40.0], strict=True)}
    values[key("gaussian", None, "weight")] = {0: 99.0}  # not published
    values[key("local", "mlp", "weight", target="intermediate")] = {0: 1.0}  # not in tables 2 and 3
    ranks = Ranks.of(values, published_values())
    assert set(ranks.keys) == set(keys)
    assert ranks.spearman == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert set(ranks.disagreements[:2]) == {(keys[3], 5.0, 4.0), (keys[4], 4.0, 5.0)}
    assert {(a, b) for _, a, b in ranks.disagreements[2:]} == {(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)}
    assert Ranks.of({keys[0]: {0: 1.0}}, published_values()).spearman is None


def test_verdicts_on_the_published_numbers() -> None:
    """The paper's own tables, by the same test: what it says in words holds, but for the target (see docs/results)."""
    words = {verdict.claim.split(" (")[0]: verdict.word for verdict in verdicts(published_values())}
    assert words["Local guesses beat random ones"] == "supported"
    assert words["Weight space beats activity space for local guesses"] == "supported"
    assert words["8 blocks beat 16"] == "supported"
    assert words["Width helps local guesses"] == "supported"
    assert words["Global targets beat local ones for local guesses"] == "contradicted"


def test_correlation_without_a_row_by_hand() -> None:
    """Without the cell at fault the order is the published one; the interval comes out the same every time."""
    keys = [key("local", aux, "weight") for aux in ("cnn", "mlp", "linear")]  # published 92.0 91.6 88.9
    keys += [key("ntk", "mlp", "weight"), key("ntk", "mlp", "activity")]  # 63.1 61.6
    values = {what: {0: number} for what, number in zip(keys, [70.0, 60.0, 20.0, 40.0, 30.0], strict=True)}
    ranks = Ranks.of(values, published_values())
    assert ranks.spearman == pytest.approx(1 - 6 * (4 + 1 + 1) / (5 * 24))
    table = {(row.guess, row.aux): dict(zip(PARTS, numbers, strict=True)) for row, numbers in ranks.without_row()}
    assert table["local", "linear"]["both blocks and spaces"] == pytest.approx(1)
    assert table["local", "linear"]["8 blocks"] == pytest.approx(1)
    assert table["local", "linear"]["16 blocks"] is None and table["local", "linear"]["activity"] is None
    assert table["ntk", "mlp"]["activity"] == pytest.approx(1 - 6 * (1 + 1) / (4 * 15))
    assert table["ntk", "mlp"]["both blocks and spaces"] == pytest.approx(1)
    assert ranks.interval is not None and ranks.spearman is not None
    low, high = ranks.interval
    assert -1 <= low < ranks.spearman < high <= 1 and Ranks.of(values, published_values()).interval == (low, high)
    agreeing = Ranks(keys, [5.0, 4.0, 3.0, 2.0, 1.0], [50.0, 40.0, 30.0, 20.0, 10.0])
    assert agreeing.interval == pytest.approx((1, 1)), "every draw of cells in one order is in that order"


def test_alignment_rises_by_cell_and_space(tmp_path: Path) -> None:
    for aux, rise in (("cnn", 0.1), ("mlp", 0.2), ("linear", 0.3)):
        steps = {0: [0.05] * 3 + [0.05 + rise] * 4, 10: [0.05] * 7}
        for seed in range(3):  # of one cell: they are no three cells
            write_run(tmp_path, key("local", aux, "weight"), 50, seed=seed, cosine=steps)
    write_run(tmp_path, key("local", "mlp", "activity"), 50, cosine={0: [0.4] * 3 + [0.1] * 4})
    write_run(tmp_path, key("local", "mlp", "weight", target="intermediate"), 50, cosine={0: [-0.9] * 7})
    write_run(tmp_path, key("gaussian", None, "weight"), 50, cosine={0: [-0.9] * 7})
    verdicts = {verdict.claim: verdict for verdict in alignment_verdicts(Collection.read(tmp_path).kept)}
    weight, activity = (verdicts[f"Alignment rises with depth, {space} space"] for space in ("weight", "activity"))
    assert isinstance(weight, ClaimVerdict) and isinstance(activity, ClaimVerdict)
    assert sorted(weight.differences) == pytest.approx([0.05, 0.1, 0.15]) and weight.noun == "cells"
    assert activity.differences == pytest.approx([-0.3]) and activity.word == "too little data"
    positive = verdicts["Alignment stays positive, weight space"]
    assert isinstance(positive, Positivity)
    assert positive.cells[key("local", "cnn", "weight")][0] == pytest.approx([0.05] * 6), "a number for each step"
    assert positive.word == "supported"
    assert positive.numbers.startswith(
        "21 of 21 block means above 0 by their intervals, in 3 cells; the lowest is +0.05 ("
    )
    assert verdicts["Alignment stays positive, activity space"].word == "too little data", "one cell"


def test_positivity_is_a_matter_of_every_interval() -> None:
    """Supported needs each interval above zero; one mean that may be zero leaves it open, one clearly below contradicts it."""
    cells = {key("local", aux, "weight"): [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]] for aux in ("cnn", "mlp", "linear")}
    unsure = Positivity("", cells)
    assert unsure.word == "too little data", "0.2 +- 4.303 * 0.1 / sqrt(3) = 0.2 +- 0.248"
    assert unsure.numbers.startswith("3 of 6 block means above 0 by their intervals, in 3 cells; the lowest is +0.2 (")
    assert unsure.details[0] == "not clearly above 0: cifar10-8-global-local-cnn-weight: block 0 +0.2"
    cells = {each: [[0.15, 0.2, 0.25], [0.2, 0.2, 0.2]] for each in cells}
    assert Positivity("", cells).word == "supported" and Positivity("", cells).details == []
    cells[key("local", "mlp", "weight")] = [[-0.1, -0.11, -0.1, -0.1], [0.2, 0.2, 0.2]]
    assert Positivity("", cells).word == "contradicted" and len(Positivity("", cells).details) == 1
    cells[key("local", "mlp", "weight")] = [[-0.09, -0.11, -0.13], [0.2, 0.2, 0.2]]
    assert Positivity("", cells).word == "too little data", "below zero at 95 %, not at a level for six intervals"
    cells[key("local", "mlp", "weight")] = [[0.1], [0.2]]
    assert Positivity("", cells).word == "too little data", "one step"
    assert Positivity("", {}).numbers == "no cells"
