"""The sieve: cosines and ceilings against plain autograd on the same net, and a real study."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tests.gradients.remembering  # noqa: F401 - registers running_mean
from fgpipe.config import compose_config
from fgpipe.models.heads import linear_head
from fgpipe.study.__main__ import main
from fgpipe.study.probes.alignment import TrainedNet, beyond, cosine, measure, method_of, seen
from fgpipe.trainers.session import run

KEYS = [
    "guess=end_to_end", "tangents=oracle", "window=1", "observe.heads=true", "epochs=1", "batch_size=32", "model.width=0.0625",
    "data.train_samples=128", "checkpoint.every_steps=4", "observe.tensorboard=false", "device=cpu", "dtype=float64",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {head: tmp_path_factory.mktemp("runs") / head for head in ("mlp", "spatial")}
    for head, folder in found.items():
        run(compose_config([*KEYS, f"head={head}", f"run_dir={folder}"]))
    return found


def test_by_autograd(folders: dict[str, Path]) -> None:
    """Cosines of the MLP's own and of the final error, from plain backward passes."""
    trained = TrainedNet.of(folders["mlp"], None, 10, 1)
    x, labels = torch.randn(32, 1, 8, 8, dtype=torch.float64), torch.arange(32) % 10
    methods = {name: method_of(name, "weight", 8, 32, 10) for name in ("local", "error")}
    found, _, _, _ = measure({"mlp": trained}, methods, iter([(0, x, labels)]))
    net, y = trained.net, x
    outputs = [y := block(y) for block in net.blocks]
    final, logits = net.heads[-1].losses(outputs[-1], labels)  # type: ignore[operator]  # a head has it
    error = (logits.softmax(1) - nn.functional.one_hot(labels, 10)).detach() / 32
    for j in range(7):
        parameters = list(net.blocks[j].parameters())

        def gradient(value: torch.Tensor, signal: torch.Tensor | None = None) -> torch.Tensor:
            grads = torch.autograd.grad(value, parameters, signal, retain_graph=True)  # noqa: B023 - called at once
            return torch.cat([each.flatten() for each in grads])

        own, of_block = net.heads[j].losses(outputs[j], labels)  # type: ignore[operator]
        true, local = gradient(final.mean()), gradient(own.mean())
        for guess, wanted in (("local", local), ("error", gradient(of_block, error))):
            one = found["mlp", guess][j]
            assert one.each[0] == pytest.approx(cosine(wanted, true), abs=1e-8)
            assert one.each_beyond[0] == pytest.approx(cosine(wanted, beyond(true, local)), abs=1e-7)
        assert abs(found["mlp", "local"][j].each_beyond[0]) < 1e-7, "nothing is left of it"


def test_twins_of_all_blocks_are_the_true_gradient(folders: dict[str, Path]) -> None:
    trained = TrainedNet.of(folders["mlp"], None, 10, 1)
    x, labels = torch.randn(32, 1, 8, 8, dtype=torch.float64), torch.arange(32) % 10
    methods = {name: method_of(name, "weight", 8, 32, 10) for name in ("twins", "twins ahead=null")}
    found, true, _, _ = measure({"mlp": trained}, methods, iter([(0, x, labels)]))
    for j in range(7):
        assert torch.allclose(
            torch.as_tensor(found["mlp", "twins ahead=null"][j].total), true[j], rtol=1e-9, atol=1e-15
        )
    near = [found["mlp", "twins"][j].each[0] for j in range(7)]
    assert near[6] == pytest.approx(1) and max(near[:6]) < 0.99, "the next block of the last but one is the last"


def test_ceiling_by_hand() -> None:
    """A head that pools to 2x2 sees what is constant in each quadrant, if it has a logit for each of its features."""
    head, signal = linear_head(1, 4).double(), torch.randn(5, 1, 8, 8, dtype=torch.float64)
    means = signal.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5), keepdim=True)
    share = 16 * means.square().sum(dim=(1, 2, 3, 4, 5)) / signal.square().sum(dim=(1, 2, 3))
    assert seen(head[1:].eval(), torch.randn_like(signal), signal) == pytest.approx(
        share.mean().item() ** 0.5, rel=1e-6
    )


def test_study(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folders["mlp"]), str(folders["spatial"]), "batches=2", "guesses=[local,error,ntk,gaussian]"]
    assert main(["alignment", *arguments, f"out={tmp_path}"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 * 4 * 7 and (tmp_path / "alignment.md").read_text().count("spatial | error") == 7


def test_what_cannot_be_measured(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More batches than an epoch has, a configuration that is cut short, and heads that nobody has trained."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.yaml").write_text("model: {blocks: ")
    untrained = tmp_path / "untrained"
    run(compose_config([*KEYS, "observe.heads=false", f"run_dir={untrained}"]))
    for folder, keys, expected in (
        (folders["mlp"], ["batches=9999"], "batches=9999: allowed: 2 to "),
        (cut, [], f"RUN={cut}: allowed: a folder whose config.yaml can be read"),
        (untrained, ["batches=2"], f"RUN={untrained}: allowed: one that trained a head at every block"),
    ):
        assert main(["alignment", str(folder), *keys]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1


@pytest.mark.parametrize("arguments, expected", [
    (["batches=1"], "fgpipe: batches=1: allowed: a whole"), (["guesses=[psychic]"], "fgpipe: guess=psychic: allowed: "),
    (["guesses=[]"], "fgpipe: guesses=[]: allowed: a list of names"), (["guesses=['']"], "fgpipe: guesses=['']: allowed: a list of names"),
    (["guesses=[mixture]"], "fgpipe: guess=mixture: allowed: one without a second head"),
    (["guesses=[running_mean]"], "fgpipe: guess=running_mean: allowed: one without a memory"),
    (["runs/a/net", "runs/b/net"], "fgpipe: RUN=runs/a/net runs/b/net: allowed: folders of different names"),
    (["guesses=[twins weights=private]"], "fgpipe: guess.weights=private: allowed: copied here"),
    (["nowhere"], "fgpipe: RUN=nowhere: allowed: the folder of a run"), (["nowhere", "model.width=1"], "fgpipe: nowhere model.width=1: allowed: RUN"),
])  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alignment", *arguments]) == 2
    assert capsys.readouterr().err.startswith(expected)
