"""How well guesses align with the true gradient, at frozen weights and without training: a sieve for what is worth training.

    python -m fgpipe.study alignment RUN [RUN ...] [guesses=[local,error,...]] [batches=24] [space=weight] [data.root=DIR] [out=DIR]

Each RUN has a checkpoint of the same net with another head, as `guess=end_to_end observe.heads=true` trains them beside it.
Every guess is taken through the head of every run, to the parameters of each block below the last, and compared with the
gradient of the net's own loss (`true`) on the same batches of training images:

A guess may have keys of its own: `'guesses=[error,twins ahead=2]'`. Twins are fresh copies of the net and the run's heads.

- `cosine`: with true, the mean over batches with its 95 % interval, and of the sums over all batches, which momentum sees;
- `beyond local`: the same with what the plain local gradient, that of the first run's head, leaves of true;
- `ceiling`: the share of true's norm at the block's output that lies in the span of the head's C logit gradients, sample by
  sample. No guess through this head can be better aligned there; summed over samples, at the parameters, it can.

The table and, if matplotlib is installed, one figure are written to DIR/alignment.md and .png, in the first RUN without `out`.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from fgpipe.config import Config
from fgpipe.config.arguments import own_keys
from fgpipe.data import Batches, load
from fgpipe.errors import UserError, bad_value, one_line
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import Guess, make, redraw
from fgpipe.gradients.method import Method
from fgpipe.gradients.oracle import estimate
from fgpipe.gradients.reverse import gradients
from fgpipe.models.init import materialize
from fgpipe.models.net import Net, deep_copy, resnet
from fgpipe.models.twins import with_twins
from fgpipe.plan.precision import DTYPES
from fgpipe.saving.checkpoint import Checkpoints, read_net, read_tensors
from fgpipe.saving.outputs import check_folder
from fgpipe.study.common.figure import HEAD_COLORS, INK, drawn, name_lines
from fgpipe.study.common.runs import write_page

CPU = torch.device("cpu")


@dataclass
class AlignmentOptions:
    """Keys of this study."""

    guesses: list[str] = field(default_factory=lambda: ["local", "error"])
    batches: int = 24
    space: str = "weight"
    """Of guesses that can be made in both."""
    out: str | None = None

    def check(self) -> None:
        """Raises: UserError: a value that it cannot have."""
        if self.batches < 2:
            raise bad_value("batches", self.batches, "a whole number of at least 2")
        if self.space not in ("weight", "activity"):
            raise bad_value("space", self.space, "weight | activity")
        if not self.guesses or not all(map(str.split, self.guesses)):
            raise bad_value("guesses", self.guesses, "a list of names, with keys after spaces")
        for each in map(made, self.guesses):
            if each.twin is not None and each.copied_every is None:
                raise bad_value("guess.weights", "private", "copied here, as nothing is trained")
            if each.second_head is not None:
                raise bad_value("guess", each.name, "one without a second head, which no RUN has")
            if each.remembers:
                raise bad_value("guess", each.name, "one without a memory, as nothing is trained here")
        if self.out is not None:
            check_folder("out", Path(self.out))


class Along(StepRule):
    """Steps that are the guess itself, whatever its readings."""

    def factors(self, coefficients: Tensor) -> Tensor:
        return torch.ones_like(coefficients)


@dataclass(frozen=True)
class TrainedNet:
    """The net of a run's newest checkpoint, in training mode."""

    config: Config
    net: Net

    @classmethod
    def of(cls, run: Path, root: str | None, classes: int, channels: int) -> "TrainedNet":
        """
        Raises:
            UserError: there is none, or a block's head in it is not trained.
        """
        config = config_of(run, root)
        net = resnet(config.model, config.head, in_channels=channels, classes=classes)
        for module in (*net.blocks, *net.heads):
            materialize(module, torch.Generator().manual_seed(0), dtype=DTYPES[config.dtype], device=CPU).train()
        manifest = Checkpoints(run).newest(lambda line: None)
        if manifest is None:
            raise bad_value(
                "RUN", run, "the folder of a run with a complete checkpoint in it (checkpoint.every_steps=N)"
            )
        folder = Checkpoints(run).folder(manifest.step)
        for j in range(len(net.heads)):
            if not any(name.startswith("head.module.") for name in read_tensors(folder, j)):
                raise bad_value("RUN", run, "one that trained a head at every block (observe.heads=true)")
        read_net(folder, net)
        return cls(config, net)

    def directions(self, method: Method, x: Tensor, labels: Tensor, batch: int) -> list[Tensor]:
        """The guess of each block below the last at its parameters, as one vector; for `end_to_end`, the true gradient."""
        seed, guess_heads = self.config.seed, [deep_copy(head) for head in self.net.heads]
        if method.guess.twin is not None:
            guess_heads[:-1] = map(deep_copy, with_twins(self.net, method.guess.twin).beside)
        for j, head in enumerate(guess_heads if method.guesses_by_untrained_head else ()):
            redraw(head, method.guess, seed, j, batch)
        blocks, heads = ([deep_copy(each) for each in part] for part in (self.net.blocks, self.net.heads))
        step = Along()
        found = estimate(method, blocks, heads, guess_heads, x, labels, seed=seed, batch=batch, step=lambda block: step)
        return [torch.cat([each.flatten() for each in named.values()]).double() for named in found.blocks[:-1]]

    def ceilings(self, x: Tensor, labels: Tensor) -> list[float]:
        """Root of the mean share of the true gradient at each block's output, squared, in the span of its head's logits'."""
        outputs: list[Tensor] = []
        for block in map(deep_copy, self.net.blocks):
            outputs.append(x := block(x))
        loss = self.net.heads[-1].losses(outputs[-1], labels)[0].sum()  # type: ignore[operator]  # a head has it
        true = gradients(loss, outputs[:-1], retain_graph=True)
        return [seen(head, y, signal) for head, y, signal in zip(self.net.heads, outputs, true, strict=False)]


def seen(head: nn.Module, y: Tensor, signal: Tensor) -> float:
    """The share of a signal's norm, shaped as `y` `[B, ...]`, in the span of the head's logit gradients at each sample."""
    y = y.detach().requires_grad_()
    logits = deep_copy(head)(y)
    rows = torch.stack(
        [gradients(logits[:, c].sum(), [y], retain_graph=True)[0].flatten(1) for c in range(logits.shape[1])], 1
    )
    basis, _ = torch.linalg.qr(rows.double().mT)
    wanted = signal.double().flatten(1)
    inside = (basis.mT @ wanted.unsqueeze(2)).square().sum(dim=(1, 2)) / wanted.square().sum(dim=1)
    return math.sqrt(inside.mean().item())


def config_of(run: Path, root: str | None) -> Config:
    """Raises: UserError: the folder has no run's configuration."""
    path = run / "config.yaml"
    if not path.is_file():
        raise bad_value("RUN", run, "the folder of a run")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise bad_value("RUN", run, f"a folder whose config.yaml can be read ({one_line(error)})") from error
    assert isinstance(config, Config)
    config.data.root = config.data.root if root is None else root
    return config


def made(guess: str) -> Guess:
    """The guess of a name and, after spaces, keys with their values.

    Raises:
        UserError: there is no such guess, or key.
    """
    name, *keys = guess.split()
    return make({"name": name, **OmegaConf.to_container(OmegaConf.from_dotlist(keys))})  # type: ignore[dict-item]


def method_of(guess: str, space: str, blocks: int, samples: int, classes: int, depth: int | None = None) -> Method:
    """A guess for the global target, or another, in the space that it has."""
    chosen = made(guess)
    space = space if space in chosen.spaces else chosen.spaces[0]
    return Method(
        blocks, chosen, space, "block" if space == "weight" else "sample", depth, samples=samples, classes=classes
    )


def cosine(first: Tensor, second: Tensor) -> float:
    """0 where one of them is 0."""
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-300))


def beyond(true: Tensor, local: Tensor) -> Tensor:
    """What a direction leaves of the true gradient: its part at right angles to it."""
    return true - (true @ local) / (local @ local).clamp_min(1e-300) * local


@dataclass
class Cosines:
    """Cosines of one guess through one head at one block."""

    each: list[float] = field(default_factory=list)
    each_beyond: list[float] = field(default_factory=list)
    total: Tensor | float = 0.0
    """Sum of the guess over batches."""


def measure(
    runs: Mapping[str, TrainedNet], methods: Mapping[str, Method], batches: Iterator[tuple[int, Tensor, Tensor]]
) -> tuple[dict[tuple[str, str], list[Cosines]], list[Tensor], list[Tensor], dict[str, list[list[float]]]]:
    """Each guess through each head, by block; sums of the true and the local gradient; ceilings of each head and batch."""
    first = next(iter(runs.values()))
    blocks, samples, classes = len(first.net.blocks), first.config.batch_size, next(iter(methods.values())).classes
    whole, own = (
        method_of(name, "weight", blocks, samples, classes, depth)
        for name, depth in (("end_to_end", None), ("local", 0))
    )
    found = {(run, guess): [Cosines() for _ in range(blocks - 1)] for run in runs for guess in methods}
    sums: tuple[list[Tensor], list[Tensor]] = ([], [])
    ceilings: dict[str, list[list[float]]] = {run: [] for run in runs}
    for number, x, labels in batches:
        true, local = (first.directions(method, x, labels, number) for method in (whole, own))
        for kept, new in zip(sums, (true, local), strict=True):
            kept[:] = [a + b for a, b in zip(kept, new, strict=True)] if kept else new
        for run, trained in runs.items():
            ceilings[run].append(trained.ceilings(x, labels))
            for guess, method in methods.items():
                for j, direction in enumerate(trained.directions(method, x, labels, number)):
                    one = found[run, guess][j]
                    one.each.append(cosine(direction, true[j]))
                    one.each_beyond.append(cosine(direction, beyond(true[j], local[j])))
                    one.total = one.total + direction
    return found, *sums, ceilings


def interval(values: Sequence[float]) -> str:
    """Mean and the half-width of its 95 % interval."""
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return f"{rounded(statistics.mean(values))} ± {half:.2f}"


def rounded(value: float) -> str:
    """A number with two decimals, of which none is -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def main(arguments: list[str]) -> int:
    """Measure and report; returns the exit code.

    Raises:
        UserError: a run has no checkpoint, or runs are of different nets, or the data cannot be read.
    """
    folders = [Path(each) for each in arguments if "=" not in each]
    options, rest = own_keys([each for each in arguments if "=" in each], AlignmentOptions())
    options.check()
    if not folders or any(not each.startswith("data.root=") for each in rest):
        raise UserError(
            f"{' '.join(arguments)}: allowed: RUN [RUN ...] [key=value ...], the study's keys and data.root"
        )
    if len({each.name for each in folders}) < len(folders):
        raise bad_value("RUN", " ".join(map(str, folders)), "folders of different names")
    root = rest[-1].partition("=")[2] if rest else None
    config = config_of(folders[0], root)
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES[config.dtype])
    if options.batches > batches.train_batches:
        raise bad_value("batches", options.batches, f"2 to {batches.train_batches}, those of an epoch")
    channels = dataset.train_images.shape[1]
    runs = {each.name: TrainedNet.of(each, root, dataset.classes, channels) for each in folders}
    first = next(iter(runs.values()))
    for name, other in runs.items():
        pairs = zip(first.net.blocks, other.net.blocks, strict=False)
        if not all(
            torch.equal(a, b) for one, two in pairs for a, b in zip(one.parameters(), two.parameters(), strict=False)
        ):
            raise bad_value("RUN", name, f"a run with the blocks of {folders[0].name}")
    sizes = len(first.net.blocks), config.batch_size, dataset.classes
    methods = {name: method_of(name, options.space, *sizes) for name in options.guesses}
    taken = ((number, *batches.train(0, number)) for number in range(options.batches))
    found, true, local, ceilings = measure(runs, methods, taken)
    text = table(found, true, local, ceilings)
    print(text, end="")
    out = Path(options.out or folders[0])
    command = f"python -m fgpipe.study alignment {' '.join(arguments)}"
    write_page(out / "alignment.md", f"# Alignment\n\n```bash\n{command}\n```\n\n{text}")
    if find_spec("matplotlib") is not None:
        plot(found, true, local, out / "alignment.png")
    return 0


def table(
    found: Mapping[tuple[str, str], Sequence[Cosines]],
    true: Sequence[Tensor],
    local: Sequence[Tensor],
    ceilings: Mapping[str, Sequence[Sequence[float]]],
) -> str:
    """Markdown, a row for each run, guess and block."""
    lines = [
        "| run | guess | block | cosine | cosine of sums | beyond local | beyond local, of sums | ceiling at the block's output; parameters may exceed it |",
        "|" + "---|" * 8,
    ]
    for (run, guess), blocks in found.items():
        for j, one in enumerate(blocks):
            assert isinstance(one.total, Tensor), "there were batches"
            sums = cosine(one.total, true[j]), cosine(one.total, beyond(true[j], local[j]))
            cells = f"{interval(one.each)} | {rounded(sums[0])} | {interval(one.each_beyond)} | {rounded(sums[1])}"
            lines.append(f"| {run} | {guess} | {j} | {cells} | {interval([each[j] for each in ceilings[run]])} |")
    return "\n".join(lines) + "\n"


def plot(
    found: Mapping[tuple[str, str], Sequence[Cosines]], true: Sequence[Tensor], local: Sequence[Tensor], path: Path
) -> None:
    """Draw the cosines of sums with what the local gradient leaves, by block."""
    lines = {
        f"{run}, {guess}": [
            cosine(torch.as_tensor(one.total), beyond(true[j], local[j])) for j, one in enumerate(blocks)
        ]
        for (run, guess), blocks in found.items()
    }
    with drawn(path, (7, 4.5)) as axes:
        ends = {}
        for label, values in lines.items():
            run, _, guess = label.rpartition(", ")
            color = HEAD_COLORS.get(Path(run).name, INK)
            axes.plot(range(len(values)), values, "o-" if guess == "local" else "s--", color=color)
            ends[label] = values[-1], color
        name_lines(axes, len(true) - 0.8, ends)
        axes.axhline(0, color="0.8", linewidth=1)
        axes.set_xticks(range(len(true)))
        axes.set_xlim(-0.3, len(true) + 0.9)
        axes.set(xlabel="block", ylabel="cosine, of sums over batches", title="Beyond the local gradient")
