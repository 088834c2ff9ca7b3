"""Guesses are plug-ins: what the registry gives and refuses, and one of a new kind, with keys and a memory of its own."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, make_dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fgpipe.config import CONFIGS, compose_config
from fgpipe.errors import UserError
from fgpipe.gradients.guesses import Guess, View, find, guess, make, names
from fgpipe.gradients.guesses.local import Local
from tests.gradients.remembering import RunningMean
from tests.test_transparency import STEPS, Pipeline, assert_agrees, configuration


def test_every_file_of_the_group_is_a_guess() -> None:
    """Its keys and defaults are those of the class."""
    files = sorted((CONFIGS / "guess").glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        assert OmegaConf.to_container(OmegaConf.load(file)) == {"name": file.stem, **asdict(make(file.stem))}
    assert {file.stem for file in files} <= set(names())


def test_a_registered_guess_is_a_choice_with_keys() -> None:
    config = compose_config(["guess=running_mean", "guess.decay=0.9"])
    assert config.guess == {"name": "running_mean", "decay": 0.9}
    assert compose_config(["guess=running_mean"]).guess["decay"] == 0.5


def test_values_are_of_their_types() -> None:
    """A word that is a number is that number."""
    assert make({"name": "running_mean", "decay": "0.25"}) == RunningMean(decay=0.25)


@pytest.mark.parametrize("overrides, line", [
    (["guess=psychic"], r"guess=psychic: allowed: .*gaussian \| .*running_mean"),
    (["guess=running_mean", "guess.decay=slow"], "guess.decay=slow: Value 'slow' of type 'str' could not be converted to Float"),
    (["guess=running_mean", "guess.speed=1"], "guess.speed=1: allowed: as a key of guess=running_mean, decay$"),
    (["guess=running_mean", "space=activity"], "space=activity: allowed: weight with guess=running_mean$"),
    (["guess=running_mean", "replicas=2"], "replicas=2: allowed: 1 with guess=running_mean, whose memories would differ$"),
])  # fmt: skip
def test_bad_input(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        compose_config(overrides)


@pytest.mark.parametrize("name", ["local", "gaussian", "running_mean", "Mine", "my guess", ""])
def test_names_that_cannot_be_had(name: str) -> None:
    with pytest.raises(ValueError, match="guess .*: allowed: |is taken, by .*: allowed: another name"):
        guess(name)(type("Other", (Guess,), {}))


def test_installed_packages_bring_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point; it is imported when its guess is chosen, and no sooner."""
    (tmp_path / "throw_away.py").write_text(
        "import fgpipe.gradients.guesses as g\n"
        "from fgpipe.gradients.guesses.local import Local\n"
        "@g.guess('thrown_away')\nclass ThrownAway(Local):\n    pass\n"
    )
    information = tmp_path / "throw_away-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: throw-away\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[fgpipe.guesses]\nthrown_away = throw_away\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [each.value for each in metadata.entry_points(group="fgpipe.guesses", name="thrown_away")] == ["throw_away"]
    assert "thrown_away" in names()
    assert compose_config(["guess=thrown_away"]).guess == {"name": "thrown_away"}
    assert find("thrown_away").__module__ == "throw_away"


@pytest.mark.parametrize("target", ["global", "intermediate", "local"])
@pytest.mark.parametrize("scope", ["tensor", "block"])
def test_a_memory_is_the_same_in_the_oracle(scope: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what earlier estimates left; it differs from the local guess from the first batch on."""
    pipeline = Pipeline(configuration("running_mean", "mlp", "weight", scope, target, 8))
    for batch in range(STEPS + 1):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)
        for stage in pipeline.stages[:-1]:
            assert all(mean.count_nonzero() for mean in stage.memory.tensors.values())


WRONG = {
    "a tensor too few": (lambda found: found[1:], "a list of 9 tensors, not 8"),
    "another shape": (
        lambda found: [each[:1] for each in found],
        "direction 0 with shape [5, 3, 3, 3], not [1, 3, 3, 3]",
    ),
    "a number": (lambda found: [*found[:-1], 1.0], "direction 8 with shape [5], not float"),
    "a tensor alone": (lambda found: found[0], "a list of 9 tensors, not Tensor"),
    "nothing": (lambda found: None, "a list of 9 tensors, not NoneType"),
}


@pytest.mark.parametrize("spoil, got", WRONG.values(), ids=WRONG.keys())
def test_wrong_directions_are_said_in_a_line(spoil, got: str, monkeypatch: pytest.MonkeyPatch) -> None:
    propose = Local.propose
    monkeypatch.setattr(Local, "propose", lambda self, view: spoil(propose(self, view)))
    pipeline = Pipeline(configuration("local", "mlp", "weight", "tensor", "global", 8))
    line = "guess=local: allowed: propose to return tensors shaped as view.places, of block 0 "
    with pytest.raises(UserError, match=f"^{re.escape(line + got)}$"):
        pipeline.step(0)


@guess("own_noise")
@dataclass(frozen=True)
class OwnNoise(Guess):
    """Noise as an author would draw it, from PyTorch's generator; drawn again when the readings come."""

    divided: ClassVar[bool] = False
    kept: ClassVar[bool] = False

    def propose(self, view: View) -> Sequence[Tensor]:
        return [torch.randn_like(place) for place in view.places]


@pytest.mark.parametrize("space, scope", [("weight", "tensor"), ("activity", "batch")])
def test_noise_of_the_global_generator_is_named_by_the_batch(space: str, scope: str) -> None:
    """The oracle draws the same, the second draw is the first, batches differ; and the program's own draws go on."""
    pipeline, learnt = Pipeline(configuration("own_noise", "mlp", space, scope, "global", 8)), []
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)
        learnt.append(pipeline.learnt(0)[0])
    assert not torch.equal(learnt[0].sign(), learnt[1].sign())
    assert torch.equal(torch.randn(2), wanted)


def asks(part: str, **attributes: object) -> type[Guess]:
    """A guess without a head that asks for a part of its view."""
    return type("Asks", (Guess,), {"propose": lambda self, view: getattr(view, part)(), **attributes})


@pytest.mark.parametrize("part, needs", [
    ("gradient", "the attribute head, as in head = fgpipe.GuessHead.TRAINED"),
    ("beside", "a second head or a twin"),
    ("target", "tangents=oracle, which alone has it"),
])  # fmt: skip
def test_parts_that_a_view_lacks_say_what_they_need(part: str, needs: str) -> None:
    name = f"asks_{part}"
    guess(name)(asks(part))
    pipeline = Pipeline(configuration(name, "mlp", "weight", "block", "global", 8))
    with pytest.raises(UserError, match=f"^view.{part}\\(\\): allowed: with {needs}$"):
        pipeline.step(0)


def test_fields_need_defaults() -> None:
    kind = make_dataclass("Bare", [("keep", float)], bases=(Guess,), frozen=True)
    with pytest.raises(ValueError, match="^guess 'bare': field keep: allowed: one with a default, as fields are keys$"):
        guess("bare")(kind)
