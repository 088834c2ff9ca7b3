"""What an elastic run refuses, and which block a process is."""

import pytest

from fgpipe import store
from fgpipe.config import compose_config
from fgpipe.config.elastic import block_of
from fgpipe.elastic.run import run_member
from fgpipe.errors import UserError

NEEDED = ["elastic.block=1", "run_dir=RUN", "replay.size=8", "checkpoint.every_steps=10"]


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["elastic.block=8"], "elastic.block=8: allowed: 0 to 7 with 8 blocks, or auto"),
        (["run_dir=null"], "run_dir=null: allowed: a folder with elastic.block=1"),
        (["replay.size=null"], "replay.size=null: allowed: a number with elastic.block=1"),
        (["checkpoint.every_steps=null"], "checkpoint.every_steps=null: allowed: a number with elastic.block=1"),
        (["checkpoint.every_minutes=1"], "checkpoint.every_minutes=1: allowed: null with elastic.block=1"),
        (["tangents=oracle", "window=1", "replay.size=null"], "replay.size=null: allowed: a number"),
        (["target=global", "guess=end_to_end"], "guess=end_to_end: allowed: another one with elastic.block=1"),
        (["feedback.lost=fail"], "feedback.lost=fail: allowed: skip with elastic.block=1"),
        (["partition=[4,4]"], r"partition=\[4, 4\]: allowed: counted with elastic.block=1"),
        (["resume=OTHER"], "resume=OTHER: allowed: null with elastic.block=1"),
        (["trace=true"], "trace=true: allowed: false with elastic.block=1"),
        (["wire=int8"], "wire=int8: allowed: null with elastic.block=1"),
        (
            ["guess=twins", "space=activity", "scope=sample"],
            "guess=twins: allowed: one whose weights do not travel down",
        ),
        (["slow.process=0"], "slow.process=0: allowed: null with elastic.block=1"),
        (["slow.block=0"], "slow.block=0: allowed: null with elastic.block=1"),
        (["link.rtt=50ms"], "link.rtt=50ms: allowed: null with elastic.block=1"),
        (["target=global", "space=activity"], "space=activity: allowed: weight with target=global elastic.block=1"),
        (["target=global", "guess=gaussian"], "elastic.fallback=local: allowed: wait with guess=gaussian"),
        (["elastic.block=null", "replay.size=null", "elastic.fallback=wait"], "elastic.fallback=wait: allowed: local"),
    ],
)
def test_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        compose_config([*NEEDED, "target=local", *overrides])


def test_allowed() -> None:
    compose_config([*NEEDED, "target=local"])
    compose_config([*NEEDED, "target=global", "guess=gaussian", "elastic.fallback=wait"])


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["8", "targt=local"], "targt=local: no such key; did you mean target.name or tangents?"),
        (["8", *NEEDED, "target=global", "space=activity"], "space=activity: allowed: weight with target=global"),
        (["4", *NEEDED, "target=local"], "BLOCKS=4: allowed: 8, as the net has (model.blocks)"),
        (["8", *NEEDED, "target=local", "window=[1,2]"], "window=[1, 2]: allowed: one number for each block (8)"),
        (["eight", *NEEDED, "target=local"], "BLOCKS=eight: allowed: 8"),
    ],
)
def test_said_once_before_any_block_is_started(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.main(["--check", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"fgpipe: {line}")
    assert store.main(["--check", "8", *NEEDED, "target=local"]) == 0


def test_block_of_the_environment() -> None:
    config = compose_config([*NEEDED, "target=local", "elastic.block=auto"])
    assert block_of(config, {"SLURM_PROCID": "3"}) == 3
    assert block_of(config, {"SLURM_PROCID": "3", "FGPIPE_BLOCK": "5"}) == 5
    assert block_of(compose_config([*NEEDED, "target=local"]), {"FGPIPE_BLOCK": "5"}) == 1
    for environment, line in (
        ({}, "with one of FGPIPE_BLOCK"),
        ({"FGPIPE_BLOCK": "8"}, "FGPIPE_BLOCK=8: allowed: 0 to 7"),
    ):
        with pytest.raises(UserError, match=line):
            block_of(config, environment)


def test_folders_of_other_runs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").touch()
    with pytest.raises(UserError, match="run_dir=RUN: allowed: with elastic.block: a folder of such a run"):
        run_member(compose_config([*NEEDED, "target=local"]))


def test_one_process_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match="nproc_per_node=2: allowed: 1 with elastic.block"):
        run_member(compose_config([*NEEDED, "target=local"]))
