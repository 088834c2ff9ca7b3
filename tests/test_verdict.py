"""The verdict's parts: one writer, nothing half-written, and the command for each way to start a run."""

import json
import threading
from pathlib import Path

import pytest

from fgpipe import durable, verdict


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


def write(run: Path, cause: str = "because", resumed: str | None = None) -> bool:
    return verdict.write(run, cause, 1, [2, 3], reported_by=0, last_batch=17, resumed=resumed)


def test_first_writer_wins(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(run, "the root\n  cause") and not write(run, "a consequence")
    found = json.loads((run / "verdict.json").read_text())
    resume = found.pop("resume")
    assert found == {
        "cause": "the root cause", "rank": 1, "blocks": [2, 3], "reported_by": 0, "last_batch": 17, "last_checkpoint": None
    }  # fmt: skip
    assert resume.endswith("resume=auto")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "verdict.json"]
    assert capsys.readouterr().err.count("says why") == 1


def test_one_of_many_creates(tmp_path: Path) -> None:
    """Sixteen at once: one succeeds, the file is its own and whole, and no temporary file is left."""
    start, created = threading.Barrier(16), []

    def create(index: int) -> None:
        start.wait()
        if durable.create(tmp_path / "file", bytes([index]) * 100_000):
            created.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert (tmp_path / "file").read_bytes() == bytes(created) * 100_000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_without_a_run(tmp_path: Path) -> None:
    """A folder that holds a verdict alone could neither be resumed nor started in."""
    assert not write(tmp_path) and not list(tmp_path.iterdir())


def test_newest_complete_checkpoint(run: Path) -> None:
    for step, complete in ((9, True), (10, True), (11, False)):
        folder = run / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").touch()
    assert write(run)
    assert json.loads((run / "verdict.json").read_text())["last_checkpoint"] == str(run / "checkpoints" / "step-10")


def test_history(run: Path) -> None:
    verdict.retire(run)
    for cause in ("first", "second"):
        assert write(run, cause)
        verdict.retire(run)
    assert not (run / "verdict.json").exists()
    causes = [json.loads((run / f"verdict-{number}.json").read_text())["cause"] for number in (1, 2)]
    assert causes == ["first", "second"]


ONE_HOST = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "0"}
TWO_HOSTS = {
    "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3",
    "MASTER_ADDR": "node7",
}  # fmt: skip


@pytest.mark.parametrize(
    "environment, arguments, afresh, expected",
    [
        ({}, ["epochs=3"], False, "python PROGRAM epochs=3 run_dir=runs/a resume=auto"),
        ({}, ["run_dir=b c", "resume=auto"], False, "python PROGRAM 'run_dir=b c' resume=auto"),
        ({}, ["resume=other", "run_dir=b", "seed=1"], False, "python PROGRAM run_dir=b seed=1 resume=auto"),
        ({}, ["resume=other", "run_dir=b", "seed=1"], True, "python PROGRAM resume=other seed=1"),
        (ONE_HOST, [], False, "torchrun --standalone --nproc_per_node=4 PROGRAM run_dir=runs/a resume=auto"),
        (
            TWO_HOSTS, [], False,
            "torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=node7 --nproc_per_node=4 --max-restarts=3 PROGRAM"
            " run_dir=runs/a resume=auto",
        ),
    ],
)  # fmt: skip
def test_command(
    environment: dict[str, str], arguments: list[str], afresh: bool, expected: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdict.sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(verdict.sys, "argv", ["PROGRAM"])
    line = verdict.resume_command(Path("runs/a"), arguments, environment, afresh=afresh)
    assert line == f"cd {tmp_path} && {expected}"
