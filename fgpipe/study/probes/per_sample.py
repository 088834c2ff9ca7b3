"""Distance of per-sample scalars from one tangent to the exact projection of every sample.

    python -m fgpipe.study per_sample [key=value ...]

Batch norm couples the samples of a batch, so <gradient of the loss, guess of sample i> would need a tangent per
sample. Forward mode pushes the guesses of the whole batch as one tangent and reads the derivative of each sample's own
loss (design: activity space, scope sample). This trains a net with the oracle, which projects exactly, and then prints
for each block, over some training batches: the cosine of the two estimates, the cosine of either with the true
gradient of the block, and the relative difference of the two sums of scalars, which should be rounding.
"""

import torch
from torch import Tensor

from fgpipe.cluster.process import Place
from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.gradients import linearize, linearize_losses
from fgpipe.gradients.dual import insert
from fgpipe.gradients.estimator import coefficients, scaled, squared_norms
from fgpipe.gradients.readings import read
from fgpipe.plan.plan import DataFacts
from fgpipe.plan.precision import DTYPES
from fgpipe.trainers.build import local_trainer
from fgpipe.trainers.oracle import OracleStep

BATCHES = 10
OVERRIDES = ["space=activity", "scope=sample", "guess=local", "target=global", "tangents=oracle", "window=1"]


def main(arguments: list[str]) -> int:
    """Train, measure, print; returns the exit code.

    Raises:
        UserError: the arguments cannot be run, or the data cannot be read.
    """
    config = compose_config([*OVERRIDES, *arguments])
    dataset = load(config.data)
    batches = Batches(dataset, config.data, config.batch_size, config.seed, DTYPES[config.dtype])
    torch.set_num_threads(Place(0, 1, 0, 1).threads(config.threads))
    trainer = local_trainer(config, DataFacts.of(dataset, batches, config.data.size))
    (step,) = trainer.steps.values()
    assert isinstance(step, OracleStep)
    for epoch in range(config.epochs):
        trainer.train(epoch, batches.train_batches, batches.train)
    rows = torch.stack(
        [compare(step, *batches.train(config.epochs, b)) for b in range(min(BATCHES, batches.train_batches))]
    ).mean(dim=0)
    print("block  cos(one tangent, exact)  cos(one tangent, gradient)  cos(exact, gradient)  sums differ by")
    for block, (both, ours, exact, difference) in enumerate(rows.tolist()):
        print(f"{block:>5}  {both:>23.4f}  {ours:>26.4f}  {exact:>20.4f}  {difference:>14.1e}")
    return 0


def compare(step: OracleStep, images: Tensor, labels: Tensor) -> Tensor:
    """Columns `[J - 1, 4]` that `main` prints, on one batch."""
    blocks, heads = ([getattr(each, part) for each in step.learners] for part in ("block", "head"))
    outputs, guesses, tangent = [images], [], None
    for j, block in enumerate(blocks):
        y, push = linearize(block, outputs[-1])
        outputs.append(y)
        tangent = push(tangent, {})
        if j < len(blocks) - 1:
            guesses.append(torch.autograd.grad(heads[j].losses(y, labels)[0].mean(), y)[0])
            tangent = insert(tangent, guesses[j], {j: 1.0})
    assert tangent is not None
    losses, _, push_losses = linearize_losses(heads[-1], outputs[-1], labels)
    rows = []
    for j, one_tangent in enumerate(read(push_losses(tangent), "sample")):
        y, parameters, guess = outputs[j + 1], list(blocks[j].parameters()), guesses[j]
        target = torch.autograd.grad(losses.mean(), [y, *parameters], retain_graph=True)
        exact = (target[0] * guess).flatten(1).sum(dim=1)
        norms = squared_norms([guess], "sample")
        estimates = [
            torch.autograd.grad(
                y, parameters, scaled([guess], coefficients(c[None], norms), "sample"), retain_graph=True
            )
            for c in (one_tangent, exact)
        ]
        ours, theirs, true = (torch.cat([g.flatten() for g in gradients]) for gradients in (*estimates, target[1:]))
        cosine = torch.nn.functional.cosine_similarity
        difference = (one_tangent.sum() - exact.sum()).abs() / exact.sum().abs()
        rows.append(torch.stack([cosine(ours, theirs, 0), cosine(ours, true, 0), cosine(theirs, true, 0), difference]))
    return torch.stack(rows)
