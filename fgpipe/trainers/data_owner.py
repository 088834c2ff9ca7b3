"""Who reads the data, and what the other processes are told of it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path

from fgpipe.cluster.process import Cluster, Facts
from fgpipe.config import Config
from fgpipe.data import Batches, load
from fgpipe.errors import UserError, bad_value
from fgpipe.plan.plan import DataFacts
from fgpipe.plan.precision import DTYPES
from fgpipe.saving import resume, verdict
from fgpipe.saving.claim import claimed
from fgpipe.saving.outputs import needed


def share_data(
    config: Config, cluster: Cluster, loaders: Sequence[int], claim: ExitStack
) -> tuple[Batches | None, int, Path, DataFacts]:
    """Read the data of this process, if it is one of the `loaders`, the process of block 0 of each replica.

    The first of them goes first: what it has to download is there when the others load. It holds the claim on the run
    folder, as it lives as long as the run, and nothing is written before it has it.
    """
    rank, batches, found = cluster.place.rank, None, None
    if rank == loaders[0]:
        with cluster.loading():
            batches, found = _load(config, claim)
    facts = cluster.share(found, loaders[0], "facts")
    if rank in loaders[1:]:
        with cluster.loading():
            batches, _ = _data(config, loaders.index(rank))
    for replica, loader in enumerate(loaders[1:], 1):
        cluster.share((replica,) if rank == loader else None, loader, f"data/{replica}")
    step, folder, *rest = facts
    return batches, int(step), Path(str(folder)), DataFacts(*map(int, rest))


def _load(config: Config, claim: ExitStack) -> tuple[Batches, Facts]:
    """The data, and what the other processes must know: the step to go on from, the run folder, and `DataFacts`."""
    with met_here_alone():
        folder = claim.enter_context(claimed(config))
        if resume.check_run_dir(config) is not None:
            raise bad_value("run_dir", folder, "the same command again, as the run there has ended just now")
    batches, facts = _data(config, 0)
    with met_here_alone():
        manifest = resume.choose(config, facts.train_batches)
        with needed("run_dir", folder):
            verdict.retire(folder)
    return batches, (manifest.step if manifest else 0, str(folder), *astuple(facts))


def _data(config: Config, replica: int) -> tuple[Batches, DataFacts]:
    """The share of a replica."""
    with met_here_alone():
        dataset = load(config.data)
        dtype, size = DTYPES[config.dtype], config.batch_size
        batches = Batches(dataset, config.data, size, config.seed, dtype, share=replica, shares=config.replicas)
    return batches, DataFacts.of(dataset, batches, config.data.size)


@contextmanager
def met_here_alone() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        error.alone = True
        raise
