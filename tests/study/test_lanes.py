"""The study of lanes: all its cells can be run, and none is run twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fgpipe.config import Config, check, compose_config
from fgpipe.errors import UserError
from fgpipe.study import lanes


def test_every_cell_can_be_run() -> None:
    """None is refused; each has a name of its own; lanes, decodings and step sizes cross as they should."""
    base = compose_config(lanes.COMMON)
    found = list(lanes.cells())
    assert len({cell.name for cell in found}) == len(found)
    for cell in found:
        if cell.ends:
            compose_config([*lanes.COMMON, *cell.overrides("oracle")])
        else:
            keys = {key: value for key, value in vars(cell).items() if key != "target"}
            check(replace(base, **keys, tangents="forward" if cell.needs_tangents else "oracle"))
    for space, scope in (("weight", "tensor"), ("weight", "block"), ("activity", "sample")):
        for guess, decodes in (("local", {"plain", "predicted", "smoothed"}), ("gaussian", {"plain"})):
            key = (space, scope, guess, None)
            of_family = [cell for cell in found if (cell.space, cell.scope, cell.guess, cell.ends) == key]
            assert {cell.lanes for cell in of_family} == {"exact", 1, 2, 4, 8}
            assert {cell.decode for cell in of_family} == decodes
            assert {cell.step for cell in of_family} == {"projection", "normalised"}


def test_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name may have what Hydra's command line reads as something else."""
    study = lanes.Study(tmp_path / "a,b (1) {c}", [], seeds=1)

    def run(config: Config) -> None:
        Path(config.run_dir).mkdir(parents=True)
        (Path(config.run_dir) / "summary.json").write_text('{"test_accuracy": 0.5}')

    monkeypatch.setattr(lanes, "run", run)
    assert study.accuracies(lanes.Cell()) == [0.5]


def test_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted study goes on where it was; the table has the mean over seeds and 1000 / images per second."""
    ran: list[Config] = []

    def run(config: Config) -> None:
        Path(config.run_dir).mkdir(parents=True)
        ran.append(config)
        if len(ran) == 6:
            raise KeyboardInterrupt
        figures = {"test_accuracy": 0.5 + 0.1 * config.seed, "images_per_second": 250.0}
        (Path(config.run_dir) / "summary.json").write_text(json.dumps(figures))

    monkeypatch.setattr(lanes, "run", run)
    folder, only = str(tmp_path / "study"), "weight block local (exact|1) plain projection"
    arguments = [folder, "--seeds", "2", "--only", only, "epochs=1"]
    with pytest.raises(KeyboardInterrupt):
        lanes.main(arguments)
    assert lanes.main(arguments) == 0
    assert len(ran) == 4 * (2 + 1) + 1, "four cells of two seeds and a speed run, and the one that was interrupted"
    assert lanes.main(arguments) == 0 and len(ran) == 13
    row = "| weight | block | local | 1 | plain | projection | 55.0% | 50.0% to 60.0% | 4.00 |"
    assert row in capsys.readouterr().out
    assert (tmp_path / "study" / "lanes.png").stat().st_size > 1000
    with pytest.raises(UserError, match="allowed: a new folder"):
        lanes.main([folder, "epochs=2"])
