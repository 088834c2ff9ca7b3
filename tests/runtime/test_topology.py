"""Positions, ranks and blocks; files that say who stands where; when hosts meet at the widest link."""

from pathlib import Path

import pytest

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.plan.placement import read, wide_boundary
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.topology import Topology

FACTS = DataFacts(train_batches=1, test_batches=1, classes=10, channels=3, height=16, width=16)


def test_in_order() -> None:
    topology = Topology((3, 1, 4), 1)
    assert topology.pipeline == (0, 1, 2) and topology.position == 1
    assert topology.local == range(3, 4)
    assert [topology.rank_of(block) for block in range(8)] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert (topology.source, topology.reporter) == (0, 2)


def test_placed() -> None:
    """Sizes go by position, everything else by rank."""
    topologies = [Topology((3, 1, 4), rank, ((2, 0, 1),)) for rank in range(3)]
    assert [topology.position for topology in topologies] == [1, 2, 0]
    assert [topology.local for topology in topologies] == [range(3, 4), range(4, 8), range(3)]
    assert [topologies[0].of(rank) for rank in range(3)] == [topology.local for topology in topologies]
    assert [topologies[1].rank_of(block) for block in range(8)] == [2, 2, 2, 0, 1, 1, 1, 1]
    assert (topologies[0].source, topologies[0].reporter) == (2, 1)


def test_replicas() -> None:
    """Each process knows its own pipeline, and those that hold the same blocks."""
    topologies = {rank: Topology((5, 3), rank, ((3, 0), (1, 2))) for rank in range(4)}
    assert [topologies[rank].replica for rank in range(4)] == [0, 1, 1, 0]
    assert [topologies[rank].local for rank in range(4)] == [range(5, 8), range(5), range(5, 8), range(5)]
    assert [topologies[rank].peers for rank in range(4)] == [(0, 2), (3, 1), (0, 2), (3, 1)]
    assert [topologies[rank].rank_of(6) for rank in range(4)] == [0, 2, 2, 0], "in its own replica"
    assert {(each.source, each.reporter, each.replicas) for each in topologies.values()} == {(3, 0, 2)}
    assert topologies[0].of(2) == range(5, 8) and topologies[0].replica_of(2) == 1


def written(folder: Path, text: str) -> str:
    path = folder / "placement.yaml"
    path.write_text(text)
    return str(path)


def test_read(tmp_path: Path) -> None:
    assert read(written(tmp_path, "# the last host first\nranks: [2, 3, 0, 1]\n"), 4) == ((2, 3, 0, 1),)
    assert read(None, 3) == ((0, 1, 2),)
    assert read(None, 6, replicas=3) == ((0, 1), (2, 3), (4, 5))
    assert read(written(tmp_path, "ranks: [[3, 0], [1, 2]]"), 4, replicas=2) == ((3, 0), (1, 2))


@pytest.mark.parametrize("ranks, expected", [
    ("[3, 0, 1, 2]", "ranks=[3, 0, 1, 2]: allowed: 2 lists of 2 ranks, one for each replica"),
    ("[[3, 0], [1], [2]]", "allowed: 2 lists of 2 ranks"),
    ("[[3, 0], [1, 2, 4]]", "allowed: 2 lists of 2 ranks"),
    ("[[3, 0], [0, 2]]", "ranks=[[3, 0], [0, 2]]: allowed: each rank from 0 to 3 once, that with block 0 first; 0 is there twice"),
    ("[[3, 0], [x, 2]]", "allowed: a list of ranks"),
])  # fmt: skip
def test_bad_lists_of_replicas(ranks: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(written(tmp_path, f"ranks: {ranks}"), 4, replicas=2)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, expected", [
    ("ranks: [0, 1, 1, 2]", "ranks=[0, 1, 1, 2]: allowed: each rank from 0 to 3 once, that with block 0 first; 1 is there twice"),
    ("ranks: [0, 1, 2]", "ranks=[0, 1, 2]: allowed: each rank from 0 to 3 once, that with block 0 first; 3 is missing"),
    ("ranks: [0, 1, 2, 3, 4]", "each rank from 0 to 3 once, that with block 0 first; 4 does not exist"),
    ("ranks: [0, 1, -1, 3]", "-1 does not exist"),
    ("ranks: [0, 1, 2, true]", "ranks=[0, 1, 2, True]: allowed: a list of ranks such as [1, 0]"),
    ("ranks: 3", "ranks=3: allowed: a list of ranks such as [1, 0]"),
    ("ranks: [[0, 1], [2, 3]]", "allowed: a list of ranks"),
    ("ranks: [3, 2, 1, 0]\nhosts: 2", "placement.yaml: allowed: a YAML file such as `ranks: [1, 0]`, and nothing else in it"),
    ("[3, 2, 1, 0]", "and nothing else in it"),
    ("", "and nothing else in it"),
    ("ranks: [3, 2", "allowed: a YAML file such as `ranks: [1, 0]` ("),
    ("ranks: ${ranks", "allowed: a YAML file such as `ranks: [1, 0]` ("),
    ("just words", "allowed: a YAML file such as `ranks: [1, 0]`"),
    ("\x00", "allowed: a YAML file such as `ranks: [1, 0]`"),
])  # fmt: skip
def test_bad_files(text: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read(path, 4)
    line = str(caught.value)
    assert line.startswith(f"placement={path}") and expected in line and "\n" not in line, line


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UserError, match=rf"^placement={path}: allowed: a YAML file such as `ranks: \[1, 0\]` \("):
            read(str(path), 4)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="it is no text"):
        read(str(tmp_path / "binary"), 4)


HOSTS = [0, 0, 1, 1]
LINKS = [10, 30, 20, 30, 5, 10, 10]
"""Bytes; blocks 0 to 7."""


@pytest.mark.parametrize("sizes, ranks, expected", [
    ((1, 1, 2, 4), (0, 1, 2, 3), ("two hosts (ranks 1 and 2) meet at the widest link, blocks 1 and 2: 30 bytes a batch; "
     "the narrowest, blocks 4 and 5, has 5 ")),
    ((1, 1, 1, 5), (2, 0, 1, 3), None),
    ((1, 1, 2, 4), (2, 0, 1, 3), "two hosts (ranks 1 and 3) meet at the widest link, blocks 3 and 4: 30"),
    ((2, 3, 1, 2), (0, 1, 2, 3), None),
    ((2, 3, 1, 2), (1, 2, 3, 0), "two hosts (ranks 1 and 2) meet at the widest link, blocks 1 and 2"),
    ((2, 3, 1, 2), (1, 0, 3, 2), None),
])  # fmt: skip
def test_wide_boundary(sizes: tuple[int, ...], ranks: tuple[int, ...], expected: str | None) -> None:
    found = wide_boundary(Topology(sizes, 0, (ranks,)), HOSTS, LINKS)
    assert found is None if expected is None else found is not None and found.startswith(expected), found


def test_wide_boundary_of_one_replica() -> None:
    """Replica 0 is on one host, replica 1 on two."""
    found = wide_boundary(Topology((2, 6), 0, ((0, 1), (2, 3))), [0, 0, 0, 1], LINKS)
    assert found is not None and found.startswith("two hosts (ranks 2 and 3) meet at the widest link, blocks 1 and 2")


def test_nothing_to_choose() -> None:
    """One host; links that are all alike; one process."""
    topology = Topology((1, 1, 2, 4), 0)
    assert wide_boundary(topology, [0, 0, 0, 0], LINKS) is None
    assert wide_boundary(topology, HOSTS, [7] * 7) is None
    assert wide_boundary(Topology((8,), 0), [0], LINKS) is None


def test_link_bytes() -> None:
    """Eight blocks of width 1 on 16 x 16 pixels: channels, sides, and lanes that grow by one each (scope block)."""
    config = compose_config(["scope=block", "model.width=1", "model.stem=cifar", "batch_size=4", "dtype=float64"])
    plan = Plan.make(config, FACTS)
    activations = [64 * 16**2] * 2 + [128 * 8**2] * 2 + [256 * 4**2] * 2 + [512 * 2**2]
    assert plan.link_bytes == [4 * 8 * size * (2 + j) for j, size in enumerate(activations)]
