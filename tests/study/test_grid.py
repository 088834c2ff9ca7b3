"""Every published cell is a valid configuration, and the grid's selection, names and costs are what they should be."""

import csv
import json
import os
import subprocess
from collections import Counter
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fgpipe.study
from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.plan.plan import DataFacts
from fgpipe.study.common.runs import Run, quoted
from fgpipe.study.paper.estimate import Cost, cost, seconds_per_flop
from fgpipe.study.paper.grid import main
from fgpipe.study.paper.options import GridPlan, parse_options
from fgpipe.study.paper.profile import Profile
from fgpipe.study.paper.tables import published
from fgpipe.trainers.build import local_trainer
from tests.integration.launching import ROOT

COUNTS = {2: 34, 3: 26, 4: 30, 5: 48, 6: 6, 7: 102, 8: 51, 9: 90, 10: 45, 11: 12, 12: 18}
"""Cells of each table, counted in the paper."""
UNSERVED: dict[str, set[str]] = {
    "full": set(),
    "scaled": {"cifar100", "imagenet32"},
    "scaled_long": {"cifar100", "fashion_mnist", "imagenette", "imagenet32"},
}
"""Data sets that each profile lacks."""


def test_all_cells_are_read() -> None:
    assert Counter(cell.table for cell in published()) == COUNTS and sum(COUNTS.values()) == 462
    with (Path(fgpipe.study.__file__).parent / "paper/tables.csv").open() as file:
        accuracies = [float(line["accuracy"]) for line in csv.DictReader(file)]
    assert [cell.accuracy for cell in published()] == accuracies


def plan(*arguments: str) -> GridPlan:
    return GridPlan.make(parse_options(arguments))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "profile", ["full", *(pytest.param(name, marks=pytest.mark.long) for name in ("scaled", "scaled_long"))]
)
def test_every_cell_composes(profile: str) -> None:
    made = plan("table=all", "unpublished=true", f"profile={profile}")
    assert len(made.cells) == 466 and sum(len(run.cells) for run in made.runs) + len(made.unserved) == 466
    assert {cell.dataset for cell in made.unserved} == UNSERVED[profile]
    widths = {"1": 1.0, "w1": 0.5, "w2": 2.0, "w3": 4.0}
    for run in made.runs:
        config = compose_config([f"{key}={value}" for key, value in run.settings.items()])
        for cell in run.cells:
            assert (
                config.model.blocks == cell.blocks
                and config.target.name == cell.target
                and config.guess_name == cell.guess
            )
            assert config.target.depth == {"global": None, "intermediate": 1, "local": 0}[cell.target]
            assert config.model.width == widths[cell.width] * (1 if profile == "full" else 0.25)
            assert config.model.stem == ("imagenet" if cell.dataset == "imagenette" else "cifar")
            if cell.aux is not None:
                assert config.head.name == cell.aux
            if cell.space is not None:
                assert (config.space, config.scope) in (("weight", "tensor"), ("activity", "sample"))
                assert config.space == cell.space
            assert config.data.name == (
                "image_folder" if profile != "full" and cell.dataset == "cifar10" else cell.dataset
            )


def test_learning_rates_take_the_first_rule_that_fits() -> None:
    profile = Profile.load("full")
    by_rate = {
        cell: profile.learning_rate(cell) for cell in published() if cell.dataset == "cifar10" and cell.width == "1"
    }
    for cell, rate in by_rate.items():  # the families of the paper's A.3, with the values of the profile
        if cell.guess in ("gaussian", "rademacher"):
            assert rate == (0.001 if cell.space == "activity" and cell.target == "global" else 0.005)
        elif (cell.guess, cell.aux, cell.space, cell.blocks) == ("local", "linear", "activity", 16):
            assert rate == 0.005
        else:
            assert rate == (0.01 if "ntk" in cell.guess and cell.blocks == 16 else 0.05)


def test_random_guesses_have_one_rate_on_the_additional_data_sets() -> None:
    """A.3 makes an exception for activity space on CIFAR-10 alone, and ImageNet32 has rules of its own."""
    profile = Profile.load("full")
    for dataset in ("cifar100", "fashion_mnist", "imagenette"):
        cells = [cell for cell in published() if cell.dataset == dataset]
        rates = {profile.learning_rate(cell) for cell in cells if cell.guess in ("gaussian", "rademacher")}
        assert rates == {0.005}
        others = [cell for cell in cells if cell.guess in ("end_to_end", "local")]
        assert {profile.learning_rate(cell) for cell in others} == {0.05}


def test_selection_and_order() -> None:
    made = plan("table=[2,3]", "dataset=cifar10", "guess=[local,end_to_end]", "aux=[mlp]", "seeds=[0,1]")
    assert len(made.cells) == 4 and {cell.aux for cell in made.cells} == {"mlp"}
    assert [run.seed for run in made.runs] == [0] * 4 + [1] * 4
    halves = [plan("table=[2,3]", f"shard=[{index},2]").runs for index in (0, 1)]
    assert sorted(run.name for half in halves for run in half) == sorted(run.name for run in plan("table=[2,3]").runs)


def test_cells_with_the_same_settings_are_one_run() -> None:
    cell = next(cell for cell in published() if cell.table == 4)
    profile = Profile.load("full")
    assert profile.settings(cell) == profile.settings(replace(cell, table=12, accuracy=1.0))
    names = [run.name for run in plan("table=all").runs]
    assert len(set(names)) == len(names)


def test_names_depend_on_the_stated_settings_and_the_seed_alone(tmp_path: Path) -> None:
    cell = published()[0]
    run = Run({"a": "1", "b": "2"}, 0, [cell])
    assert run.name == Run({"b": "2", "a": "1"}, 0, [replace(cell, table=8)]).name
    assert run.name == "cifar10-16-global-end_to_end-s0-94ca6435"  # sha256 of [[["a", "1"], ["b", "2"]], 0]
    assert len({run.name, Run({"a": "1"}, 0, [cell]).name, Run(run.settings, 1, [cell]).name}) == 3
    assert f"data.root={quoted(str(tmp_path))}" in run.overrides(tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    "text", ["plain", "with space", "a=b,c", 'quo"te', "ünï/[x]{y}", "back\\slash", "end\\", 'a\\"b', "$HOME", "it's"]
)
def test_quoted_paths_come_back(text: str) -> None:
    assert compose_config([f"data.root={quoted(text)}"]).data.root == text


BAD = {
    "table=13": "table=13: allowed: all | 2 | 3",
    "guess=psychic": "guess=psychic: allowed: end_to_end | local",
    "tabel=3": "did you mean table?",
    "profile=tiny": "profile=tiny: allowed: full | scaled | scaled_long",
    "seeds=[]": "seeds=[]: allowed: one whole number",
    "seeds=[0,0]": "seeds=[0, 0]: allowed: one whole number of at least 0, or more, each once",
    "guess=[ntk,fixed_ntk] aux=predsim": "table=3 guess=['ntk', 'fixed_ntk'] aux=predsim: allowed",
    "dataset=imagenet32 profile=scaled": "no cell to run: 13 cells are not in profile=scaled (imagenet32)",
    "data.root=DIR": "data.root=DIR: allowed: for cells of one data set, without roots; here roots.cifar10=DIR and",
    "data.root=DIR roots.cifar10=DIR dataset=cifar10": "data.root=DIR: allowed: for cells of one data set, without",
    "overrides=[seed=3]": "overrides=[seed=3]: allowed: settings that",
    "overrides=[model.width=1]": "overrides=[model.width=1]: allowed",
    "overrides=[data=digits]": "overrides=[data=digits]: allowed",
    "overrides=[data=cifar10] table=[3,9]": "overrides=[data=cifar10]: allowed",
    "overrides=[target.depth=2]": "overrides=[target.depth=2]: allowed",
    "overrides=[run_dir=x]": "run_dir is not one",
    "overrides=[head=cnn]": "head is not one",
    "jobs=0": "jobs=0: allowed",
    "jobs=two": "jobs=two",
    "shard=[2,2]": "shard=[2, 2]: allowed",
    "roots.cifar=x": "roots.cifar10",
    "overrides=[optim.lrr=3]": "optim.lr",
    "launcher=torchrun": "launcher=torchrun: allowed: python with tangents=oracle",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table=3", f"out={tmp_path / 'out'}", *argument.split(" ")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgpipe: ") and error.count("\n") == 1 and BAD[argument] in error
    assert not list(tmp_path.iterdir())


def test_a_wrong_override_of_the_last_cell_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only random guesses refuse a decoder that smooths; the first cells of the table are none."""
    out = tmp_path / "out"
    selection = ["table=2", "dataset=cifar10", "guess=[local,gaussian]"]
    assert main([*selection, f"out={out}", "overrides=[decode=smoothed]"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgpipe: decode=smoothed: allowed: plain with guess=gaussian") and error.count("\n") == 1
    assert not out.exists()


def test_out_must_be_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table=3", "dataset=cifar10", "guess=end_to_end", "out=/dev/null"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgpipe: out=/dev/null: allowed: a folder to write in") and error.count("\n") == 1


def test_data_root_is_that_of_the_one_data_set() -> None:
    """The command of the card's page; table 3 has ImageNet32 too, which the scaled profile does not serve."""
    options = parse_options(["table=3", "profile=scaled", "data.root=some folder/of=images"])
    assert options.roots == {"cifar10": "some folder/of=images"}
    assert parse_options(["table=9", "dataset=imagenette", "data.root=DIR"]).roots == {"imagenette": "DIR"}


def test_heads_may_be_overridden_where_no_cell_names_one() -> None:
    made = plan("table=2", "dataset=cifar10", "guess=[end_to_end,gaussian]", "overrides=[head=cnn,observe.heads=true]")
    assert {run.compose().head.name for run in made.runs} == {"cnn"} and len(made.runs) == 3


def test_cells_may_read_their_data_set_as_it_is_downloaded() -> None:
    """The scaled profile wants image files of CIFAR-10; table 3 has ImageNet32 too, which the profile does not serve."""
    made = plan("table=3", "profile=scaled", "guess=local", "overrides=[data=cifar10]")
    assert {run.compose().data.name for run in made.runs} == {"cifar10"} and made.runs
    assert {run.name for run in made.runs}.isdisjoint(run.name for run in plan("table=3", "profile=scaled").runs)


def test_a_run_is_of_its_cell() -> None:
    cell = next(cell for cell in published() if cell.guess == "local" and cell.target == "intermediate")
    with pytest.raises(UserError, match=r"of another cell: target.depth=2 \(the cell has 1\)"):
        Run(Profile.load("scaled").settings(cell) | {"target.depth": "2"}, 0, [cell]).compose()


def done(run: Run, out: Path, **changes: object) -> None:
    """Write what a run with another configuration leaves."""
    run.folder(out).mkdir(parents=True, exist_ok=True)
    config = asdict(run.compose()) | changes
    (run.folder(out) / "summary.json").write_text(json.dumps({"test_accuracy": 0.5, "config": config}))


def test_done_is_done_with_the_settings_of_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["table=3", "profile=scaled", "aux=linear", "guess=local"]
    first, last = plan(*arguments).runs
    for run in (first, last):
        done(run, tmp_path, threads=7, run_dir="elsewhere")
    assert first.is_done(tmp_path, first.compose()) and main([*arguments, f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    done(last, tmp_path, epochs=5)  # the profile's file was changed since
    for dry in ([], ["dry_run=true"]):
        assert main([*arguments, f"out={tmp_path}", *dry]) == 2
        error = capsys.readouterr().err
        assert last.name in error and "finished with epochs=5 (here 4)" in error and error.count("\n") == 1
    (last.folder(tmp_path) / "summary.json").unlink()
    (last.folder(tmp_path) / "summary.json").mkdir()
    assert main([*arguments, f"out={tmp_path}"]) == 2
    assert "summary.json: cannot be read" in capsys.readouterr().err


WATCHED = "guess=[local,ntk,gaussian,rademacher] overrides=[observe.cosine=50]"
LONG = "table=[3,2] profile=scaled_long"
COMMITTED = {
    ("scaled", 400): [f"table=all profile=scaled {more}" for more in ("", WATCHED)],
    ("scaled_long", 78): [f"{LONG} {more}" for more in ("", WATCHED)],
    ("scaled_steps", 12): [f"{LONG} guess=local overrides=[epochs=8]"],
    ("scaled_heads", 16): [f"{LONG} overrides=[head.hidden={size}]" for size in (64, 128, 2048, 4096)],
}
"""Folder of runs and how many it has at least, and the selections that they are of."""


@pytest.mark.parametrize("folder, least", COMMITTED)
def test_the_committed_runs_are_done(folder: str, least: int) -> None:
    """Committed runs are done by the commands of docs/results/grid.md; they lack keys that `configs/train.yaml` got later."""
    out = ROOT / "docs" / "results" / folder
    selections = (selection.split() for selection in COMMITTED[folder, least])
    runs = [run for each in selections for run in plan("unpublished=true", "seeds=[0,1,2]", *each).runs]
    committed = {path.parent.name for path in out.glob("*/summary.json")}
    wanted = [run for run in runs if run.name in committed]
    assert {run.name for run in wanted} == committed and len(committed) >= least
    assert all(run.is_done(out, run.compose()) for run in wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run_lists_all_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All 462 published cells, each with its run; what a run costs is made up, so that the sums are known."""
    monkeypatch.setattr("fgpipe.study.paper.grid.cost", lambda config, dataset: Cost(1e9, 1e15))
    monkeypatch.setattr("fgpipe.study.paper.grid.seconds_per_flop", lambda config, dataset, cost: 6e-14)
    assert main(["table=all", "dry_run=true", f"out={tmp_path}"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    *cells, counts, left, missing = lines
    runs = plan("table=all").runs
    assert counts == f"462 cells, {len(runs)} runs of 1 seed(s), 0 done" and missing.startswith("0 cells are not in")
    rows = [line.split() for line in cells]
    assert Counter(int(row[0]) for row in rows) == COUNTS
    assert sorted(float(row[8]) for row in rows) == sorted(cell.accuracy or 0 for cell in published())
    assert {row[-1] for row in rows} == {run.name for run in runs}
    assert {tuple(row[9:12]) for row in rows} == {("1.00", "1.0", "min")}
    hours = f"{len(runs) // 60}:{len(runs) % 60:02d} h"
    assert left == f"left: {len(runs)}.00 PFLOPs, about {hours} with jobs=1"


METHODS = [
    ("end_to_end", "global", "weight"),
    ("local", "local", "weight"),
    ("local", "global", "activity"),
    ("local", "intermediate", "weight"),
    ("gaussian", "global", "activity"),
    ("gaussian", "local", "weight"),
    ("ntk", "intermediate", "activity"),
    ("fixed_ntk", "global", "weight"),
]


@pytest.mark.parametrize("blocks", [8, 16])
@pytest.mark.parametrize("guess, target, space", METHODS)
def test_flops_are_those_of_a_real_step(guess: str, target: str, space: str, blocks: int) -> None:
    images = 4
    config = compose_config(
        [
            "data=cifar10",
            f"model=resnet18_{blocks}",
            "model.width=0.125",
            "head=cnn",
            f"batch_size={images}",
            "epochs=3",
        ]
        + ["tangents=oracle", "window=1", f"guess={guess}", f"target={target}", f"space={space}", "device=cpu"]
        + ["data.train_samples=9", "data.test_samples=5"]
    )
    trainer = local_trainer(config, DataFacts(1, 1, 10, 3, 32, 32))
    batch = torch.randn(images, 3, 32, 32), torch.arange(images)
    with FlopCounterMode(display=False) as step:
        trainer.train(0, 1, lambda epoch, index: batch)
    with FlopCounterMode(display=False) as test:
        trainer.evaluate(0, 1, lambda epoch, index: batch)
    counted = cost(config, "cifar10")
    assert counted.step * images == pytest.approx(step.get_total_flops())
    assert counted.total * images == pytest.approx(3 * (8 * step.get_total_flops() + 5 * test.get_total_flops()))


@pytest.mark.parametrize(
    "keys", [["tangents=oracle", "window=1"], ["scope=block"], ["guess=end_to_end", "schedule=1f1b"]]
)
def test_a_step_can_be_timed(keys: list[str]) -> None:
    """By the oracle, by forward mode, and where a pipeline has one process."""
    config = compose_config(["data=cifar10", "model.width=0.0625", "batch_size=4", "device=cpu", "threads=1", *keys])
    assert 0 < seconds_per_flop(config, "cifar10", Cost(1e12, 1e15)) < 1e-9


def test_slurm_tasks_share_the_runs(tmp_path: Path) -> None:
    """The array's tasks, started as Slurm would, list disjoint runs that are all runs together."""
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\necho "$@"\n')
    stub.chmod(0o755)
    shards = []
    for task in (3, 4, 5):
        variables = {
            "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_COUNT": 3,
            "SLURM_ARRAY_TASK_MIN": 3,
            "SLURM_SUBMIT_DIR": tmp_path,
        }
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            **{key: str(value) for key, value in variables.items()},
        }
        done = subprocess.run(
            ["bash", str(ROOT / "launch" / "grid.sbatch"), "table=2"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split()[:3] == ["-m", "fgpipe.grid", "table=2"]
        shards.append([run.name for run in plan(*done.stdout.split()[2:]).runs])
    assert sorted(chain(*shards)) == sorted(run.name for run in plan("table=2").runs)
