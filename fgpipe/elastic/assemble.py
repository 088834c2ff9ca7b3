"""The state of a whole run out of its blocks' newest states: an ordinary checkpoint, and at the end its results."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from fgpipe.config import Config
from fgpipe.config.schema import ElasticConfig, ReplayConfig
from fgpipe.data import Batches
from fgpipe.elastic.places import Places
from fgpipe.errors import OutputError, UserError
from fgpipe.observe.ledger import Ledger, bytes_back, report
from fgpipe.observe.metrics import PHASES, Score
from fgpipe.observe.progress import closing_table
from fgpipe.observe.record import RunFolder
from fgpipe.plan.plan import DataFacts
from fgpipe.saving.checkpoint import (
    CheckpointError,
    Checkpoints,
    Manifest,
    config_hash,
    names_of,
    read_block,
    write_files,
)
from fgpipe.trainers.build import local_trainer

TRIES = 5
"""Times that newest states are looked for again, as their blocks go on saving and remove old ones."""
Scores = Mapping[str, Mapping[int, Score]]


def warn(line: str) -> None:
    """Say that a damaged state is passed over."""
    print(f"fgpipe: passed over: {line}", file=sys.stderr, flush=True)


def assemble(places: Places) -> Manifest:
    """Make a checkpoint of the run's folder out of the newest state of each block, as if an ordinary run had saved it.

    Blocks are at different batches; the checkpoint is at the first that one of them has not trained on.

    Raises:
        UserError: the folder is no run of elastic blocks, or blocks have not saved yet; they are named.
        CheckpointError: the states of a block are all damaged, or the checkpoint cannot be written.
    """
    if not places.facts.exists():
        raise UserError(f"{places.run}: allowed: the folder of a run with elastic.block")
    agreement = places.agreement()
    model, facts = agreement["config"]["model"], DataFacts(*agreement["facts"])
    blocks = len(model["modules"]) if model["modules"] else model["blocks"]
    config = {**agreement["config"], "elastic": asdict(ElasticConfig()), "replay": asdict(ReplayConfig())}
    files: dict[str, bytes] = {}
    positions, missing = [], []
    for block in range(blocks):
        found = _contents(places, block)
        if found is None:
            missing.append(block)
        else:
            files |= found[0]
            positions.append(found[1])
    if missing:
        raise UserError(f"{places.run}: no state was saved yet of blocks {', '.join(map(str, missing))}")
    step = min(positions)
    checkpoints = Checkpoints(places.run)
    if step in checkpoints.steps() and (there := checkpoints.manifest(step)).test_accuracy is not None:
        return there  # the end of the run, which is tested
    checkpoints.discard(after=step - 1)
    epoch, batch = divmod(step, facts.train_batches)
    stored = write_files(checkpoints.folder(step), files)
    seconds = time.time() - agreement["began"]
    manifest = Manifest(step, epoch, batch, None, config, config_hash(config), [], seconds, 0, stored)
    checkpoints.publish(manifest)
    return manifest


def _contents(places: Places, block: int) -> tuple[dict[str, bytes], int] | None:
    """The files of the newest state of a block, and its position; None if there is none."""
    for left in reversed(range(TRIES)):
        try:
            if (found := places.newest(block, warn)) is None:
                return None
            folder, manifest = found
            batches = DataFacts(*places.agreement()["facts"]).train_batches
            contents = {name: (folder / name).read_bytes() for name in names_of(block)}
            return contents, manifest.epoch * batches + manifest.batch
        except (FileNotFoundError, CheckpointError):
            if not left:
                raise
            time.sleep(0.1)
    raise AssertionError


def finish(config: Config, places: Places, batches: Batches, facts: DataFacts) -> dict[str, Any]:
    """Assemble a run whose blocks have made all their steps, test it, and write and print the results.

    Returns:
        The figures of `summary.json`.

    Raises:
        UserError, CheckpointError: as `assemble`; or the run folder cannot be written.
        OutputError: the results cannot be written; they are printed.
    """
    manifest = assemble(places)
    seconds = time.time() - places.agreement()["began"]
    ordinary = replace(config, elastic=ElasticConfig(), replay=ReplayConfig())
    trainer, folder = local_trainer(ordinary, facts), Checkpoints(places.run).folder(manifest.step)
    ledger, sums = Ledger(trainer.plan.method.blocks), {}
    for block, parts in trainer.trained().items():
        counters = read_block(folder, block, parts)
        ledger.restore(block, counters["traffic"])
        sums[block] = counters["epochs"].get(str(config.epochs - 1), [0.0, 0.0, 0.0])
    trainer.evaluate(config.epochs - 1, facts.test_batches, lambda _, index: batches.test(index))
    tested = trainer.observers.metrics.take()[0].tolist()
    scores: Scores = {PHASES[1]: _scores(sums), PHASES[0]: _scores(dict(enumerate(tested)))}
    accuracy = scores["test"][trainer.plan.method.last].accuracy
    run = RunFolder(ordinary, places.run)
    run.epoch(config.epochs - 1, scores, seconds)
    Checkpoints(places.run).publish(replace(manifest, test_accuracy=accuracy, epochs=run.epochs))
    traffic = ledger.as_tensor()
    figures = {
        "device": "cpu",
        "world_size": trainer.plan.method.blocks,
        "blocks_per_process": [1] * trainer.plan.method.blocks,
        "threads_per_process": torch.get_num_threads(),
        "test_accuracy": accuracy,
        "train_seconds": seconds,
        "images_per_second": config.epochs * facts.train_batches * config.batch_size / seconds,
        "elastic": {str(block): places.tally(block) for block in sums},
        "bytes": report(traffic),
        "bytes_back_per_batch": bytes_back(traffic, config.epochs * facts.train_batches),
    }
    missing = run.summary(figures)
    table = closing_table(scores["train"], scores["test"], trainer.plan.method.blocks)
    print(
        f"{table}\ntest accuracy {accuracy:.2%}, {figures['images_per_second']:.0f} images/s; see {places.run}",
        flush=True,
    )
    if missing:
        raise OutputError("; ".join(missing))
    run.page()
    return figures


def _scores(sums: Mapping[int, list[float]]) -> dict[int, Score]:
    return {
        block: Score(loss / samples, correct / samples, int(samples))
        for block, (loss, correct, samples) in sums.items()
        if samples
    }
