"""Bad input: one line, exit code 2, no traceback of ours, nothing left behind; from one of several processes too."""

import re
from pathlib import Path

import pytest

from fgpipe.train import main
from tests.integration.launching import fork, launch, processes_with


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    marker = f"run_dir={tmp_path / 'run'}"
    done = launch(2, "-m", "fgpipe.train", marker, "model.width=-1", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("fgpipe: ")]
    assert lines == ["fgpipe: model.width=-1: allowed: a finite number above 0"], done.stderr
    assert "fgpipe/" not in done.stderr, "no traceback through our files; torchrun's own is its way to end"
    assert done.returncode != 0 and re.search(r"exitcode\s*: 2", done.stderr), "torchrun reports the worker's exit code"
    *_, cause, _ = done.stderr.splitlines()
    assert re.fullmatch(r"\s*traceback\s*: model.width=-1: allowed: .*", cause), "torchrun's report ends with the line"
    assert not list(tmp_path.iterdir())
    assert not processes_with(marker)


CASES = {
    "a wrong choice": (
        2,
        ["guess=psychic"],
        "guess=psychic: allowed: end_to_end | error | fixed_ntk | gaussian | local | local_subspace | mixture",
    ),
    "replicas that do not fit": (3, ["replicas=2"], "replicas=2: allowed: a divisor of the number of processes (3)"),
    "missing data": (2, ["data=image_folder", "data.root=nowhere-at-all"], "nowhere-at-all"),
    "too many processes": (
        3,
        ["model=resnet18_2"],
        "nproc_per_node=3: allowed: at most one process per block of the net (2)",
    ),
    "the oracle in two": (2, ["tangents=oracle", "window=1"], "tangents=oracle: allowed: forward with 2 processes"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_several_processes(case: tuple[int, list[str], str], tmp_path: Path) -> None:
    processes, overrides, expected = case
    done = fork(processes, "-m", "fgpipe.train", f"run_dir={tmp_path / 'run'}", *overrides, cwd=tmp_path)
    assert done.stderr.startswith("fgpipe: ") and done.stderr.count("\n") == 1, done.stderr
    assert expected in done.stderr
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


PLACED = {
    "the data": ("[1, 0]", ["data=image_folder", "data.root=nowhere-at-all"], "nowhere-at-all"),
    "a rank twice": (
        "[1, 1]",
        [],
        "ranks=[1, 1]: allowed: each rank from 0 to 1 once, that with block 0 first; 1 is there twice",
    ),
    "backpropagation": ("[1, 0]", ["guess=end_to_end"], "allowed: null with guess=end_to_end"),
}


@pytest.mark.parametrize("case", PLACED.values(), ids=PLACED.keys())
def test_placed_processes(case: tuple[str, list[str], str], tmp_path: Path) -> None:
    """Process of block 0 reports what it alone can see, whatever its rank."""
    ranks, overrides, expected = case
    (tmp_path / "placement.yaml").write_text(f"ranks: {ranks}")
    done = fork(
        2, "-m", "fgpipe.train", f"run_dir={tmp_path / 'run'}", "placement=placement.yaml", *overrides, cwd=tmp_path
    )
    assert done.stderr.startswith("fgpipe: ") and done.stderr.count("\n") == 1, done.stderr
    assert expected in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def corrupt_image(folder: Path) -> list[str]:
    for part in ("train", "test"):
        (folder / "images" / part / "cat").mkdir(parents=True)
        (folder / "images" / part / "cat" / "0001.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image")
    return ["data=image_folder", f"data.root={folder / 'images'}"]


def not_empty(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "summary.json").write_text("{}")
    return []


IN_PROCESS = {
    "corrupt image": (corrupt_image, "0001.jpg"),
    "run folder in use": (not_empty, "a folder that does not exist yet or is empty"),
    "scope of the other space": (
        lambda folder: ["space=activity", "scope=tensor"],
        "scope=tensor: allowed: sample | batch",
    ),
    "negative depth": (lambda folder: ["target=intermediate", "target.depth=-1"], "target.depth=-1: allowed"),
    "every interface": (lambda folder: ["interface=0.0.0.0"], "interface=0.0.0.0: allowed: lo (127.0.0.1)"),
    "lost scalars": (lambda folder: ["feedback.lost=maybe"], "feedback.lost=maybe: allowed: retry | skip | fail"),
    "no such key": (lambda folder: ["model.widht=1"], "model.width"),
    "not a number": (lambda folder: ["epochs=many"], "epochs=many"),
    "no such file": (lambda folder: ["optim=sgdd"], "optim=sgdd: allowed: constant | one_cycle | step"),
    "more than there are": (lambda folder: ["data.train_samples=99999"], "data.train_samples=99999"),
    "no lanes": (lambda folder: ["lanes=0"], "lanes=0: allowed: exact, or a whole number of at least 1"),
    "lanes in words": (lambda folder: ["lanes=some"], "lanes=some: allowed: exact, or a whole number"),
    "more lanes than probes": (lambda folder: ["lanes=128"], "lanes=128: allowed: exact, or at most 64 here"),
    "more lanes than one block's": (
        lambda folder: ["lanes=2", "scope=block", "target=intermediate"],
        "lanes=2: allowed: exact, or at most 1 here",
    ),
    "no such matrix": (lambda folder: ["lanes=6"], "lanes=6: allowed: a power of two with code=hadamard"),
    "no such code": (lambda folder: ["lanes=2", "code=morse"], "code=morse: allowed: hadamard | rademacher"),
    "lanes of backpropagation": (
        lambda folder: ["lanes=2", "guess=end_to_end"],
        "lanes=2: allowed: exact with guess=end_to_end",
    ),
    "steps of local learning": (
        lambda folder: ["step=normalised", "target=local"],
        "step=normalised: allowed: projection with guess=local",
    ),
    "lanes of exact samples": (
        lambda folder: ["lanes=2", "space=activity", "tangents=oracle", "window=1"],
        "lanes=2: allowed: exact with tangents=oracle scope=sample",
    ),
    "nothing to predict": (
        lambda folder: ["decode=predicted"],
        "decode=predicted: allowed: plain | smoothed with lanes=exact",
    ),
    "noise to smooth": (
        lambda folder: ["lanes=2", "decode=smoothed", "guess=gaussian"],
        "decode=smoothed: allowed: plain with guess=gaussian",
    ),
    "replicas of nothing": (
        lambda folder: ["replicas=2"],
        "replicas=2: allowed: a divisor of the number of processes (1)",
    ),
    "uneven shares": (
        lambda folder: ["replicas=2", "batch_size=33"],
        "batch_size=33: allowed: a multiple of replicas=2",
    ),
    "shares of one": (
        lambda folder: ["replicas=4", "batch_size=4"],
        "batch_size=4: allowed: a multiple of replicas=4, with at least 2 samples for each",
    ),
    "eager replicas": (
        lambda folder: ["replicas=2", "feedback=eager"],
        "feedback=eager: allowed: in_order with replicas=2, whose updates must come in one order",
    ),
    "replicas that skip": (
        lambda folder: ["replicas=2", "feedback.lost=skip"],
        "feedback.lost=skip: allowed: retry | fail with replicas=2",
    ),
    "replicas that remember steps": (
        lambda folder: ["replicas=2", "step=normalised"],
        "step=normalised: allowed: projection with replicas=2",
    ),
    "replicas that remember scalars": (
        lambda folder: ["replicas=2", "decode=smoothed"],
        "decode=smoothed: allowed: plain with replicas=2",
    ),
    "a trace of replicas": (lambda folder: ["replicas=2", "trace=true"], "trace=true: allowed: false with replicas=2"),
    "a slow replica": (lambda folder: ["replicas=2", "slow.block=1"], "slow.block=1: allowed: null with replicas=2"),
    "microbatches of a share": (
        lambda folder: ["replicas=2", "guess=end_to_end", "batch_size=12"],
        "microbatches=4: allowed: a divisor of the 6 samples of a replica",
    ),
    "less than a batch": (lambda folder: ["data.train_samples=10"], "10"),
}


@pytest.mark.parametrize("case", IN_PROCESS.values(), ids=IN_PROCESS.keys())
def test_in_one_process(
    case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, expected = case
    monkeypatch.chdir(tmp_path)
    overrides = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([f"run_dir={tmp_path / 'run'}", *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fgpipe: ") and captured.err.count("\n") == 1, captured.err
    assert expected in captured.err
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written and nothing is lost"
