"""Distance that bfloat16, for compute and for the wire, and 8 bits on the wire take the estimates from the float64 oracle.

    python -m fgpipe.study precision [key=value ...]

Prints, for each block, the relative error of its estimate (the norm of the difference over the oracle's norm) and the
cosine with the oracle's, the mean over some batches at the initial weights: in float32, with `wire=bfloat16`, with
`wire=int8`, with `autocast=true`, and with it and `wire=bfloat16`. Random guesses cannot be compared, as their draws
differ between formats. With `guess=end_to_end schedule=async_1f1b`, what rounding gradients costs, without `autocast`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fgpipe.cluster.process import Place
from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.errors import bad_value
from fgpipe.gradients.guesses import make
from fgpipe.plan.plan import DataFacts
from fgpipe.plan.precision import DTYPES
from fgpipe.trainers.build import local_trainer

BATCHES = 3
UNIT_STEP = ["optim=constant", "optim.lr=1", "optim.momentum=0", "optim.weight_decay=0", "window=1", "device=cpu"]
"""Settings with which each update is the estimate itself."""
ORACLE = ["tangents=oracle", "dtype=float64"]
FORMATS = {
    "float32": [],
    "wire": ["wire=bfloat16"],
    "wire=int8": ["wire=int8"],
    "autocast": ["autocast=true"],
    "both": ["wire=bfloat16", "autocast=true"],
}


def main(arguments: list[str]) -> int:
    """Measure and print; returns the exit code.

    Raises:
        UserError: the arguments cannot be run, or the data cannot be read.
    """
    config = compose_config([*arguments, *UNIT_STEP])
    if not make(config.guess).kept:
        raise bad_value("guess", config.guess_name, "one without noise, which float64 and float32 agree on")
    torch.set_num_threads(Place(0, 1, 0, 1).threads(config.threads))
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES["float32"])
    facts = DataFacts.of(dataset, batches, config.data.size)
    formats = {name: keys for name, keys in FORMATS.items() if not (config.asynchronous and "autocast=true" in keys)}
    drawn = [batches.train(0, index) for index in range(min(BATCHES, batches.train_batches))]
    rows = torch.stack([compare(arguments, formats.values(), facts, *each) for each in drawn]).mean(dim=0)
    print("relative error of the estimate, and its cosine with the float64 oracle's")
    print("block  " + "  ".join(f"{name:>17}" for name in formats))
    for block, row in enumerate(rows.tolist()):
        print(f"{block:>5}  " + "  ".join(f"{error:>8.1e} {cosine:>8.4f}" for error, cosine in row))
    return 0


def compare(
    arguments: list[str], formats: Iterable[list[str]], facts: DataFacts, images: Tensor, labels: Tensor
) -> Tensor:
    """Relative error and cosine, `[J, formats, 2]`, on one batch."""
    wanted = estimates([*arguments, *ORACLE], facts, images, labels)
    columns = []
    for overrides in formats:
        found = zip(estimates([*arguments, *overrides], facts, images, labels), wanted, strict=True)
        columns.append([((a - b).norm() / b.norm(), torch.cosine_similarity(a, b, dim=0)) for a, b in found])
    return torch.tensor(columns).transpose(0, 1)


def estimates(overrides: list[str], facts: DataFacts, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Estimate of each block at its initial weights, float64, as one vector."""
    config = compose_config([*overrides, *UNIT_STEP])
    trainer = local_trainer(config, facts)
    modules = [parts["block"].module for _, parts in sorted(trainer.trained().items())]
    before = [_flat(module) for module in modules]
    trainer.train(0, 1, lambda *_: (images.to(DTYPES[config.dtype]), labels))
    return [start - _flat(module) for start, module in zip(before, modules, strict=True)]


def _flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])
