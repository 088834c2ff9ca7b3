"""Processes change nothing: one process and 2, 4 and 8 compute the same bits, over real sockets."""

import itertools
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launching import ROOT, fork, launch

pytestmark = pytest.mark.timeout(1200)
STEPS, BATCH = 20, 16
WINDOWS = ("1", "3", "auto")
METHODS = {"global": ["target=global", "scope=block"], "intermediate": ["target=intermediate", "scope=block"]}
COMMON = [
    "epochs=2", f"data.train_samples={STEPS * BATCH // 2}", f"batch_size={BATCH}", "data.test_samples=50",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false",
]  # fmt: skip
RUNS = {
    f"{name}-{window}": [*COMMON, *overrides, f"window={window}"]
    for (name, overrides), window in itertools.product(METHODS.items(), WINDOWS)
}
RUNS["greedy"] = [*COMMON, "target=local", "window=auto"]
RUNS["tensor"] = [*COMMON, "window=auto"]
RUNS["activity"] = [*COMMON, "space=activity", "guess=gaussian", "optim.lr=0.01", "window=auto"]
RUNS["local-ntk"] = [*COMMON, "target=local", "guess=ntk", "space=activity", "head=linear", "window=auto"]
RUNS["coded"] = [*COMMON, "lanes=2", "decode=predicted", "step=normalised", "target=intermediate", "target.depth=3"]
RUNS["bfloat16"] = [*COMMON, "lanes=1", "window=auto", "autocast=true", "wire=bfloat16"]
RUNS["subspace"] = [*COMMON, "guess=local_subspace", "space=activity", "guess.directions=3", "window=auto"]
RUNS["error"] = [*COMMON, "guess=error", "space=activity", "window=auto"]
RUNS["distilled"] = [*COMMON, "guess=error", "space=activity", "window=auto", "head.learns=distilled"]
RUNS["twins"] = [*COMMON, "guess=twins", "guess.ahead=2", "guess.every=3", "space=activity", "window=auto"]
RUNS["twins_of_all"] = [*COMMON, "guess=twins", "guess.ahead=null", "guess.every=1", "space=activity", "window=1"]
RUNS["own_twins"] = [*RUNS["twins"], "target=local", "guess.second=own", "guess.share=0.5"]
RUNS["gpipe"] = [*COMMON, "guess=end_to_end", "wire=bfloat16"]
RUNS["1f1b"] = [*COMMON, "guess=end_to_end", "schedule=1f1b", "microbatches=8", "observe.heads=true"]
RUNS["zero_bubble"] = [*COMMON, "guess=end_to_end", "schedule=zero_bubble", "microbatches=8"]
RUNS["async_1f1b"] = [*COMMON, "guess=end_to_end", "schedule=async_1f1b", "wire=bfloat16", "observe.heads=true"]
RUNS["2bw"] = [*COMMON, "guess=end_to_end", "schedule=async_1f1b", "stash=two", "microbatches=8", "wire=int8"]
RUNS["int8"] = [*COMMON, "scope=block", "window=auto", "wire=int8"]
RUNS["1f1b_int8"] = [*COMMON, "guess=end_to_end", "schedule=1f1b", "microbatches=8", "wire=int8"]
RUNS["zero_bubble_int8"] = [*COMMON, "guess=end_to_end", "schedule=zero_bubble", "microbatches=8", "wire=int8"]
RUNS["eager"] = [*COMMON, "scope=block", "feedback=eager"]
FEW = (
    "global-auto",
    "intermediate-3",
    "greedy",
    "tensor",
    "activity",
    "coded",
    "1f1b",
    "async_1f1b",
    "2bw",
    "eager",
)
"""Those that fewer processes than blocks run too; what a scalar or a lane is does not depend on who sits where."""
SIXTEEN = {"plain": [*COMMON, "model=resnet18_16", "window=auto", "scope=block", "model.width=0.1"]}


def recorded(folder: Path, processes: int, runs: dict[str, list[str]]) -> dict[str, dict[str, np.ndarray]]:
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps(runs))
    done = fork(processes, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return results(folder, runs)


def results(folder: Path, runs: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays that all processes of each run recorded; no name begins with another's and a hyphen."""
    assert not [name for name in runs for other in runs if name.startswith(f"{other}-")]
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in runs}
    for name, arrays in found.items():
        for file in folder.glob(f"{name}-*.npz"):
            arrays.update(np.load(file))
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    return recorded(tmp_path_factory.mktemp("runs") / "one", 1, RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [*(pytest.param(n, marks=pytest.mark.long) for n in (2, 4)), 8])
def test_processes_change_nothing(processes: int, one, tmp_path: Path) -> None:
    """Every loss of 20 steps, of the tests between, and every final weight and statistic, bit for bit."""
    runs = RUNS if processes == 8 else {name: RUNS[name] for name in FEW}
    many = recorded(tmp_path / "many", processes, runs)
    for name in runs:
        if name == "eager":
            continue  # the order of its updates depends on timing; see test_eager
        assert one[name].keys() == many[name].keys()
        assert len(one[name]["loss/True/7"]) == STEPS
        differing = [key for key, value in one[name].items() if not np.array_equal(value, many[name][key])]
        assert not differing, f"{name}: {differing[:5]}"
    check_eager(tmp_path / "many" / "eager" / "summary.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [pytest.param([4, 4], marks=pytest.mark.long), pytest.param([2, 2, 2, 2], marks=pytest.mark.long), [1, 4, 3]],
    ids=str,
)
def test_modules(sizes: list[int], tmp_path: Path) -> None:
    """Groups of blocks in as many processes and in one: the same bits over 20 steps, for every kind of target."""
    keys = [*COMMON, f"model.modules={sizes}".replace(" ", ""), "scope=block", "window=auto"]
    runs = {target: [*keys, f"target={target}"] for target in ("local", "global", "intermediate")}
    one, many = (recorded(tmp_path / str(n), n, runs) for n in (1, len(sizes)))
    last = len(sizes) - 1
    for name in runs:
        assert one[name].keys() == many[name].keys() and len(one[name][f"loss/True/{last}"]) == STEPS
        differing = [key for key, value in one[name].items() if not np.array_equal(value, many[name][key])]
        assert not differing, f"{name}: {differing[:5]}"


@pytest.mark.slow
def test_placement_changes_nothing(one, tmp_path: Path) -> None:
    """Four processes that stand along the pipeline in another order; ranks hold the blocks of their positions."""
    ranks, sizes = [2, 0, 3, 1], [3, 2, 1, 2]
    (tmp_path / "placement.yaml").write_text(f"ranks: {ranks}")
    placed = [f"placement={tmp_path / 'placement.yaml'}", f"partition={sizes}"]
    runs = {name: [*RUNS[name], *placed] for name in ("global-auto", "intermediate-3", "tensor", "activity", "coded")}
    many = recorded(tmp_path / "many", 4, runs)
    for name, arrays in many.items():
        assert arrays.keys() == one[name].keys()
        differing = [key for key, value in one[name].items() if not np.array_equal(value, arrays[key])]
        assert not differing, f"{name}: {differing[:5]}"
        summary = json.loads((tmp_path / "many" / name / "summary.json").read_text())
        assert summary["ranks"] == ranks and summary["blocks_per_process"] == sizes
        bounds = list(itertools.accumulate(sizes, initial=0))
        for rank, first, end in zip(ranks, bounds, bounds[1:], strict=False):
            with np.load(tmp_path / "many" / f"{name}-{rank}.npz") as own:
                assert {int(key.split("/")[1]) for key in own if key.startswith("block/")} == set(range(first, end))


def check_eager(summary: Path) -> None:
    """Staleness is recorded, and never reaches the window."""
    figures = json.loads(summary.read_text())
    for block, window in enumerate(figures["windows"]):
        staleness = figures["staleness"][str(block)]
        assert 0 <= staleness["min"] <= staleness["mean"] <= staleness["max"] <= window - 1


def test_windows_change_something(one) -> None:
    """Were the window ignored, the equality above would say nothing."""
    for name in METHODS:
        by_window = [one[f"{name}-{window}"]["loss/True/7"] for window in WINDOWS]
        assert not any(np.array_equal(a, b) for a, b in itertools.combinations(by_window, 2))


@pytest.mark.slow
def test_sixteen_blocks_in_four_processes(tmp_path: Path) -> None:
    """A partition of unequal runs of blocks."""
    runs = (recorded(tmp_path / str(n), n, SIXTEEN)["plain"] for n in (1, 4))
    first, second = runs
    assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    assert json.loads((tmp_path / "4" / "plain" / "summary.json").read_text())["blocks_per_process"] != [4, 4, 4, 4]


def test_staleness_is_the_window(one, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In order, a batch's scalars are applied exactly W - 1 updates late once the pipeline is full."""
    summary = next(tmp_path_factory.getbasetemp().glob("runs*/one/global-3/summary.json"))
    figures = json.loads(summary.read_text())
    assert figures["windows"] == [3] * 7 + [1]
    for block in range(7):
        assert figures["staleness"][str(block)]["max"] == 2
        assert figures["staleness"][str(block)]["min"] == 0
    assert figures["staleness"]["7"] == {"min": 0.0, "mean": 0.0, "max": 0.0}


def test_torchrun_with_one_process(tmp_path: Path) -> None:
    """World size 1 under torchrun is one process too."""
    arguments = [*COMMON, f"run_dir={tmp_path / 'run'}"]
    done: subprocess.CompletedProcess[str] = launch(0, "-m", "fgpipe.train", *arguments)
    assert done.returncode == 0, done.stderr
