"""Guesses are plug-ins: what the registry gives and refuses, and one of a new kind, with keys and a memory of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fgpipe.config import CONFIGS, compose_config
from fgpipe.errors import UserError
from fgpipe.gradients.guesses import Guess, GuessHead, View, find, guess, make, names
from tests.test_transparency import STEPS, Pipeline, assert_agrees, configuration


@guess("running_mean")
@dataclass(frozen=True)
class RunningMean(Guess):
    """The mean of past estimates and the local gradient: `decay` of the former."""

    decay: float = 0.5

    spaces: ClassVar[tuple[str, ...]] = ("weight",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED

    def remember(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"mean{number}": torch.zeros_like(each) for number, each in enumerate(parameters.values())}

    def propose(self, view: View) -> Sequence[Tensor]:
        pairs = zip(view.memory.values(), view.gradient(), strict=True)
        return [self.decay * mean + (1 - self.decay) * gradient for mean, gradient in pairs]

    def learn(self, memory: Mapping[str, Tensor], estimates: Mapping[str, Tensor]) -> None:
        for mean, estimate in zip(memory.values(), estimates.values(), strict=True):
            mean.lerp_(estimate, 1 - self.decay)


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
    with pytest.raises(ValueError, match="guess .*: allowed: |is taken: allowed: another name"):
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
