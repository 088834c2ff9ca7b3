"""The schema: a wrong value of any key is one line that names key, value and what is allowed."""

import re
from pathlib import Path

import pytest
from torch import nn

from fgpipe.config import CONFIGS, RULES, check_world, compose_config, known_keys
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.trainers.session import run

WRONG = {
    "data.size": ["0", "huge"],
    "data.stored_size": ["1"],
    "data.padding": ["-1"],
    "data.mean": ["[]", "[.nan]", "grey", "[[1]]"],
    "data.std": ["[0.0]", "[-1]"],
    "data.train_samples": ["0", "all"],
    "data.test_samples": ["0"],
    "data.held_out": ["0", "some"],
    "model.blocks": ["9", "-8"],
    "model.width": ["0", "-1", "inf", "wide"],
    "head.hidden": ["0", "big"],
    "target.depth": ["-1", "deep"],
    "guess.directions": ["0", "many"],
    "guess.beside": ["deep"],
    "guess.hidden": ["0"],
    "guess.second": ["both"],
    "guess.share": ["2"],
    "guess.second_every": ["0", "1.5"],
    "guess.ahead": ["0", "most"],
    "guess.every": ["0"],
    "guess.path": ["short"],
    "guess.weights": ["stolen"],
    "link.rate": ["100", "0Mbit", "-1Mbit", "fast", "100MB"],
    "link.rtt": ["50", "0ms", "-5ms", "far", "1h"],
    "replay.size": ["0", "-3", "all"],
    "replay.reuse": ["0", "1.5", "often"],
    "elastic.block": ["-1", "last", "1.5"],
    "elastic.store": ["host", "host:0", "host:70000", ":29400"],
    "elastic.fallback": ["global"],
    "slow.block": ["-1", "all"],
    "slow.process": ["-1", "all"],
    "slow.factor": ["0.5", "-2", "inf", "very"],
    "slow.jitter": ["-0.1", "nan", "some"],
    "link.between": ["[]", "[-1]", "[0,0]", "all", "[1.5]"],
    "optim.lr": ["0", "-0.1", "nan", "fast"],
    "optim.momentum": ["1", "-0.1"],
    "optim.weight_decay": ["-1"],
    "optim.step_epochs": ["0"],
    "optim.gamma": ["0"],
    "optim.warmup": ["0", "1"],
    "optim.look_ahead": ["maybe"],
    "observe.heads": ["maybe"],
    "observe.cosine": ["0", "often"],
    "observe.tensorboard": ["2.5"],
    "checkpoint.every_steps": ["0", "often"],
    "checkpoint.every_minutes": ["0"],
    "checkpoint.keep": ["0"],
    "window": ["0", "-2", "1.5", "wide", "[2,0]", "[1.5]"],
    "microbatches": ["0"],
    "epochs": ["0", "1.5"],
    "batch_size": ["1", "many"],
    "seed": ["-1", "x"],
    "threads": ["0", "all"],
    "replicas": ["0", "two", "3"],
    "partition": ["[0,8]", "even"],
    "deadline": ["0", "-5", "soon", "1e+07"],
    "trace": ["maybe"],
    "streams": ["maybe"],
    "autocast": ["maybe"],
}
"""Values that are wrong by type, range or combination."""
CHOICES = set(RULES) - set(WRONG)
"""Keys with a list of names."""
FREE = {"data.root", "run_dir", "resume", "placement", "interface", "scope"}
"""Any text may be one of these; `load`, `resume`, `run`, `placement` and the sockets judge it, and the space judges the scope."""


def test_every_key_is_covered() -> None:
    assert set(known_keys()) == set(WRONG) | CHOICES | FREE


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_value(key: str, value: str) -> None:
    refuse(key, value)


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_wrong_choice(key: str) -> None:
    message = refuse(key, "psychic")
    assert RULES[key][1] in message


def refuse(key: str, value: str) -> str:
    with pytest.raises(UserError) as caught:
        compose_config([f"{key}={value}"])
    message = str(caught.value)
    assert "\n" not in message and key in message and "allowed" in message, message
    assert value.strip("[]-.") in message.replace(" ", ""), message
    return message


@pytest.mark.parametrize("overrides, expected", [
    (["space=activity", "scope=tensor"], "scope=tensor: allowed: sample | batch with space=activity"),
    (["space=weight", "scope=sample"], "scope=sample: allowed: tensor | block with space=weight"),
    (["target=local", "target.depth=2"], "target.depth=2: allowed: 0 with target=local"),
    (["target=intermediate", "target.depth=0"], "target.depth=0: allowed: a whole number of at least 1"),
    (["guess=end_to_end", "target=local"], "target=local: allowed: global with guess=end_to_end"),
    (["guess=end_to_end", "microbatches=7"], "microbatches=7: allowed: a divisor of batch_size=64"),
    (["tangents=oracle", "window=3"], "window=3: allowed: 1 with tangents=oracle"),
    (["link.between=[0]"], "link.between=[0]: allowed: null unless link.rate or link.rtt is given"),
    (["link.rtt=5ms", "guess=end_to_end"], "link.rtt=5ms: allowed: null with guess=end_to_end"),
    (["stash=two", "guess=end_to_end"], "stash=two: allowed: all unless guess=end_to_end schedule=async_1f1b"),
    (["optim.look_ahead=true", "optim.name=adamw"], "optim.look_ahead=true: allowed: false unless optim.name=sgd"),
    (["optim.options.nesterov=true"], "optim.options={'nesterov': True}: allowed: {} with optim.name=sgd"),
    (["optim.name=sparseadam"], "optim.name=sparseadam: allowed: "),
    (["guess=end_to_end", "schedule=async_1f1b", "stash=two", "microbatches=7"], "microbatches=7: allowed: a divisor of"),
    (["replay.reuse=2"], "replay.reuse=2: allowed: 4 unless replay.size is given"),
    (["replay.take=oldest"], "replay.take=oldest: allowed: newest unless replay.size is given"),
    (["replay.size=4"], "replay.size=4: allowed: null with target=global"),
    (["replay.size=4", "target=local", "tangents=oracle", "window=1"], "replay.size=4: allowed: null with tangents=oracle"),
    (["replay.size=4", "target=local", "checkpoint.every_steps=9"], "replay.size=4: allowed: null with checkpoint.*"),
    (["slow.factor=4"], "slow.factor=4: allowed: 1 unless slow.block or slow.process is given"),
    (["slow.jitter=0.5"], "slow.jitter=0.5: allowed: 0 unless slow.block or"),
    (["slow.block=1", "slow.process=1"], "slow.process=1: allowed: null with slow.block=1"),
    (["slow.block=1", "tangents=oracle", "window=1"], "slow.block=1: allowed: null with tangents=oracle"),
    (["trace=true", "tangents=oracle", "window=1"], "trace=true: allowed: false with tangents=oracle"),
    (["autocast=true", "dtype=float64"], "autocast=true: allowed: false with dtype=float64"),
    (["autocast=true", "guess=end_to_end"], "autocast=true: allowed: false with guess=end_to_end"),
    (["wire=bfloat16", "tangents=oracle", "window=1"], "wire=bfloat16: allowed: null with tangents=oracle"),
    (["wire=int8", "dtype=float64"], "wire=int8: allowed: null with dtype=float64"),
    (["wire=int8", "guess=end_to_end", "replicas=2"], "wire=int8: allowed: null | bfloat16 with replicas=2"),
    (["data.std=[1,1,1]"], "data.std=[1.0, 1.0, 1.0]: allowed: as many numbers as data.mean has (1)"),
    (["streams=true", "guess=end_to_end", "schedule=async_1f1b"], "streams=true: allowed: false with schedule=async_1f1b"),
    (["epochs"], "epochs: allowed: key=value"),
    (["window=1,2"], "window=1,2: allowed: one value; a list is in brackets"),
    (["data.mean=[a"], "data.mean=[a: the value cannot be read"),
    (["model=null"], "model=null: allowed: resnet18_1 | resnet18_16 | resnet18_2 | resnet18_4 | resnet18_8"),
    (["model=resnet50"], "model=resnet50: allowed: resnet18_1 | resnet18_16 | resnet18_2 | resnet18_4 | resnet18_8"),
    (["link=3"], "link=3: Invalid type assigned: int is not a subclass of LinkConfig"),
    (["epochs=${foo}"], "epochs=${foo}: Interpolation key 'foo' not found"),
    (["hydra.run.dir=x"], "hydra.run.dir=x: no such key"),
    (["model.widht=1"], "model.widht=1: no such key; did you mean model.width"),
    (["lr=1"], "lr=1: no such key; did you mean optim.lr?"),
    (["optim.learning_rate=1"], "optim.learning_rate=1: no such key; allowed: optim.clip | "),
])  # fmt: skip
def test_combinations(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(expected)):
        compose_config(overrides)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes(path) -> None:
    """And it starts with the command that runs it."""
    compose_config([f"experiment={path.stem}"])
    assert f"experiment={path.stem}" in path.read_text().split("defaults:")[0]


def test_values_of_one_composition_are_not_in_the_next() -> None:
    """Compositions with the same choices share what Hydra made of them."""
    first = compose_config(["data.mean=[0.5]", "optim.lr=0.25"])
    first.data.std[0] = 0.75
    second = compose_config(["optim.lr=0.5", "epochs=3", "epochs=2"])
    assert (first.data.mean, first.optim.lr) == ([0.5], 0.25)
    assert (second.data.mean, second.data.std, second.optim.lr, second.epochs) == ([0.305], [0.3188], 0.5, 2)


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_home(quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the `~` of a key with a dot; who is not there has no home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_config([f"data.root={quote}~/data{quote}", "run_dir='~nobody-here/run'"])
    assert (config.data.root, config.run_dir) == (f"{tmp_path}/data", "~nobody-here/run")


@pytest.mark.parametrize("blocks, allowed, refused", [(8, "[4,4]", "[2,2]"), (4, "[2,2]", "[4,4]")])
def test_a_partition_is_of_the_nets_blocks(blocks: int, allowed: str, refused: str) -> None:
    """Of a net of one's own too, whose blocks no configuration knows."""
    for partition in (allowed, refused):
        config = compose_config([f"partition={partition}"])
        config.model.blocks = blocks
        if partition == allowed:
            check_world(config, 2)
        else:
            with pytest.raises(UserError, match=rf"^partition=.*: allowed: numbers that add up to {blocks}, the net's"):
                check_world(config, 2)


def test_a_slow_process_is_one_of_the_pipelines() -> None:
    check_world(compose_config(["slow.process=1"]), 2)
    with pytest.raises(UserError, match=r"^slow.process=2: allowed: 0 to 1 with 2 processes$"):
        check_world(compose_config(["slow.process=2"]), 2)


OF_TWO_BLOCKS = {
    "partition": ("[2]", "[8]", "numbers that add up to 2, the net's blocks"),
    "window": ("[2,1]", "[2,1,1,1,1,1,1,1]", r"one number for each block \(2\)"),
    "slow.block": ("1", "2", "0 to 1 with 2 blocks"),
}


@pytest.mark.parametrize("key", OF_TWO_BLOCKS)
def test_keys_that_count_the_blocks_of_a_net_of_ones_own(key: str, tmp_path: Path) -> None:
    """The net that is trained decides, and not the eight blocks of the configuration's."""
    allowed, refused, line = OF_TWO_BLOCKS[key]
    common = ["epochs=1", "data.train_samples=32", "batch_size=16", "data.test_samples=16", "device=cpu", "threads=1"]
    common += ["observe.tensorboard=false", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=rf"^{key}=.*: allowed: {line}$"):
        run(compose_config([*common, f"{key}={refused}"]), two_blocks())
    assert not (tmp_path / "run").exists()
    assert run(compose_config([*common, f"{key}={allowed}"]), two_blocks())["blocks_per_process"] == [2]


def two_blocks() -> Net:
    blocks = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())]
    return Net(blocks, [Head(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)) for _ in blocks])
