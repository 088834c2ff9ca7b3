"""How far per-sample scalars from one tangent are from the exact projection of every sample.

    python -m fgpipe.study per_sample [key=value ...]

Batch norm couples the samples of a batch, so <gradient of the loss, guess of sample i> would need a tangent per
sample. Forward mode pushes the guesses of the whole batch as one tangent and reads the derivative of each sample's own
loss (design: activity space, scope sample). This trains a net with the oracle, which projects exactly, and then prints
for each block, over some training batches: the cosine of the two estimates, the cosine of either with the true
gradient of the block, and the relative difference of the two sums of scalars, which should be rounding.
"""

from dataclasses import astuple

import torch
from torch import Tensor

from fgpipe.cluster.process import Cluster, Place
from fgpipe.config import compose_config
from fgpipe.data import Batches, load
from fgpipe.gradients import linearize, linearize_losses
from fgpipe.gradients.dual import insert
from fgpipe.gradients.estimator import coefficients, scaled, squared_norms
from fgpipe.gradients.probes import read
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.precision import DTYPES
from fgpipe.trainers.build import build_trainer
from fgpipe.trainers.oracle import OracleTrainer

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
    place = Place(rank=0, world_size=1, local_rank=0, local_world_size=1)
    torch.set_num_threads(place.threads(config.threads))
    plan = Plan.make(config, DataFacts.of(dataset, batches, config.data.size), None, *astuple(place)[:2])
    metrics = Metrics(plan.method.blocks)
    trainer = build_trainer(plan, Cluster(place), torch.device("cpu"), metrics, Ledger(plan.method.blocks))
    assert isinstance(trainer, OracleTrainer)
    for epoch in range(config.epochs):
        trainer.train(epoch, batches.train_batches, batches.train)
    rows = torch.stack([compare(trainer, *batches.train(config.epochs, b)) for b in range(BATCHES)]).mean(dim=0)
    print("block  cos(one tangent, exact)  cos(one tangent, gradient)  cos(exact, gradient)  sums differ by")
    for block, (both, ours, exact, difference) in enumerate(rows.tolist()):
        print(f"{block:>5}  {both:>23.4f}  {ours:>26.4f}  {exact:>20.4f}  {difference:>14.1e}")
    return 0


def compare(trainer: OracleTrainer, images: Tensor, labels: Tensor) -> Tensor:
    """`[J - 1, 4]`: the columns that `main` prints, on one batch."""
    outputs, guesses, tangent = [images], [], None
    for j, block in enumerate(trainer.blocks):
        y, push = linearize(block, outputs[-1])
        outputs.append(y)
        tangent = push(tangent, {})
        if j < len(trainer.blocks) - 1:
            guesses.append(torch.autograd.grad(trainer.heads[j].losses(y, labels)[0].mean(), y)[0])
            tangent = insert(tangent, guesses[j], {j: 1.0})
    losses, _, push_losses = linearize_losses(trainer.heads[-1], outputs[-1], labels)
    rows = []
    for j, one_tangent in enumerate(read(push_losses(tangent), "sample")):
        y, parameters, guess = outputs[j + 1], list(trainer.blocks[j].parameters()), guesses[j]
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
