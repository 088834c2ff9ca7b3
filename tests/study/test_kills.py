"""The study of kills: what is counted, what it refuses, and one real study with real signals."""

import json
from pathlib import Path

import pytest

from fgpipe.elastic.places import Places
from fgpipe.elastic.tally import Tally
from fgpipe.study.__main__ import main
from fgpipe.study.contests.kills import OWN, table
from fgpipe.study.contests.survival import Survival, kept_by_members
from tests.integration.launching import living, processes_with, wait_until


def test_what_is_counted() -> None:
    """Ten updates per second in peace; then 40 s in which the first block kept all, the other one half; two kills."""
    found = Survival(calm=10.0, calm_updates=[100, 100], killing=40.0, kept_updates=[400, 200], victims=[0, 1])
    assert found.rate == 10 and found.share == 0.75 and found.worst == 0.5 and found.lost == pytest.approx(5)
    line = table({"a way": [found, Survival(10.0, [100, 100], 40.0, [400, 400], [0, 1])]}).splitlines()[-1]
    assert line == "| a way | 10.0 | 10.0 to 10.0 | 0.88 | 0.75 to 1.00 | 0.75 | 2.5 | 0.0 to 5.0 |"


def test_repeats_of_batches_are_no_work_that_lasts(tmp_path: Path) -> None:
    """Of ten updates two are in no state, and three were made on batches that had been used before."""
    places = Places(tmp_path)
    for block, counts in enumerate(({"updates": 10, "lost": 2, "extra": 3}, {"updates": 4})):
        folder = places.generation(block, 0)
        folder.mkdir(parents=True)
        Tally(folder / "tally", counts)
    assert kept_by_members(tmp_path, 2) == [5, 4]


@pytest.mark.parametrize(
    "argument, expected", [
        ("processes=1", "processes=1: allowed: a number of at least 2"),
        ("processes=2", "processes=2: allowed: 8, one for each block"),
        ("kills=0", "kills=0: allowed: a number of at least 1"),
        ("every=0.5", "every=0.5: allowed: a number of at least 1"),
        ("calm=nan", "calm=nan: allowed: a number of at least 1"),
        ("model.width=-1", "model.width=-1: allowed: "),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kills", str(tmp_path / "study"), argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every contestant is killed once, trains on, and leaves nothing; what is there is not run again."""
    study, keys = tmp_path / "study", ["processes=4", "kills=1", "every=25", "calm=3", "saves=10", "repeats=1"]
    keys += ["model.modules=[2,2,2,2]", "model.width=0.125"]
    assert main(["kills", str(study), *keys]) == 0
    assert wait_until(lambda: not living(processes_with(str(study))), 20)
    notes = {path: json.loads(path.read_text())["survival"] for path in study.glob("0/*/survival.json")}
    assert len(notes) == 3
    for path, note in notes.items():
        assert min(note["kept_updates"]) > 0 and len(note["kept_updates"]) == 4, path
    restarted = [place for place in (study / "0" / OWN.replace(",", "").replace(" ", "-")).rglob("generation-*")]
    assert len(restarted) == 4 + 1, "one block, once"
    times = {path: path.stat().st_mtime for path in notes}
    assert main(["kills", str(study), *keys]) == 0
    assert times == {path: path.stat().st_mtime for path in notes}
    assert (study / "kills.md").read_text().count("whole job") == 2
    assert "blocks of their own" in capfd.readouterr().out
