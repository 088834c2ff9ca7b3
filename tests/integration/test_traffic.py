"""Only scalars come back: by the ledger, which counts at the sockets, and by the kernel's own counters."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from fgpipe.config import compose_config
from fgpipe.models.net import resnet
from tests.integration.launching import ROOT, fork

BLOCKS, BATCHES = 8, 6
COMMON = [
    "epochs=1", "batch_size=32", f"data.train_samples={32 * BATCHES}", "data.test_samples=32", "model.width=0.07",
    "threads=1", "device=cpu", "observe.tensorboard=false",
]  # fmt: skip
RUNS = {
    "tensor": [*COMMON, "target=global", "scope=tensor"],
    "block": [*COMMON, "target=intermediate", "scope=block"],
    "sample": [*COMMON, "target=global", "space=activity", "guess=rademacher"],
    "error": [*COMMON, "target=global", "space=activity", "guess=error"],
    "local": [*COMMON, "target=local"],
    "twins": [*COMMON, "target=global", "space=activity", "guess=twins", "guess.ahead=1", "guess.every=2"],
    "own_twins": [*COMMON, "target=local", "space=activity", "guess=twins", "guess.second=own", "guess.every=2"],
    "control": [*COMMON, "guess=end_to_end"],
    "asynchronous": [*COMMON, "guess=end_to_end", "schedule=async_1f1b"],
}
TENSORS = [9, 6, 9, 6, 9, 6, 9]
"""Parameter tensors of each block that asks."""
TRANSPORT = 64 * 1024
"""Bytes that gloo and zmq may add between two processes: greetings, heartbeats, and 48 bytes or so of gloo's for each
message that a receiver is ready for, of which a run here has some tens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    (folder / "runs.json").write_text(json.dumps(RUNS))
    done = fork(BLOCKS, str(ROOT / "tests/integration/recording.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def ledger(folder: Path, name: str) -> dict[tuple[int, int], dict[str, dict[str, int]]]:
    links = json.loads((folder / name / "summary.json").read_text())["bytes"]
    return {(int(a), int(b)): kinds for (a, b), kinds in ((link.split("->"), kinds) for link, kinds in links.items())}


def kernel(folder: Path, name: str) -> dict[tuple[int, int], int]:
    """Bytes that the process of one block received from that of another.

    A connection's two ends are found by both ports: one alone may serve several connections.
    """
    sockets = {rank: json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(BLOCKS)}
    owner = {(each["local"], each["remote"]): rank for rank, all in sockets.items() for each in all}
    received: dict[tuple[int, int], int] = defaultdict(int)
    for rank, all in sockets.items():
        for each in all:
            sender = owner.get((each["remote"], each["local"]), rank)
            if sender != rank:
                received[sender, rank] += each["received"]
    return received


def downward(links: dict) -> dict:
    return {(a, b): value for (a, b), value in links.items() if a > b}


@pytest.mark.slow
def test_weight_space(folder: Path) -> None:
    """From the last block straight to each that asks: one message a batch, 64 bytes for it and 64 for each probe."""
    links = downward(ledger(folder, "tensor"))
    assert set(links) == {(7, j) for j in range(7)}
    for (_, j), kinds in links.items():
        assert set(kinds) == {"feedback"} and kinds["feedback"]["messages"] == BATCHES
        assert kinds["feedback"]["bytes"] <= BATCHES * (64 + 64 * TENSORS[j])


@pytest.mark.slow
def test_intermediate(folder: Path) -> None:
    """From the next block: one probe, one message a batch."""
    links = downward(ledger(folder, "block"))
    assert set(links) == {(j + 1, j) for j in range(7)}
    for kinds in links.values():
        assert set(kinds) == {"feedback"} and kinds["feedback"]["bytes"] <= BATCHES * (64 + 64)


@pytest.mark.slow
def test_per_sample(folder: Path) -> None:
    """32 scalars of 9 bytes, nothing else."""
    for kinds in downward(ledger(folder, "sample")).values():
        assert set(kinds) == {"feedback"} and kinds["feedback"]["bytes"] <= BATCHES * (64 + 5 + 9 * 32)


@pytest.mark.slow
def test_rows(folder: Path) -> None:
    """A row of 10 classes for each of 32 samples, no tangents up; the summary says as much of every batch."""
    links = ledger(folder, "error")
    assert all("tangents" not in kinds for kinds in links.values())
    counted = [kinds["feedback"]["bytes"] / BATCHES for _, kinds in sorted(downward(links).items())]
    assert len(counted) == 7 and all(9 * 32 * 10 <= each <= 64 + 5 + 9 * 32 * 10 for each in counted)
    assert json.loads((folder / "error" / "summary.json").read_text())["bytes_back_per_batch"] == [*counted, 0]


@pytest.mark.slow
def test_weights_of_twins(folder: Path) -> None:
    """After batches 2, 4 and 6 each block sends its weights and its head's to the one below, beside the rows."""
    links, config = downward(ledger(folder, "twins")), compose_config(RUNS["twins"])
    net = resnet(config.model, config.head, in_channels=1, classes=10)
    sizes = [sum(each.numel() for part in parts for each in part.parameters()) for parts in zip(net.blocks, net.heads)]
    of_weights = {link: kinds["weights"] for link, kinds in links.items() if "weights" in kinds}
    assert set(of_weights) == {(j + 1, j) for j in range(7)}
    for (source, _), counted in of_weights.items():
        assert counted["messages"] == BATCHES // 2
        assert 0 <= counted["bytes"] - 4 * sizes[source] * counted["messages"] <= 64 * counted["messages"]
    summary = json.loads((folder / "twins" / "summary.json").read_text())
    assert summary["weights_back_per_batch"] == [of_weights[j + 1, j]["bytes"] / BATCHES for j in range(7)] + [0]
    rows = [links[7, j]["feedback"]["bytes"] / BATCHES for j in range(7)]
    assert summary["bytes_back_per_batch"] == [*rows, 0], "weights are a class of their own"


@pytest.mark.slow
def test_own_twins(folder: Path) -> None:
    """Weights come down, as many as beside the target's errors, and nothing else."""
    links, beside = downward(ledger(folder, "own_twins")), downward(ledger(folder, "twins"))
    of_weights = {link: kinds["weights"] for link, kinds in beside.items() if "weights" in kinds}
    assert links == {link: {"weights": each} for link, each in of_weights.items()}
    assert all("tangents" not in kinds for kinds in ledger(folder, "own_twins").values())


@pytest.mark.slow
def test_local(folder: Path) -> None:
    """A local target sends nothing back at all, and no tangents up."""
    links = ledger(folder, "local")
    assert not downward(links)
    assert all("tangents" not in kinds for kinds in links.values())


@pytest.mark.slow
@pytest.mark.parametrize("name, messages", [("control", 4 * BATCHES), ("asynchronous", BATCHES)])
def test_backpropagation_is_the_control(name: str, messages: int, folder: Path) -> None:
    """The same counters show a gradient as large as the activation on every link: 32 samples, 4 channels, 16 x 16."""
    links = downward(ledger(folder, name))
    assert set(links) == {(j + 1, j) for j in range(7)}
    assert links[1, 0]["gradients"] == {"bytes": BATCHES * 32 * 4 * 16 * 16 * 4, "messages": messages}
    seen = downward(kernel(folder, name))
    for link, kinds in links.items():
        assert kinds["gradients"]["bytes"] <= seen[link] <= kinds["gradients"]["bytes"] + TRANSPORT
    back = json.loads((folder / name / "summary.json").read_text())["bytes_back_per_batch"]
    assert back == [links[j + 1, j]["gradients"]["bytes"] / BATCHES for j in range(7)] + [0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensor", "block", "sample", "error", "twins", "own_twins", "local"])
def test_kernel_agrees(folder: Path, name: str) -> None:
    """The kernel saw no more downward bytes than the ledger's, but for the transport's own."""
    counted, seen = downward(ledger(folder, name)), downward(kernel(folder, name))
    assert len(seen) >= 7, "neighbours are connected"
    for link, received in seen.items():
        sent = sum(kind["bytes"] for name, kind in counted.get(link, {}).items() if name in ("feedback", "weights"))
        assert received <= sent + TRANSPORT


@pytest.mark.slow
def test_kernel_agrees_upward(folder: Path) -> None:
    """The same counters show the activations and tangents, so they do see what crosses a link."""
    counted, seen = ledger(folder, "tensor"), kernel(folder, "tensor")
    for j in range(7):
        sent = sum(kind["bytes"] for kind in counted[j, j + 1].values())
        assert sent <= seen[j, j + 1] <= sent + TRANSPORT
