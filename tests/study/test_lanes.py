"""The study of lanes: all its cells can be run, and none is run twice."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fgpipe.config import check, compose_config
from fgpipe.study.__main__ import main
from fgpipe.study.accuracies import lanes, scaled


def test_every_cell_can_be_run() -> None:
    """None is refused; each has a name of its own; lanes, decodings and step sizes cross as they should."""
    base = compose_config([*scaled.settings([]), "window=1"])
    found = list(lanes.cells())
    assert len({cell.name for cell in found}) == len(found)
    for cell in found:
        if cell.ends:
            compose_config([*scaled.settings([]), *cell.training])
        else:
            keys = {key: value for key, value in vars(cell).items() if key not in ("target", "guess")}
            tangents = "forward" if cell.scope == "sample" and cell.lanes != "exact" else "oracle"
            assert f"tangents={tangents}" in cell.training
            check(replace(base, **keys, guess={"name": cell.guess}, tangents=tangents))
    for space, scope in (("weight", "tensor"), ("weight", "block"), ("activity", "sample")):
        for guess, decodes in (("local", {"plain", "predicted", "smoothed"}), ("gaussian", {"plain"})):
            key = (space, scope, guess, None)
            of_family = [cell for cell in found if (cell.space, cell.scope, cell.guess, cell.ends) == key]
            assert {cell.lanes for cell in of_family} == {"exact", 1, 2, 4, 8}
            assert {cell.decode for cell in of_family} == decodes
            assert {cell.step for cell in of_family} == {"projection"} | ({"normalised"} if guess == "local" else set())


def fake_runs(monkeypatch: pytest.MonkeyPatch, interrupted: int) -> list[dict[str, str]]:
    """No run is run: each leaves a summary. The list fills with their settings; one of them is interrupted."""
    ran: list[dict[str, str]] = []

    def run(command: Sequence[str], *environment: object) -> None:
        alone = "fgpipe.train" in command
        for overrides in [command] if alone else json.loads(Path(command[-1]).read_text()):
            settings = dict(each.split("=", 1) for each in overrides if "=" in each)
            folder = Path(settings["run_dir"].strip('"'))
            folder.mkdir(parents=True)
            ran.append(settings)
            if len(ran) == interrupted:
                raise KeyboardInterrupt
            if alone and settings["step"] == "normalised":
                (folder / "verdict.json").write_text('{"cause": "[block 0] the loss is not finite"}')
                raise subprocess.CalledProcessError(1, command)
            epoch = {"train": {"7": {"samples": 50}}, "train_seconds": 0.2}
            figures = {"test_accuracy": 0.5 + 0.1 * int(settings.get("seed", 0)), "epochs": [epoch] * 2}
            figures |= {"machine": "a machine", "commit": "1f", "config": {"model": {"width": 0.25}, "batch_size": 64}}
            (folder / "summary.json").write_text(json.dumps(figures))

    for module in ("accuracies.scaled", "common.series"):
        monkeypatch.setattr(f"fgpipe.study.{module}.call", run)
    return ran


DIGITS = ["data=digits", "data.train_samples=384", "data.test_samples=32"]


def test_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted study goes on where it was; the table has the mean over seeds and 1000 / images per second."""
    ran = fake_runs(monkeypatch, interrupted=6)
    folder = tmp_path / "a,b (1) {c}"
    only = "only=weight block local (exact|1) plain projection|weight tensor local 4 plain normalised"
    command = ["lanes", str(folder), "seeds=2", "repeats=2", only, *DIGITS, "head=linear"]
    assert main(command) == 130 and capsys.readouterr().err == "fgpipe: interrupted\n"
    assert [settings["seed"] for settings in ran] == ["0"] * 5 + ["1"]
    assert main(command) == 0
    assert len(ran) == 5 * 2 + 1 + 5 * 2, (
        "five cells of two seeds, the one that was interrupted, and two rounds of times"
    )
    assert main(command) == 0 and len(ran) == 21
    assert {(settings["head"], settings["model.width"]) for settings in ran} == {("linear", "0.25")}, "the times' too"
    text = (folder / "lanes.md").read_text()
    assert "4 epochs of 384 images, 1 process, 2 seeds. On a machine; commit 1f." in text
    row = "| weight | block | local | 1 | plain | projection | 55.0% | 50.0% to 60.0% | 4.00 | 4.00 to 4.00 |"
    assert row in text and row in capsys.readouterr().out
    assert "| weight | tensor | local | 4 | plain | normalised | 2 diverged |  | 4.00 | 4.00 to 4.00 |" in text
    assert "Standard deviation over seeds, pooled over 4 cells: 7.1%." in text, (
        "50 and 60 %, in every cell that did not diverge"
    )
    assert (folder / "lanes.png").stat().st_size > 1000
    assert main([*command[:2], "epochs=2"]) == 2 and "allowed: a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected", [
        (["jobs=0"], "jobs=0: allowed: a whole number of at least 1"),
        (["batches=1"], "batches=1: allowed: a whole number of at least 2"),
        (["processes=2"], "processes=2: allowed: 1, where the oracle runs"),
        (["only=("], "only=(: allowed: a regular expression"),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lanes", str(tmp_path / "study"), *DIGITS, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1


@pytest.mark.long
@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    """Two at once; a rate that diverges does so in the oracle and in forward mode, and the table says it."""
    small = [*DIGITS, "model.width=0.07", "head=linear", "batch_size=32", "epochs=1", "optim.lr=1e30"]
    only = "only=(weight block|activity sample) local 1 plain projection"
    assert main(["lanes", str(tmp_path), "seeds=1", "jobs=2", "batches=2", "repeats=1", only, *small]) == 0
    lines = (tmp_path / "lanes.md").read_text().splitlines()
    for family in ("weight | block", "activity | sample"):
        assert any(line.startswith(f"| {family} | local | 1 | plain | projection | 1 diverged |") for line in lines), (
            lines
        )
