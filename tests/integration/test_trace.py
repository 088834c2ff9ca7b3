"""`trace=true` and `slow.*` between real processes: the trace is a whole one, and neither changes a bit of the results."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.trainers.straggler import Straggler
from tests.integration.launching import ROOT, fork
from tests.observe.chrome import faults

pytestmark = pytest.mark.timeout(900)
PROCESSES, EPOCHS, BATCHES, BATCH, MICROBATCHES = 4, 2, 4, 32, 4
COMMON = [
    f"epochs={EPOCHS}", f"data.train_samples={BATCHES * BATCH}", f"batch_size={BATCH}", "data.test_samples=50",
    "model.width=0.07", "threads=1", "device=cpu", "observe.tensorboard=false", "head=linear", "partition=[3,2,2,1]",
]  # fmt: skip
SLOW = ["slow.block=3", "slow.factor=4", "slow.jitter=0.5"]
METHODS = {
    "global": ["scope=block"],
    "local": ["target=local"],
    "1f1b": ["guess=end_to_end", "schedule=1f1b", f"microbatches={MICROBATCHES}"],
}
RUNS = {name: [*COMMON, *method] for name, method in METHODS.items()}
RUNS |= {f"{name} traced": [*COMMON, *method, "trace=true"] for name, method in METHODS.items()}
RUNS |= {f"{name} slow": [*COMMON, *method, *SLOW, "trace=true"] for name, method in METHODS.items()}
TRACED = [name for name in RUNS if name not in METHODS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    done = fork(PROCESSES, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def events_in(folder: Path, name: str) -> list[Event]:
    return trace.events(folder / name / "trace.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_trace_is_whole(folder: Path, name: str) -> None:
    made = json.loads((folder / name / "trace.json").read_text())
    assert not list(faults(made))
    about = made["otherData"]
    assert about["dropped"]["events"] == [0] * PROCESSES
    assert [(each["rank"], each["same_host_as"]) for each in about["offsets"]] == [
        (rank, 0) for rank in range(PROCESSES)
    ]
    assert all(each[moment]["uncertainty"] == 0 for each in about["offsets"] for moment in ("before", "after"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global traced", "local traced"])
def test_everything_is_there_once(folder: Path, name: str) -> None:
    """Events of all 8 training batches and 8 blocks; what crosses a process is received, and each asker gets its
    scalars."""
    found = Counter((event.kind, event.block, event.batch) for event in events_in(folder, name))
    batches = range(EPOCHS * BATCHES)
    asks = range(7) if name.startswith("global") else ()
    expected = {
        **{(kind, block, batch): 1 for kind in ("forward", "update") for block in range(8) for batch in batches},
        **{("send", block, batch): 1 for block in range(7) for batch in batches},
        **{("receive", block, batch): 1 for block in (3, 5, 7) for batch in batches},
        **{(kind, block, batch): 1 for kind in ("guess", "push", "scalars") for block in asks for batch in batches},
        **{("reply", 7, batch): 7 for batch in batches if asks},
        **{("push", 7, batch): 1 for batch in batches if asks},
    }
    kinds = {kind for kind, _, _ in expected} | {"push", "scalars", "reply"}
    assert {key: count for key, count in found.items() if key[0] in kinds} == expected
    ways = list(trace.chains(trace.read(folder / name / "trace.json")))
    assert len(ways) == 7 * len(batches)
    assert {way[-1][1].kind for way in ways} == ({"update"} if asks else {"receive", "forward"})


@pytest.mark.slow
def test_backpropagation(folder: Path) -> None:
    """Each microbatch passes each block once upwards, and each process once downwards."""
    found = Counter((event.kind, event.block, event.batch, event.other) for event in events_in(folder, "1f1b traced"))
    everything = [(batch, microbatch) for batch in range(EPOCHS * BATCHES) for microbatch in range(MICROBATCHES)]
    for kind, blocks in (("forward", range(8)), ("backward", (0, 3, 5, 7))):
        assert {key: n for key, n in found.items() if key[0] == kind} == {
            (kind, j, *each): 1 for j in blocks for each in everything
        }
    assert not any(kind in ("reply", "scalars") for kind, *_ in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_not_a_bit_changes(folder: Path, name: str) -> None:
    """Neither by being watched nor by being slow."""

    def arrays(name: str) -> dict[str, np.ndarray]:
        return {
            key: array for rank in range(PROCESSES) for key, array in np.load(folder / f"{name}-{rank}.npz").items()
        }

    want, got = arrays(name.split()[0]), arrays(name)
    assert want.keys() == got.keys() and len(want) > 50
    assert not [key for key in want if not np.array_equal(want[key], got[key])]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_slow_block_is_slow(folder: Path, name: str) -> None:
    """Each of its updates, by the factor of the batch, against the shortest of its neighbour's: that is the one which other
    work on the machine has touched least."""
    events = events_in(folder, f"{name} slow")
    took = {block: {e.batch: e.ended - e.began for e in events if e[:2] == ("update", block)} for block in (3, 4)}
    slow, usual = Straggler(4.0, 0.5, block=3, seed=0), min(took[4].values())
    factors = {batch: slow.factor_for(batch) for batch in took[3]}
    assert len(factors) == EPOCHS * BATCHES and max(factors.values()) > 4
    assert all(took[3][batch] > 0.5 * factor * usual for batch, factor in factors.items())


def test_in_one_process_too(tmp_path: Path) -> None:
    done = fork(
        1,
        "-m",
        "fgpipe.train",
        *COMMON[:-1],
        "trace=true",
        "slow.block=7",
        "slow.factor=2",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    assert not list(faults(json.loads((tmp_path / "run" / "trace.json").read_text())))


def test_no_such_block(tmp_path: Path) -> None:
    done = fork(1, "-m", "fgpipe.train", "slow.block=8", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and "fgpipe: slow.block=8: allowed: 0 to 7 with 8 blocks" in done.stderr
